"""A worker that runs a `bootstrap` of any language: serves it the runtime API on loopback and speaks for it with the agent.

This process stays pid 1 of the worker: it reads what the bootstrap prints and says of which run it is, and ends as the bootstrap ends, which
takes along whatever is left of it. Standard library only; runs inside a jail as an unprivileged user.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, NoReturn

from sandbox.runner import http1, kernel, peers, worker
from sandbox.runner.runtimeapi import BODY_LIMIT, Answer, Done, Effect, Limits, Ready, Run, RuntimeApi

HOST = "127.0.0.1"
_CONNECTIONS = 64
_READ = 256 * 1024
_PIPE = 64 * 1024
_DRAIN_READS = 64
_AHEAD = 64 * 1024
"""Bytes that a client may send before it has heard the answer to its last request."""
_INIT_FAILED = 445
_BY_SIGNAL = 128
_WHY = {
    errno.ENOENT: "its interpreter (the path after #!), or the loader it names, is not there",
    errno.ENOEXEC: "it starts neither with #! nor is it a program for this machine",
    errno.EACCES: "it, or its interpreter, may not be executed",
}


def listen() -> socket.socket:
    """A listening socket on a free port of loopback. Raises OSError."""
    return socket.create_server((HOST, 0), backlog=_CONNECTIONS)


class _Connection:
    """One connection of the bootstrap."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.parser = http1.Parser(BODY_LIMIT)
        self.out: deque[memoryview] = deque()
        self.waits = False
        """It has sent a request that is not answered yet: what it sends meanwhile is left where it is."""
        self.keep_alive = True
        self.is_ending = False


class _Output:
    """What the bootstrap writes to one of its streams: whole lines leave as LOG frames."""

    def __init__(self, channel: worker.Channel, number: int) -> None:
        self._channel, self._number = channel, number
        self.descriptor, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.descriptor, False)
        self._rest = b""

    def read(self, corr: int) -> int:
        """One read; bytes read, 0 at the end, -1 when there is nothing now."""
        try:
            data = os.read(self.descriptor, _PIPE)
        except BlockingIOError:
            return -1
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if len(self._rest) > _PIPE:
            whole, newline, self._rest = whole + newline + self._rest, b"", b""
        if whole or newline:
            self._channel.send_log(corr, self._number, whole + newline)
        return len(data)

    def finish(self, corr: int) -> None:
        """Take in what is there; an unfinished line ends here."""
        for _ in range(_DRAIN_READS):
            if self.read(corr) <= 0:
                break
        if self._rest:
            rest, self._rest = self._rest, b""
            self._channel.send_log(corr, self._number, rest)


