"""Invocations of lanes that wait until a limit of concurrency lets them in: first come first served within a function, functions in turn.

Without it each refused lane would come again after a pause, and what is free in between would stand idle. Nobody waits longer than `WAIT_S`:
a lane whose partition is revoked must be able to let go. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from router.counts import Counts, FunctionCount
from router.limits import Budget
from schemas.ids import FunctionKey

WAIT_S: Final = 1.0
"""Less than a lane engine waits for its runs when it has to let go of a partition."""
ROOM: Final = 10_000
LOOKS: Final = 16
"""How many functions are looked at when something has become free; the others at the next tick."""


class Waiter(NamedTuple):
    """One that waits. Exactly one of `start` and `refuse` is called."""

    until_mono_s: float
    request_id: bytes
    function: FunctionKey
    counted: FunctionCount
    memory_mib: int
    start: Callable[[], None]
    refuse: Callable[[], None]


class WaitingRoom:
    """All that wait at one gateway, by the budget that they share with others: a reservation's, or the tenant's."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._groups: dict[Budget, dict[FunctionKey, deque[Waiter]]] = {}
        self._size = 0
        self._is_serving = False

    def __len__(self) -> int:
        return self._size

    def has(self, function: FunctionKey, count: FunctionCount) -> bool:
        """True when invocations of this function wait, so that another one has to stand behind them."""
        group = self._groups.get(count.budgets[-1])
        return group is not None and function in group

    def add(self, waiter: Waiter) -> bool:
        """Let it wait; False when there is no room, or it could never be let in as limits are now."""
        budgets = waiter.counted.budgets
        if self._size >= ROOM or any(budget.limit_mib < waiter.memory_mib for budget in budgets):
            return False
        self._groups.setdefault(budgets[-1], {}).setdefault(waiter.function, deque()).append(waiter)
        waiter.counted.waiting += 1
        self._size += 1
        return True

    def freed(self, budget: Budget) -> None:
        """Something of this budget was given back: let in what fits, one of each function in turn."""
        group = self._groups.get(budget)
        if group is not None:
            self._serve(budget, group, looks=LOOKS)

    def tick(self, now_mono_s: float) -> None:
        """Called a few times a second, and when limits have changed: let in what fits, refuse what has waited too long."""
        for budget, group in list(self._groups.items()):
            for function, queue in list(group.items()):
                while queue and queue[0].until_mono_s <= now_mono_s:
                    self._left(queue.popleft()).refuse()
                if not queue:
                    group.pop(function, None)
            self._serve(budget, group, looks=len(group))

    def drop(self, request_id: bytes) -> None:
        """Refuse this one now, if it waits here. Looks at all that wait: for rare calls."""
        for group in self._groups.values():
            for function, queue in list(group.items()):
                for waiter in [waiter for waiter in queue if waiter.request_id == request_id]:
                    queue.remove(waiter)
                    self._left(waiter).refuse()
                if not queue:
                    group.pop(function, None)

    def regroup(self) -> None:
        """Limits have changed: put all where they belong now."""
        groups, self._groups = self._groups, {}
        for group in groups.values():
            for function, queue in group.items():
                self._groups.setdefault(queue[0].counted.budgets[-1], {})[function] = queue

    def _serve(self, budget: Budget, group: dict[FunctionKey, deque[Waiter]], *, looks: int) -> None:
        if self._is_serving:
            return  # what is started may end at once
        self._is_serving = True
        try:
            while looks > 0 and group:
                function = next(iter(group))
                queue = group.pop(function)
                first = queue[0]
                if taken := self._counts.take(first.counted, first.memory_mib):
                    queue.popleft()
                if queue:
                    group[function] = queue  # to the end of the line
                if taken:
                    self._left(first).start()
                else:
                    looks -= 1
        finally:
            self._is_serving = False
        if not group and self._groups.get(budget) is group:
            del self._groups[budget]

    def _left(self, waiter: Waiter) -> Waiter:
        waiter.counted.waiting -= 1
        self._size -= 1
        return waiter
