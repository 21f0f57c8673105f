"""Concurrency counts of one gateway: invocations now running per function and per tenant, and what each window saw.

The counts are this gateway's own. Leases that share a limit between gateways come with the streams processor (DESIGN.md section 4);
until then one gateway holds the whole limit.
"""

from __future__ import annotations

from schemas.frames import Result
from schemas.ids import FunctionKey
from schemas.limits import TENANT_CONCURRENCY
from schemas.records import LEVELS, InvocationWindow
from schemas.runstatus import RunStatus


class FunctionCount:
    """Running total and open window of one function. Plain attributes: the hot path adds to them."""

    __slots__ = (
        "arrivals",
        "cold",
        "completed",
        "dead",
        "duration_max_us",
        "duration_sum_us",
        "failed",
        "in_flight",
        "key",
        "queued",
        "retried",
        "throttled",
        "touched",
        "wait_sum_us",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.in_flight = 0
        self.queued = 0
        self.clear()
        self.touched = False

    def clear(self) -> None:
        """Start a new window; gauges stay."""
        self.arrivals = self.completed = self.failed = self.throttled = self.retried = self.dead = 0
        self.duration_sum_us = self.duration_max_us = self.wait_sum_us = 0
        self.cold = [0] * LEVELS
        self.touched = False

    def finished(self, result: Result) -> None:
        """Take one result into the window and out of the gauge."""
        self.in_flight -= 1
        self.touched = True
        if result.status == RunStatus.OK:
            self.completed += 1
        else:
            self.failed += 1
        self.duration_sum_us += result.duration_us
        self.wait_sum_us += result.wait_us
        self.duration_max_us = max(self.duration_max_us, result.duration_us)
        if 0 <= result.level < LEVELS:
            self.cold[result.level] += 1

    def window(self, *, gateway: str, term: int, number: int, unix_ms: int, span_ms: int) -> InvocationWindow:
        """The open window as a record."""
        return InvocationWindow(
            key=self.key,
            gateway=gateway,
            term=term,
            window=number,
            unix_ms=unix_ms,
            span_ms=span_ms,
            arrivals=self.arrivals,
            completed=self.completed,
            failed=self.failed,
            throttled=self.throttled,
            retried=self.retried,
            dead=self.dead,
            in_flight=self.in_flight,
            queued=self.queued,
            duration_sum_us=self.duration_sum_us,
            duration_max_us=self.duration_max_us,
            wait_sum_us=self.wait_sum_us,
            cold=tuple(self.cold),
        )


class Counts:
    """All counts of this gateway. Idle functions are forgotten, so memory follows what runs."""

    def __init__(self, *, tenant_limit: int = TENANT_CONCURRENCY) -> None:
        self._functions: dict[FunctionKey, FunctionCount] = {}
        self._tenants: dict[str, int] = {}
        self._tenant_limit = tenant_limit

    def of(self, key: FunctionKey) -> FunctionCount:
        """The function's count, made when new."""
        count = self._functions.get(key)
        if count is None:
            count = self._functions[key] = FunctionCount(str(key))
        return count

    def enter(self, key: FunctionKey) -> FunctionCount | None:
        """Count one invocation in; None when the tenant is at its limit (the refusal is counted)."""
        count = self.of(key)
        count.touched = True
        count.arrivals += 1
        running = self._tenants.get(key.appid, 0)
        if running >= self._tenant_limit:
            count.throttled += 1
            return None
        self._tenants[key.appid] = running + 1
        count.in_flight += 1
        return count

    def leave(self, key: FunctionKey, count: FunctionCount, result: Result) -> None:
        """Count one invocation out, with its result."""
        self._tenants[key.appid] -= 1
        count.finished(result)

    def close_windows(
        self, *, gateway: str, term: int, number: int, unix_ms: int, span_ms: int
    ) -> list[InvocationWindow]:
        """The windows of all functions that changed or still run; a new window begins."""
        windows = []
        for key, count in list(self._functions.items()):
            if count.touched or count.in_flight or count.queued:
                windows.append(
                    count.window(gateway=gateway, term=term, number=number, unix_ms=unix_ms, span_ms=span_ms)
                )
                count.clear()
                count.touched = bool(count.in_flight or count.queued)
            else:
                del self._functions[key]
        return windows
