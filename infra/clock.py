"""The one place that reads the machine's clocks. Decisions take times as parameters; edges take them from here."""

from __future__ import annotations

import time


def unix_ms() -> int:
    """Wall time, milliseconds since 1970 UTC. May jump; never use it to measure."""
    return time.time_ns() // 1_000_000


def mono_s() -> float:
    """Monotonic time, seconds from an arbitrary start; for waits and durations."""
    return time.monotonic()
