"""Points in time as people write them on a command line. Pure: the present is a parameter."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_SPAN: Final = re.compile(r"(\d{1,9})(ms|s|m|h|d)\Z")
_UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNIX_MS: Final = re.compile(r"\d{1,15}\Z")


def parse_since(text: str, *, now_ms: int) -> int:
    """Unix milliseconds of `10m` (ago), ISO-8601 (without an offset: local time) or unix milliseconds. Raises ValueError."""
    if span := _SPAN.match(text):
        return max(0, now_ms - int(span.group(1)) * _UNIT_MS[span.group(2)])
    return _instant(text, "a span such as 10m, an ISO-8601 time, or unix milliseconds")


def parse_start(text: str) -> str:
    """Where a trigger begins, as CreateTrigger takes it: latest, earliest, or unix milliseconds. Raises ValueError."""
    if text in ("latest", "earliest"):
        return text
    return str(_instant(text, "latest, earliest, an ISO-8601 time, or unix milliseconds"))


def _instant(text: str, shape: str) -> int:
    if _UNIX_MS.match(text):
        return int(text)
    try:
        unix_ms = round(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is none of {shape}") from None
    if unix_ms < 0:
        raise ValueError(f"{text!r} lies before 1970")
    return unix_ms


def iso_utc(unix_ms: int) -> str:
    """`2026-01-31T12:00:00.123Z`."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local_text(unix_ms: int) -> str:
    """`2026-01-31 12:00:00.123` in local time, for people."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
