"""Log lines as Avro, by hand: what `schemas.avro.encode(LogBlock(...))` gives, at a tenth of its price.

Every invocation writes at least three lines (START, END, REPORT), so the general encoder would cost more than the rest of the agent.
tests/unit/test_agent_logs.py compares the two encodings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

from schemas import avro
from schemas.records import LogBlock

Whole = tuple[Literal[0], bytes, float, float, int, int]
"""An invocation that said nothing: 0, request id, monotonic seconds at its start and end, duration µs, peak KiB."""
Line = tuple[Literal[1], bytes, float, int, bytes]
"""One line: 1, request id, monotonic seconds, stream (0 platform, 1 stdout, 2 stderr), text without line end."""
Entry = Whole | Line

STREAMS: Final = ("platform", "stdout", "stderr")
_STREAMS: Final = tuple(bytes([len(s) << 1]) + s.encode() for s in STREAMS)
_PLATFORM: Final = _STREAMS[0]
_ID: Final = bytes([36 << 1])
_START: Final = bytes([53 << 1]) + b"START RequestId: "
_END: Final = bytes([51 << 1]) + b"END RequestId: "


def start_line(request_id: str) -> str:
    """First line of an invocation's log."""
    return f"START RequestId: {request_id}"


def end_line(request_id: str) -> str:
    """Line before the last of an invocation's log."""
    return f"END RequestId: {request_id}"


def report_line(request_id: str, *, duration_us: int, memory_mib: int, peak_kib: int) -> str:
    """Last line of an invocation's log (SCF.md 4.5). Billed is rounded up to whole milliseconds, at least one."""
    return (
        f"REPORT RequestId: {request_id} Duration: {(duration_us + 500) // 1000} ms"
        f" Billed Duration: {max(1, -(-duration_us // 1000))} ms"
        f" Memory Size: {memory_mib} MB Max Memory Used: {-(-peak_kib // 1024)} MB"
    )


def uuid_text(request_id: bytes) -> str:
    """A UUID's 36 characters from its 16 bytes."""
    h = request_id.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


class BlockEncoder:
    """Encodes the blocks of one function version."""

    def __init__(self, key: str, version: str, agent: str, memory_mib: int) -> None:
        self._memory_mib = memory_mib
        self._head = avro.encode(LogBlock(key, version, agent, ()))[:-1]

    def encode(self, entries: Iterable[Entry], to_unix_ms: Callable[[float], int]) -> bytes:
        """One LogBlock message with the lines of these entries."""
        out: list[bytes] = []
        lines = 0
        stamps: dict[int, bytes] = {}
        for entry in entries:
            text = uuid_text(entry[1])
            request_id = text.encode()
            ms = to_unix_ms(entry[2])
            stamp = stamps.get(ms)
            if stamp is None:
                stamp = stamps[ms] = _long(ms)
            if entry[0] == 1:
                line = entry[4]
                out.append(_ID + request_id + stamp + _STREAMS[entry[3]] + _long(len(line)) + line)
                lines += 1
                continue
            ms = to_unix_ms(entry[3])
            end_stamp = stamps.get(ms)
            if end_stamp is None:
                end_stamp = stamps[ms] = _long(ms)
            report = report_line(text, duration_us=entry[4], memory_mib=self._memory_mib, peak_kib=entry[5]).encode()
            begin = _ID + request_id
            end = begin + end_stamp + _PLATFORM
            out.append(begin + stamp + _PLATFORM + _START + request_id + end + _END + request_id + end + _long(len(report)) + report)  # fmt: skip
            lines += 3
        if not lines:
            return self._head + b"\0"
        return self._head + _long(lines) + b"".join(out) + b"\0"


def _long(value: int) -> bytes:
    """Avro's long, for values that are not negative."""
    value <<= 1
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