class CustomWorker:
    """The life of one bootstrap."""

    def __init__(self, sock: socket.socket, listener: socket.socket, search_path: list[str], scratch: str) -> None:
        self._channel, self._control, self._listener = worker.Channel(sock), sock, listener
        self._search_path, self._scratch = search_path, scratch
        self._outputs = (_Output(self._channel, 1), _Output(self._channel, 2))
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}
        self._api = RuntimeApi(Limits(0, 0, ""))
        self._again: list[int] = []
        """Connections that were answered and have sent more meanwhile."""
        self._process: subprocess.Popen[bytes] | None = None  # kept: its end would reap the bootstrap
        self._child = 0

    def serve(self) -> NoReturn:
        """LOAD, the start of the bootstrap, then events until the agent closes the socket or the bootstrap ends."""
        kind, payload = self._channel.next()
        if kind != worker.LOAD:
            os._exit(1)
        wanted = json.loads(payload[4:])
        self._api = RuntimeApi(_limits(wanted["context"]))
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._listener.setblocking(False)
        register = self._selector.register
        register(self._listener, selectors.EVENT_READ, lambda _mask: self._accept())
        register(woken, selectors.EVENT_READ, lambda _mask: self._reap(woken))
        register(self._control, selectors.EVENT_READ, lambda _mask: self._hear())
        for output in self._outputs:
            register(output.descriptor, selectors.EVENT_READ, lambda _mask, output=output: self._print(output))
        self._start(wanted)
        while True:
            for key, mask in self._selector.select():
                key.data(mask)
            while self._again:
                number = self._again.pop()
                if (connection := self._connections.get(number)) is not None:
                    self._requests(number, connection)

    # The bootstrap

    def _start(self, wanted: dict[str, Any]) -> None:
        code_dir, port = self._search_path[0], str(self._listener.getsockname()[1])
        context = wanted["context"]
        environment = {
            **worker.environment(wanted, self._search_path, self._scratch),
            "_HANDLER": str(wanted["handler"]),
            "SCF_RUNTIME_API": HOST,
            "SCF_RUNTIME_API_PORT": port,
            "AWS_LAMBDA_RUNTIME_API": f"{HOST}:{port}",
            "AWS_LAMBDA_FUNCTION_NAME": str(context.get("function_name", "")),
            "AWS_LAMBDA_FUNCTION_VERSION": str(context.get("function_version", "")),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(context.get("memory_limit_in_mb", "")),
            "LAMBDA_TASK_ROOT": code_dir,
        }
        out, err = self._outputs
        try:
            self._process = subprocess.Popen(
                [f"{code_dir}/bootstrap"],
                cwd=code_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out.theirs,
                stderr=err.theirs,
                start_new_session=True,
                preexec_fn=kernel.die_with_parent,  # noqa: PLW1509 - this process has one thread
            )
            self._child = self._process.pid
        except OSError as exc:
            why = _WHY.get(exc.errno or 0, exc.strerror or str(exc))
            self._apply([Ready(_INIT_FAILED, f"bootstrap can't be started: {why}")])
        for output in self._outputs:
            os.close(output.theirs)

    def _reap(self, woken: int) -> None:
        """Processes that the bootstrap left behind end here too: this is their pid 1."""
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child:
                self._ended(os.waitstatus_to_exitcode(status))

    def _ended(self, code: int) -> NoReturn:
        """The bootstrap is gone: so is this worker, with its exit code, or 128 and the number of its signal."""
        for number, connection in list(self._connections.items()):
            for _ in range(_DRAIN_READS):  # a result that it did not wait to see accepted
                if not self._read(number, connection):
                    break
        corr = self._api.writing_for
        for output in self._outputs:
            output.finish(corr)
        if code < 0:
            with contextlib.suppress(ValueError):
                self._channel.send_log(corr, 2, f"bootstrap was ended by {signal.Signals(-code).name}\n".encode())
        if self._api.is_between:
            self._channel.send_leaving()
        with contextlib.suppress(OSError):
            os.killpg(self._child, signal.SIGKILL)  # what is left of its group, where no pid namespace ends with us
        os._exit(_BY_SIGNAL - code if code < 0 else code)

    def _print(self, output: _Output) -> None:
        if output.read(self._api.writing_for) == 0:
            self._selector.unregister(output.descriptor)  # its writers are gone

    # The agent

    def _hear(self) -> None:
        for kind, payload in self._channel.take():
            if kind in (worker.RUN, worker.RUN_BATCHED):
                for output in self._outputs:
                    output.read(self._api.writing_for)
                corr, request_id, event = worker.decode_run(payload)
                self._apply(self._api.run(Run(corr, worker.uuid_text(request_id), event), _now_ms()))

    def _apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Answer):
                self._answer(effect)
            elif isinstance(effect, Done):
                for output in self._outputs:
                    output.finish(effect.corr)
                self._channel.send_done(effect.corr, effect.outcome, self._peak_kib(), effect.body)
            elif effect.status:
                for output in self._outputs:
                    output.finish(0)
                said = {"ok": False, "status": effect.status, "message": effect.message, "trace": effect.trace}
                self._channel.send_ready(said)
            else:
                self._channel.send_ready({"ok": True})

    def _peak_kib(self) -> int:
        """The bootstrap's peak resident set; 0 when that can't be told."""
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{self._child}/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1])
        return 0

    # Its requests

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            if len(self._connections) >= _CONNECTIONS or not peers.is_ours(sock):
                sock.close()
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = sock.fileno()
            self._connections[number] = _Connection(sock)
            self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._ready(number, mask))

    def _ready(self, number: int, mask: int) -> None:
        connection = self._connections.get(number)
        if connection is None:  # closed by what came before it in this turn
            return
        if mask & selectors.EVENT_WRITE and not self._write(number, connection):
            return
        if mask & selectors.EVENT_READ:
            self._read(number, connection)

    def _read(self, number: int, connection: _Connection) -> bool:
        """One read, and what it leads to; False when there is nothing more now, or the connection is closed."""
        try:
            data = connection.sock.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close(number)
            return False
        connection.parser.feed(data)
        if connection.waits and connection.parser.buffered > _AHEAD:
            self._close(number)
            return False
        self._requests(number, connection)
        return number in self._connections

    def _requests(self, number: int, connection: _Connection) -> None:
        """Take requests one by one; the next only when the one before is answered."""
        while not connection.waits and not connection.is_ending:
            try:
                request = connection.parser.next()
            except http1.BadRequest as exc:
                connection.keep_alive = False
                body = json.dumps({"errorType": "BadRequest", "errorMessage": str(exc)}).encode()
                self._answer(Answer(number, exc.status, {"Content-Type": "application/json"}, body))
                return
            if request is None:
                if connection.parser.wants_continue:
                    connection.parser.wants_continue = False
                    self._send(number, connection, http1.CONTINUE)
                return
            connection.waits, connection.keep_alive = True, request.keep_alive
            self._apply(self._api.request(number, request, _now_ms()))
            if number not in self._connections:
                return

    def _answer(self, answer: Answer) -> None:
        connection = self._connections.get(answer.to)
        if connection is None:
            return
        connection.waits, connection.is_ending = False, not connection.keep_alive
        head = http1.answer_head(
            answer.status, answer.headers, length=len(answer.body), keep_alive=connection.keep_alive
        )
        self._send(answer.to, connection, head, answer.body)
        if connection.parser.buffered:
            self._again.append(answer.to)

    def _send(self, number: int, connection: _Connection, *parts: bytes) -> None:
        connection.out += [memoryview(part) for part in parts if part]
        self._write(number, connection)

    def _write(self, number: int, connection: _Connection) -> bool:
        """As much as it takes; False when it is closed."""
        try:
            while connection.out:
                sent = connection.sock.sendmsg([*connection.out][:2])
                while connection.out and sent >= len(connection.out[0]):
                    sent -= len(connection.out.popleft())
                if sent:
                    connection.out[0] = connection.out[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._close(number)
            return False
        if not connection.out and connection.is_ending:
            self._close(number)
            return False
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        self._selector.modify(connection.sock, wanted, lambda mask: self._ready(number, mask))
        return True

    def _close(self, number: int) -> None:
        connection = self._connections.pop(number)
        self._api.gone(number)
        self._selector.unregister(connection.sock)
        connection.sock.close()


def _limits(context: dict[str, Any]) -> Limits:
    names = ("tencentcloud_region", "tencentcloud_uin", "namespace", "function_name")
    region, uin, namespace, function = (str(context.get(name, "")) for name in names)
    resource = f"qcs::scf:{region}:uin/{uin}:namespace/{namespace}/function/{function}"
    return Limits(int(context.get("memory_limit_in_mb", 0)), int(context.get("time_limit_in_ms", 0)), resource)


def _now_ms() -> int:
    return int(time.time() * 1000)  # noqa: TID251 - infra.clock is not inside


def serve(sock: socket.socket, listener: socket.socket, search_path: list[str], scratch: str) -> NoReturn:
    """The worker's life. `search_path` and `scratch` as for sandbox.runner.worker.serve; `listener` is `listen`'s."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # the bootstrap, of the same uid, is not to reach into this process
    CustomWorker(sock, listener, search_path, scratch).serve()
