"""The agent's end of one worker: its socket, its output pipes, the calls it was given, and how it ends.

Reads and writes are driven by the loop's readiness, in batches: one send for all RUN frames of a turn, one pass over all frames of a read.
A worker is not trusted: anything but the expected frames in the expected order ends it.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from infra.clock import mono_s
from infra.telemetry import get_logger
from sandbox.agent.calls import Call
from sandbox.driver import Worker, WorkerExit
from schemas.errors import WireError
from schemas.frames import Kind, Splitter, encode_run, parse_json
from schemas.runstatus import RunStatus

if TYPE_CHECKING:
    from sandbox.agent.logs import FunctionLog

log = get_logger("sandbox.worker")

READ_BYTES: Final = 256 * 1024
PIPE_BYTES: Final = 64 * 1024
PIPE_READS: Final = 32
FIRST_LOOKS: Final = 32
"""Ends of calls at which the pipes of a worker are looked at though nothing came from them yet: two system calls each."""
EARLY_BYTES: Final = 64 * 1024
EOF_GRACE_S: Final = 0.2
"""How long a worker that closed its socket may take to be gone, before it is killed: its own exit code says more than our kill."""
_DONE: Final = int(Kind.DONE)
_LOG: Final = int(Kind.LOG)
_READY: Final = int(Kind.READY)
_LEAVING: Final = int(Kind.LEAVING)
_buffer = memoryview(bytearray(READ_BYTES))


class WorkerOwner(Protocol):
    """What a worker tells; sandbox.agent.functionpool implements it."""

    log: FunctionLog

    def finished(self, worker: WorkerLink, done: list[bytes], now: float) -> None:
        """DONE frames came; raises WireError when they are not those of its calls."""

    def unusable(self, worker: WorkerLink) -> None:
        """It takes no more calls, because it is being killed or has closed its socket."""

    def gone(self, worker: WorkerLink, ended: WorkerExit, now: float) -> None:
        """It is dead; what it was given and did not answer is still in `calls`."""

    def settle(self) -> None:
        """Called at the end of every batch: write what was queued for workers."""


class WorkerLink:
    """One worker process."""

    __slots__ = (
        "_early",
        "_early_bytes",
        "_eof",
        "_looks",
        "_loop",
        "_out",
        "_partial",
        "_ready",
        "_sequence",
        "_splitter",
        "_unsent",
        "between",
        "calls",
        "driver",
        "ended",
        "head_at",
        "killed",
        "last_used",
        "leaving",
        "level",
        "loose",
        "memory_mib",
        "native",
        "owner",
        "release",
    )

    def __init__(
        self,
        owner: WorkerOwner,
        driver: Worker,
        *,
        level: int,
        memory_mib: int,
        release: Callable[[], None],
    ) -> None:
        self.owner, self.driver = owner, driver
        self.level = level
        """Cold-start level of its first call; 0 from then on."""
        self.memory_mib = memory_mib
        self.release = release
        """Gives back what it holds (code, memory); called once, by its owner."""
        self.calls: deque[Call] = deque()
        self.head_at = 0.0
        """Monotonic seconds since when the first of `calls` runs."""
        self.last_used = mono_s()
        self.loose = 0
        """How many of `calls` were sent as RUN_BATCHED."""
        self.killed = False
        self.leaving = False
        """Told to go because it was idle; its memory is about to be free."""
        self.ended: WorkerExit | None = None
        """How it ended, once it is dead."""
        self.between = False
        """It said that it ends between two events: none of `calls` has begun."""
        self.native = False
        """It has written to its pipes before: look at them before each end of a call."""
        self._looks = FIRST_LOOKS
        self._loop = asyncio.get_running_loop()
        self._splitter = Splitter()
        self._out: list[bytes] = []
        self._unsent = b""
        self._sequence = 0
        self._eof = False
        self._ready: asyncio.Future[tuple[bool, Any]] = self._loop.create_future()
        self._early: list[tuple[int, bytes]] = []
        self._early_bytes = 0
        self._partial = {1: b"", 2: b""}
        self._loop.add_reader(driver.socket, self._readable)
        self._loop.add_reader(driver.stdout_fd, self._pipe_readable, driver.stdout_fd, 1)
        self._loop.add_reader(driver.stderr_fd, self._pipe_readable, driver.stderr_fd, 2)

    # What the owner does with it

    @property
    def usable(self) -> bool:
        """True while it can be given calls."""
        return not (self.killed or self._eof or self.ended)

    @property
    def unsure(self) -> bool:
        """True when any of several calls may be the one that runs (the DONE of those before may have been kept back)."""
        return len(self.calls) > 1 and self.calls[0].batched

    @property
    def room(self) -> bool:
        """False while its socket does not take what was sent."""
        return not self._unsent

    def send(self, frame: bytes) -> None:
        """Queue one frame for the next `flush`."""
        self._out.append(frame)

    def run(self, call: Call, now: float, *, batched: bool) -> bool:
        """Give it one more call; True when nothing else waits to be flushed to it."""
        call.worker = self
        call.cold, self.level = self.level, 0
        if not self.calls:
            self.head_at = now
            if self._early:
                self._say_early(call, now)
        self._sequence = call.sequence = (self._sequence + 1) & 0xFFFFFFFF
        self.calls.append(call)
        out = self._out
        if batched:
            call.batched = True
            self.loose += 1
            out.append(encode_run(call.sequence, call.request_id, call.event, Kind.RUN_BATCHED))
        else:
            out.append(encode_run(call.sequence, call.request_id, call.event))
        return len(out) == 1

    def flush(self) -> None:
        """Write what is queued, as far as the socket takes it."""
        if self._unsent or not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._write(data)

    async def ready(self) -> tuple[bool, Any]:
        """READY's content, (ok, JSON object); raises ConnectionError when the worker ends before."""
        return await asyncio.shield(self._ready)

    def kill(self, call: Call | None = None, status: RunStatus = RunStatus.CANCELLED, message: str = "") -> None:
        """End it at once; `call` is answered with `status` when it is dead."""
        if call is not None and call.doom is None:
            call.doom = (status, message)
        if not self.killed and self.ended is None:
            self.killed = True
            self.owner.unusable(self)
            self.driver.kill()

    def early_lines(self) -> list[tuple[int, bytes]]:
        """What it wrote outside of any call: stream and text; forgotten here."""
        early, self._early, self._early_bytes = self._early, [], 0
        return early

    async def watch(self) -> None:
        """Wait for its end, take in its last words, and tell the owner. Runs once per worker."""
        ended = await self.driver.exited()
        now = mono_s()
        self._loop.remove_reader(self.driver.socket)
        self._loop.remove_writer(self.driver.socket)
        while not self._eof and self._read(now):
            pass
        for descriptor, stream in ((self.driver.stdout_fd, 1), (self.driver.stderr_fd, 2)):
            self._loop.remove_reader(descriptor)
            while self._read_pipe(descriptor, stream, now) > 0:
                pass
        self._end_partial_lines(now)
        self.driver.close()
        self.ended = ended
        if not self._ready.done():
            self._ready.set_exception(ConnectionError("the worker ended before it was ready"))
            self._ready.exception()  # seen, also when nobody waits
        self.owner.gone(self, ended, now)
        self.owner.settle()

    # Its socket

    def _write(self, data: bytes) -> None:
        try:
            sent = self.driver.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it is ending: its exit decides what becomes of the calls
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.add_writer(self.driver.socket, self._writable)

    def _writable(self) -> None:
        data, self._unsent = self._unsent, b""
        self._write(data)
        if not self._unsent:
            self._loop.remove_writer(self.driver.socket)
            self.flush()

    def _readable(self) -> None:
        self._read(mono_s())
        self.owner.settle()

    def _read(self, now: float) -> bool:
        """Take in one read; False when there is nothing more."""
        try:
            count = self.driver.socket.recv_into(_buffer)
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if not count:
            self._closed()
            return False
        try:
            self._take(self._splitter.feed(bytes(_buffer[:count])), now)
        except WireError as exc:
            log.warning("a worker broke the protocol", pid=self.driver.pid, reason=str(exc))
            self._blame_head(f"the function's process disturbed its connection: {exc}")
            return False
        return True

    def _take(self, frames: list[tuple[int, bytes]], now: float) -> None:
        done: list[bytes] = []
        for kind, payload in frames:
            if kind == _DONE:
                done.append(payload)
            elif kind == _LOG:
                self._log(payload, now)
            elif kind == _READY and not self._ready.done():
                _, said = parse_json(payload)
                if not isinstance(said, dict):
                    raise WireError("READY is no object")
                self._ready.set_result((bool(said.get("ok")), said))
            elif kind == _LEAVING and self._ready.done():
                self.between = True
            else:
                raise WireError(f"unexpected frame of kind {kind}")
        if done:
            if self.native or self._looks > 0:
                self._looks -= 1
                self._drain_pipes(now)
            self.owner.finished(self, done, now)

    def _closed(self) -> None:
        self._eof = True
        self._loop.remove_reader(self.driver.socket)
        self.owner.unusable(self)
        if self.ended is None:
            self._loop.call_later(EOF_GRACE_S, self._blame_head, "the function's process closed its connection")

    def _blame_head(self, message: str) -> None:
        self.kill(self.calls[0] if self.calls else None, RunStatus.PROCESS_EXIT, message)

    # Its output

    def _log(self, payload: bytes, now: float) -> None:
        if len(payload) < 5:
            raise WireError("bad LOG frame")
        sequence, stream = int.from_bytes(payload[:4], "big"), payload[4]
        if stream not in (1, 2):
            raise WireError(f"LOG names stream {stream}")
        at = (sequence - self.calls[0].sequence) & 0xFFFFFFFF if self.calls else 0
        if at < len(self.calls) and sequence:
            self._say(self.calls[at], stream, payload[5:], now)
        else:
            self._keep_early(stream, payload[5:])

    def _say(self, call: Call, stream: int, text: bytes, now: float) -> None:
        if call.log is None:
            started = self.head_at if self.calls and call is self.calls[0] else now
            call.log = self.owner.log.begin(call.request_id, started, want_tail=bool(call.flags & 1))
        self.owner.log.lines(call.log, stream, text, now)

    def _say_early(self, call: Call, now: float) -> None:
        call.log = self.owner.log.begin(call.request_id, now, want_tail=bool(call.flags & 1))
        for stream, text in self.early_lines():
            self.owner.log.lines(call.log, stream, text, now)

    def _keep_early(self, stream: int, text: bytes) -> None:
        """Written outside of any call (at import, or by a thread after the end): stands in the next call's log."""
        if self._early_bytes + len(text) <= EARLY_BYTES:
            self._early.append((stream, text))
            self._early_bytes += len(text)

    def _pipe_readable(self, descriptor: int, stream: int) -> None:
        if not self._read_pipe(descriptor, stream, mono_s()):
            self._loop.remove_reader(descriptor)  # its writers are gone

    def _drain_pipes(self, now: float) -> None:
        for descriptor, stream in ((self.driver.stdout_fd, 1), (self.driver.stderr_fd, 2)):
            for _ in range(PIPE_READS):
                if self._read_pipe(descriptor, stream, now) <= 0:
                    break
        self._end_partial_lines(now)

    def _read_pipe(self, descriptor: int, stream: int, now: float) -> int:
        """Take in one read; bytes read, 0 at the end, -1 when there is nothing now."""
        try:
            data = os.read(descriptor, PIPE_BYTES)
        except BlockingIOError:
            return -1
        except OSError:
            return 0
        if not data:
            return 0
        self.native = True
        whole, newline, rest = (self._partial[stream] + data).rpartition(b"\n")
        if len(rest) > PIPE_BYTES:  # a line without end
            whole, newline, rest = rest, b"\n", b""
        self._partial[stream] = rest
        if newline:
            self._say_native(stream, whole, now)
        return len(data)

    def _end_partial_lines(self, now: float) -> None:
        for stream, text in self._partial.items():
            if text:
                self._partial[stream] = b""
                self._say_native(stream, text, now)

    def _say_native(self, stream: int, text: bytes, now: float) -> None:
        if self.calls:
            self._say(self.calls[0], stream, text, now)
        else:
            self._keep_early(stream, text)
