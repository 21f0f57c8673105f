"""Logs of functions: SCF's START / END / REPORT frame, lines attributed to their invocation, shipped in blocks.

Blocks go to topics.LOGS and to recent files on disk, at most FLUSH_S or FLUSH_BYTES after their first line. An invocation that says
nothing costs one tuple here; its three lines are formatted when the block is encoded. Billed durations are rounded up to 1 ms (SCF's old
local tool rounds to 100 ms, the service bills by 1 ms today).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final, Protocol

from infra.clock import mono_s, unix_ms
from infra.telemetry import get_logger
from sandbox.agent.journal import Journal, Kept
from sandbox.agent.logencoding import BlockEncoder, Entry, end_line, report_line, start_line, uuid_text
from schemas import topics
from schemas.errors import PenstockError
from schemas.limits import LOG_INVOCATION_BYTES, LOG_TAIL_BYTES

log = get_logger("sandbox.logs")

FLUSH_S: Final = 0.05
FLUSH_BYTES: Final = 64 * 1024
LINE_BYTES: Final = 32 * 1024
"""Longer lines are cut into several, so that a block always fits into a Kafka record."""
PLATFORM, STDOUT, STDERR = 0, 1, 2
_WHOLE_BYTES: Final = 400
_LINE_BYTES: Final = 60
_WARN_S: Final = 10.0
_ACK_S: Final = 40.0
_BLOCKS_OUT: Final = 512


class BlockSink(Protocol):
    """Takes encoded blocks; infra.kafka.producer.Producer is one."""

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        """False when its buffer is full."""

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, timeout_s: float) -> object:
        """Returns when it is acknowledged; raises BrokerUnavailable."""


class RecentSink(Protocol):
    """Keeps the last blocks on this host."""

    def append(self, block: bytes) -> bool:
        """False when it can't keep up."""


class CallLog:
    """What one invocation that says something has said so far."""

    __slots__ = ("dropped", "request_id", "size", "tail")

    def __init__(self, request_id: bytes, *, want_tail: bool) -> None:
        self.request_id = request_id
        self.size = 0
        self.dropped = 0
        self.tail: bytearray | None = bytearray() if want_tail else None


class FunctionLog:
    """Collects the lines of one function version until they are shipped."""

    def __init__(self, shipper: LogShipper, key: str, version: str, memory_mib: int) -> None:
        self.entries: list[Entry] = []
        self.key = key.encode()
        self.encoder = BlockEncoder(key, version, shipper.agent, memory_mib)
        self.version, self.memory_mib = version, memory_mib
        self.kept = 0
        """How many of `entries` stand in the journal."""
        self._shipper = shipper
        self._size = 0

    def whole(self, request_id: bytes, start_mono_s: float, end_mono_s: float, duration_us: int, peak_kib: int) -> None:
        """An invocation that ended well and said nothing."""
        if self.kept == len(self.entries):
            self._shipper.dirty(self)
        self.entries.append((0, request_id, start_mono_s, end_mono_s, duration_us, peak_kib))
        self._size += _WHOLE_BYTES
        if self._size >= FLUSH_BYTES:
            self._shipper.ship(self)

    def begin(self, request_id: bytes, now_mono_s: float, *, want_tail: bool = False) -> CallLog:
        """Write START; further lines and the end go to what is returned."""
        call = CallLog(request_id, want_tail=want_tail)
        self._put(call, PLATFORM, start_line(uuid_text(request_id)).encode(), now_mono_s)
        return call

    def lines(self, call: CallLog, stream: int, text: bytes, now_mono_s: float) -> None:
        """Whole lines that the invocation wrote, joined by line ends. Not trusted: any bytes."""
        if call.size >= LOG_INVOCATION_BYTES:
            call.dropped += len(text)
            return
        for line in _valid(text).removesuffix(b"\n").split(b"\n"):
            for at in range(0, max(1, len(line)), LINE_BYTES):
                part = line[at : at + LINE_BYTES]
                if len(line) > LINE_BYTES:
                    part = _valid(part)
                if call.size + len(part) >= LOG_INVOCATION_BYTES:
                    call.size = LOG_INVOCATION_BYTES
                    call.dropped += len(part)
                else:
                    call.size += len(part) + 1
                    self._put(call, stream, part, now_mono_s)

    def end(self, call: CallLog, now_mono_s: float, *, duration_us: int, peak_kib: int, error: str = "") -> bytes:
        """Write what ends an invocation's log: what was dropped, the error if it failed, END, REPORT; gives the tail if wanted."""
        text = uuid_text(call.request_id)
        if call.dropped:
            self._put(call, PLATFORM, f"… {call.dropped} bytes dropped".encode(), now_mono_s)
        if error:
            self._put(call, PLATFORM, _valid(f"ERROR RequestId: {text} {error}".encode()), now_mono_s)
        report = report_line(text, duration_us=duration_us, memory_mib=self.memory_mib, peak_kib=peak_kib)
        self._put(call, PLATFORM, end_line(text).encode(), now_mono_s)
        self._put(call, PLATFORM, report.encode(), now_mono_s)
        return b"" if call.tail is None else _valid(bytes(call.tail[-LOG_TAIL_BYTES:]))

    def take(self) -> list[Entry]:
        """What is to be shipped now."""
        entries, self.entries, self._size, self.kept = self.entries, [], 0, 0
        return entries

    def _put(self, call: CallLog, stream: int, line: bytes, now_mono_s: float) -> None:
        if call.tail is not None:
            call.tail += line + b"\n"
            if len(call.tail) > 4 * LOG_TAIL_BYTES:
                del call.tail[:-LOG_TAIL_BYTES]
        if self.kept == len(self.entries):
            self._shipper.dirty(self)
        self.entries.append((1, call.request_id, now_mono_s, stream, line))
        self._size += len(line) + _LINE_BYTES
        if self._size >= FLUSH_BYTES:
            self._shipper.ship(self)


