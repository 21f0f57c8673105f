"""A worker: loads one function and runs its events, one after another. Standard library only; runs inside a jail as an unprivileged user.

Speaks the worker's half of schemas/frames.py on a blocking stream socket (tests/unit/test_runner_frames.py compares the two): LOAD → READY, then RUN → DONE, each
in order, with LOG frames between for what the handler prints. User code shares this process, so nothing said here is trusted by the agent.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import json
import os
import random
import resource
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

LOAD, READY, RUN, DONE, LOG, RUN_BATCHED, LEAVING = 16, 17, 18, 19, 20, 21, 22
OK, USER_EXCEPTION, BAD_EVENT, REPLY_TOO_LARGE, BAD_REPLY = range(5)
_FRAME = struct.Struct("!IB")
_RUN = struct.Struct("!I16s")
RUN_FIXED = _RUN.size
_DONE = struct.Struct("!IBIBI")
_LOG = struct.Struct("!IBIB")
_U32 = struct.Struct("!I")
_CHUNK = 256 * 1024
_LOG_CHUNK = 32 * 1024
_COALESCE_S = 0.0002
_COALESCE_FRAMES = 7
_REPLY_LIMIT = 6 * 1024 * 1024
_FRAME_LIMIT = 8 * 1024 * 1024


class Channel:
    """The control socket: frames in, frames out."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        self._frames: list[tuple[int, bytes]] = []
        self._out: list[bytes] = []

    def send(self, frame: bytes) -> None:
        """Send now, with whatever was put off."""
        if self._out:
            self._out.append(frame)
            frame = b"".join(self._out)
            self._out.clear()
        self._sock.sendall(frame)

    def put_off(self, frame: bytes) -> None:
        """Keep a frame back: the next one is only microseconds away."""
        self._out.append(frame)

    def flush(self) -> None:
        """Send what was put off."""
        if self._out:
            self._sock.sendall(b"".join(self._out))
            self._out.clear()

    @property
    def has_next(self) -> bool:
        """True when a whole frame is here already."""
        return bool(self._frames)

    @property
    def can_wait(self) -> bool:
        """True when a frame may be put off: another is at hand, and the agent does not run out of answers meanwhile."""
        return bool(self._frames) and len(self._out) < _COALESCE_FRAMES

    def next(self) -> tuple[int, bytes]:
        """The next frame; waits for it. SystemExit when the agent is gone."""
        while not self._frames:
            self._read()
        return self._frames.pop()

    def take(self) -> list[tuple[int, bytes]]:
        """What a readable socket has: frames in order, or none yet. Ends the process when the agent is gone."""
        if not self._frames:
            self._read()
        found, self._frames = self._frames, []
        found.reverse()
        return found

    def send_log(self, corr: int, stream: int, data: bytes) -> None:
        """Printed bytes as LOG frames; `stream` 1 or 2."""
        for at in range(0, len(data), _LOG_CHUNK):
            part = data[at : at + _LOG_CHUNK]
            self.send(_LOG.pack(len(part) + 6, LOG, corr, stream) + part)

    def send_ready(self, said: dict[str, Any]) -> None:
        """READY."""
        body = json.dumps(said).encode()
        self.send(_FRAME.pack(len(body) + 5, READY) + _U32.pack(0) + body)

    def send_done(self, corr: int, outcome: int, peak_kib: int, body: bytes) -> None:
        """DONE."""
        self.send(_DONE.pack(len(body) + 10, DONE, corr, outcome, peak_kib) + body)

    def send_leaving(self) -> None:
        """LEAVING."""
        self.send(_FRAME.pack(1, LEAVING))

    def _read(self) -> None:
        data = self._sock.recv(_CHUNK)
        if not data:
            os._exit(0)
        if self._rest:
            data = self._rest + data
        found, at = [], 0
        while len(data) - at >= 5:
            length, kind = _FRAME.unpack_from(data, at)
            if length > _FRAME_LIMIT:
                os._exit(1)
            if len(data) - at - 4 < length:
                break
            found.append((kind, data[at + 5 : at + 4 + length]))
            at += 4 + length
        self._rest = data[at:]
        if found:
            found.reverse()
            self._frames = found
        elif len(self._rest) >= 5:
            self._read_large(_U32.unpack_from(self._rest)[0] + 4)

    def _read_large(self, total: int) -> None:
        parts, have = [self._rest], len(self._rest)
        while have < total:
            data = self._sock.recv(min(1 << 20, total - have))
            if not data:
                os._exit(0)
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._rest = b""
        self._frames = [(whole[4], whole[5:])]


class LogStream(io.TextIOBase):
    """`sys.stdout` and `sys.stderr` of user code: whole lines leave as LOG frames, in order with DONE."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel, self._number = channel, number
        self._pending = ""
        self.corr = 0

    encoding = "utf-8"
    errors = "replace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._pending += text
        if "\n" in text or len(self._pending) > _LOG_CHUNK:
            cut = self._pending.rfind("\n") + 1 or len(self._pending)
            whole, self._pending = self._pending[:cut], self._pending[cut:]
            self._emit(whole)
        return len(text)

    def flush(self) -> None:
        """Lines leave when they are whole; an unfinished one waits for its end or the invocation's."""

    def finish(self) -> None:
        """The invocation is over: what is left is a line."""
        if self._pending:
            rest, self._pending = self._pending, ""
            self._emit(rest)

    def _emit(self, text: str) -> None:
        self._channel.send_log(self.corr, self._number, text.encode("utf-8", "replace"))


class HandlerMissing(Exception):
    """The module was loaded but has no such function."""


