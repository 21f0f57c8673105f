"""Concurrency counts of one gateway: invocations now running per function, what they take of its limits, and what each window saw.

The counts are this gateway's own. Leases that share a limit between gateways come with the streams processor (DESIGN.md section 4);
until then one gateway holds the whole limit.
"""

from __future__ import annotations

from router.limits import Budget, Limits
from schemas.concurrency import LimitRecord
from schemas.frames import Result
from schemas.ids import FunctionKey
from schemas.limits import TENANT_CONCURRENCY_MIB
from schemas.records import LEVELS, InvocationWindow
from schemas.runstatus import RunStatus


class FunctionCount:
    """Running total and open window of one function. Plain attributes: the hot path adds to them."""

    __slots__ = (
        "arrivals",
        "budgets",
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
        "used_mib",
        "wait_sum_us",
        "waiting",
    )

    def __init__(self, key: str, budgets: tuple[Budget, ...]) -> None:
        self.key = key
        self.budgets = budgets
        self.used_mib = 0
        """Memory of all invocations that run: what the function has taken from each of its budgets."""
        self.in_flight = 0
        self.waiting = 0
        """Invocations that wait to be let in."""
        self.queued = 0
        self.clear()
        self.touched = False

    def clear(self) -> None:
        """Start a new window; gauges stay."""
        self.arrivals = self.completed = self.failed = self.throttled = self.retried = self.dead = 0
        self.duration_sum_us = self.duration_max_us = self.wait_sum_us = 0
        self.cold = [0] * LEVELS
        self.touched = False

    def move(self, budgets: tuple[Budget, ...]) -> None:
        """Have what runs taken from other budgets."""
        for budget in self.budgets:
            budget.used_mib -= self.used_mib
        for budget in budgets:
            budget.used_mib += self.used_mib
        self.budgets = budgets

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

    def __init__(self, *, quota_mib: int = TENANT_CONCURRENCY_MIB) -> None:
        self._functions: dict[FunctionKey, FunctionCount] = {}
        self._limits = Limits(quota_mib=quota_mib)

    def limit_changed(self, key: str, row: LimitRecord | None) -> None:
        """Feed of the limits' table. What runs already goes on, and counts where it belongs from now on."""
        function = self._limits.put(key, row)
        if function is not None and (count := self._functions.get(function)) is not None:
            count.move(self._limits.of(function))

    def of(self, key: FunctionKey) -> FunctionCount:
        """The function's count, made when new."""
        count = self._functions.get(key)
        if count is None:
            count = self._functions[key] = FunctionCount(str(key), self._limits.of(key))
        return count

    def enter(self, key: FunctionKey, memory_mib: int) -> FunctionCount | None:
        """Count one invocation of so much memory in; None when a limit is reached (the refusal is counted)."""
        count = self.arrive(key)
        if self.take(count, memory_mib):
            return count
        count.throttled += 1
        return None

    def arrive(self, key: FunctionKey) -> FunctionCount:
        """Count an invocation that asks to be let in."""
        count = self.of(key)
        count.touched = True
        count.arrivals += 1
        return count

    def take(self, count: FunctionCount, memory_mib: int) -> bool:
        """Let an invocation of so much memory in, if limits allow it."""
        for budget in count.budgets:
            if budget.used_mib + memory_mib > budget.limit_mib:
                return False
        for budget in count.budgets:
            budget.used_mib += memory_mib
        count.used_mib += memory_mib
        count.in_flight += 1
        return True

    @staticmethod
    def why(count: FunctionCount, memory_mib: int) -> str:
        """What a caller is told whose invocation was not let in."""
        for budget in count.budgets:
            if budget.used_mib + memory_mib > budget.limit_mib:
                size = f"{budget.used_mib} of {max(0, budget.limit_mib)} MB are in use, and it needs {memory_mib} MB"
                return f"the concurrency limit is reached: of {budget.what}, {size}"
        return "the concurrency limit was reached"

    def leave(self, count: FunctionCount, memory_mib: int, result: Result) -> None:
        """Count one invocation out, with its result."""
        for budget in count.budgets:
            budget.used_mib -= memory_mib
        count.used_mib -= memory_mib
        count.finished(result)

    def close_windows(
        self, *, gateway: str, term: int, number: int, unix_ms: int, span_ms: int
    ) -> list[InvocationWindow]:
        """The windows of all functions that changed or still run; a new window begins."""
        windows = []
        for key, count in list(self._functions.items()):
            if count.touched or count.in_flight or count.queued or count.waiting:
                windows.append(
                    count.window(gateway=gateway, term=term, number=number, unix_ms=unix_ms, span_ms=span_ms)
                )
                count.clear()
                count.touched = bool(count.in_flight or count.queued)
            else:
                del self._functions[key]
        return windows