class LogShipper:
    """Encodes and sends blocks of all functions of this agent. What Kafka does not take is counted and said, not kept.

    With a journal, lines are on disk before the results of their loop turn leave, and stay there until Kafka has them: a successor
    sends what a killed agent could not (`recover`).
    """

    def __init__(
        self, agent: str, sink: BlockSink, recent: RecentSink | None = None, journal: Journal | None = None
    ) -> None:
        self.agent = agent
        self.lost_lines = 0
        self._sink, self._recent, self._journal = sink, recent, journal
        self._dirty: dict[FunctionLog, None] = {}
        self._fresh: list[FunctionLog] = []
        self._timer: asyncio.TimerHandle | None = None
        self._out: set[asyncio.Task[None]] = set()
        self._out_by_generation: Counter[int] = Counter()
        self._warned_mono_s = -_WARN_S
        self._wall_offset_s = 0.0
        self._sync_clock()

    def recover(self) -> int:
        """Send what a predecessor's journal holds; how many blocks. Call it once, before anything new is written."""
        blocks = 0
        if self._journal is not None:
            for kept in list(self._journal.recover()):
                encoder = BlockEncoder(kept.key, kept.version, self.agent, kept.memory_mib)
                block = encoder.encode(kept.entries, lambda s, offset=kept.wall_offset_s: int((s + offset) * 1000))  # type: ignore[misc]
                self._journal.append(kept)
                self._send(kept.key.encode(), block, len(kept.entries))
                blocks += 1
            self._close_generation()
        return blocks

    def dirty(self, function: FunctionLog) -> None:
        """This function has lines that are not in the journal yet."""
        loop = asyncio.get_running_loop()
        self._dirty[function] = None
        if self._journal is not None:
            if not self._fresh:
                loop.call_soon(self._keep)  # runs before the results of this turn are written to a gateway
            self._fresh.append(function)
        if self._timer is None:
            self._timer = loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Ship everything collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sync_clock()
        functions, self._dirty = self._dirty, {}
        for function in functions:
            self.ship(function)
        self._close_generation()

    def ship(self, function: FunctionLog) -> None:
        """Ship one function's lines."""
        self._keep_lines(function)
        entries = function.take()
        if not entries:
            return
        block = function.encoder.encode(entries, self._to_unix_ms)
        if self._recent is not None:
            self._recent.append(block)
        self._send(function.key, block, len(entries))

    async def drain(self, timeout_s: float) -> None:
        """Wait until all that was shipped is acknowledged, at most so long."""
        if self._out:
            await asyncio.wait(self._out, timeout=timeout_s)

    def _keep(self) -> None:
        fresh, self._fresh = self._fresh, []
        for function in fresh:
            self._keep_lines(function)

    def _keep_lines(self, function: FunctionLog) -> None:
        new = function.entries[function.kept :] if function.kept else function.entries
        if self._journal is not None and new:
            key = function.key.decode()
            self._journal.append(Kept(self._wall_offset_s, key, function.version, function.memory_mib, new))
            function.kept = len(function.entries)

    def _send(self, key: bytes, block: bytes, lines: int) -> None:
        if self._journal is None or len(self._out) >= _BLOCKS_OUT:
            if not self._sink.send_nowait(topics.LOGS, key=key, value=block):
                self._lost(lines)
            return
        generation = self._journal.generation
        self._out_by_generation[generation] += 1
        task = asyncio.get_running_loop().create_task(self._deliver(key, block, lines, generation))
        self._out.add(task)
        task.add_done_callback(self._out.discard)

    async def _deliver(self, key: bytes, block: bytes, lines: int, generation: int) -> None:
        assert self._journal is not None
        try:
            await self._sink.send(topics.LOGS, key=key, value=block, timeout_s=_ACK_S)
        except PenstockError:
            self._lost(lines)
        self._out_by_generation[generation] -= 1
        self._drop_if_done(generation)

    def _close_generation(self) -> None:
        if self._journal is not None:
            closed = self._journal.generation
            self._journal.close_generation()
            self._drop_if_done(closed)

    def _drop_if_done(self, generation: int) -> None:
        if (
            self._journal is not None
            and generation < self._journal.generation
            and not self._out_by_generation[generation]
        ):
            del self._out_by_generation[generation]
            self._journal.drop(generation)

    def _lost(self, lines: int) -> None:
        self.lost_lines += lines
        now = mono_s()
        if now - self._warned_mono_s >= _WARN_S:
            self._warned_mono_s = now
            log.warning("log lines were not sent: Kafka's buffer is full", lost_lines=self.lost_lines)

    def _sync_clock(self) -> None:
        self._wall_offset_s = unix_ms() / 1000 - mono_s()

    def _to_unix_ms(self, at_mono_s: float) -> int:
        return int((at_mono_s + self._wall_offset_s) * 1000)


def _valid(text: bytes) -> bytes:
    """The same text as UTF-8 that every reader takes."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode(errors="replace").encode()
    return text