class Worker:
    """One loaded function."""

    def __init__(self, channel: Channel, search_path: list[str], scratch: str) -> None:
        self._channel, self._search_path, self._scratch = channel, search_path, scratch
        self._streams = (LogStream(channel, 1), LogStream(channel, 2))
        self._handler: Callable[[Any, Any], Any] | None = None
        self._context: dict[str, Any] = {}

    def load(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Import the user's module; the READY body."""
        sys.stdout, sys.stderr = self._streams
        try:
            self._enter(wanted)
            self._handler = self._find(str(wanted["handler"]))
        except HandlerMissing as exc:
            return {"ok": False, "status": 437, "message": str(exc), "trace": ""}
        except BaseException as exc:  # SystemExit at import too: it is the user's code that failed
            return {"ok": False, "status": 443, "message": f"{type(exc).__name__}: {exc}", "trace": _trace(exc)}
        finally:
            for stream in self._streams:
                stream.finish()
        return {"ok": True}

    def _enter(self, wanted: dict[str, Any]) -> None:
        os.environ.clear()
        os.environ.update(environment(wanted, self._search_path, self._scratch))
        code_dir = self._search_path[0]
        self._context = dict(wanted["context"])
        os.chdir(code_dir)
        sys.path[:0] = self._search_path
        sys.argv = [code_dir + "/bootstrap"]
        for name in [n for n in sys.modules if n == "sandbox" or n.startswith("sandbox.")]:
            del sys.modules[name]  # a user's module of this name must be found

    def _find(self, handler: str) -> Callable[[Any, Any], Any]:
        path, _, name = handler.rpartition(".")
        folder, _, module_name = path.rpartition("/")
        if folder:
            sys.path.insert(0, os.path.join(os.getcwd(), folder))
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as exc:
            if exc.name == module_name:
                raise HandlerMissing(f"the package has no {path}.py (handler {handler})") from exc
            raise
        found = getattr(module, name, None)
        if not callable(found):
            raise HandlerMissing(f"{path}.py has no function {name} (handler {handler})")
        if inspect.iscoroutinefunction(found):
            return lambda event, context: asyncio.run(found(event, context))
        return found  # type: ignore[no-any-return]

    def run(self, payload: bytes, *, batched: bool) -> None:
        """One RUN: call the handler and answer."""
        corr, request_id = _RUN.unpack_from(payload)
        out, err = self._streams
        out.corr = err.corr = corr
        context = dict(self._context)
        context["request_id"] = uuid_text(request_id)
        began = time.monotonic()
        outcome, body = self._call(payload[RUN_FIXED:], context)
        out.finish()
        err.finish()
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        frame = _DONE.pack(len(body) + 10, DONE, corr, outcome, peak_kib) + body
        if batched and self._channel.can_wait and time.monotonic() - began < _COALESCE_S:
            self._channel.put_off(frame)
        else:
            self._channel.send(frame)

    def _call(self, event_text: bytes, context: dict[str, Any]) -> tuple[int, bytes]:
        handler = self._handler
        assert handler is not None
        try:
            event = json.loads(event_text) if event_text else {}
        except ValueError as exc:
            return BAD_EVENT, f"the event is not JSON: {exc}".encode()
        try:
            result = handler(event, context)
            body = json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        except Exception as exc:  # whatever user code raises; SystemExit ends the worker, as in SCF
            return USER_EXCEPTION, _error(exc, context["request_id"])
        if len(body) > _REPLY_LIMIT:
            return REPLY_TOO_LARGE, f"the reply has {len(body)} bytes; the limit is {_REPLY_LIMIT}".encode()
        return OK, body


def environment(wanted: dict[str, Any], search_path: list[str], scratch: str) -> dict[str, str]:
    """What user code finds in its environment: LOAD's, with the places as they are in this worker."""
    code_dir = search_path[0]
    return {
        **wanted["environment"],
        "USER_CODE_ROOT": code_dir + "/",
        "PWD": code_dir,
        "HOME": scratch,
        "PYTHONPATH": os.pathsep.join(search_path),
    }


def decode_run(payload: bytes) -> tuple[int, bytes, bytes]:
    """RUN from its payload: corr, request id, event."""
    corr, request_id = _RUN.unpack_from(payload)
    return corr, request_id, payload[RUN_FIXED:]


def uuid_text(request_id: bytes) -> str:
    """Sixteen bytes as a UUID is written."""
    text = request_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _trace(exc: BaseException) -> str:
    """The traceback without the runner's own frames."""
    shown = traceback.TracebackException.from_exception(exc)
    shown.stack[:] = [f for f in shown.stack if f.filename != __file__ and "importlib" not in f.filename]
    return "".join(shown.format())[-16_384:]


def _error(exc: BaseException, request_id: str) -> bytes:
    value = {
        "errorCode": -1,
        "errorMessage": "user code exception caught",
        "requestId": request_id,
        "stackTrace": _trace(exc),
        "statusCode": 430,
    }
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def serve(sock: socket.socket, search_path: list[str], scratch: str) -> None:
    """The worker's life: LOAD, then RUN until the agent closes the socket.

    Modules are looked for in `search_path`, of which the first is the package's folder; `scratch` is writable.
    """
    random.seed()
    channel = Channel(sock)
    worker = Worker(channel, search_path, scratch)
    kind, payload = channel.next()
    if kind != LOAD:
        os._exit(1)
    channel.send_ready(worker.load(json.loads(payload[4:])))
    while True:
        if not channel.has_next:
            channel.flush()
        kind, payload = channel.next()
        if kind in (RUN, RUN_BATCHED):
            worker.run(payload, batched=kind == RUN_BATCHED)
