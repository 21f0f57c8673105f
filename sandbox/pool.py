"""Decisions of a pool of workers, one pool per function version. Pure: no I/O, no clock; times are integers in microseconds.

The pool's owner (sandbox.agent) asks and acts. `choose` says where one call goes, `starts_wanted` how many more workers are worth starting,
`evictions` which idle workers make room. `RunTimes` is what the pool has learnt of how long the handler runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of one pool.

    A call is put behind others only when the handler is quick (longest recent run below `quick_us`), a worker has fewer than `depth` calls, and
    those before it take at most `drain_us` at that rate; never behind one that already runs `stuck_us`. A busy worker is preferred to waking
    an idle one, which costs more, when those before it typically take at most `pack_us`, or `crowded_us` while as many workers as `cores`
    are busy. Before `blind_runs` have told how long the handler runs, no call is put behind another and at most `blind_starts` workers are
    started. `start_us` is about what a start costs.
    """

    workers: int = 1_000
    queue_calls: int = 4_096
    depth: int = 16
    quick_us: int = 2_000
    drain_us: int = 4_000
    stuck_us: int = 20_000
    pack_us: int = 150
    crowded_us: int = 2_000
    cores: int = 2
    start_us: int = 10_000
    blind_starts: int = 4
    blind_runs: int = 16


class Step(IntEnum):
    """Where a call goes."""

    IDLE = 0
    PIPELINE = 1
    QUEUE = 2
    REFUSE = 3


class RunTimes:
    """What a pool has learnt of how long its handler runs: `longest_us`, a maximum that fades with each run, and `typical_us`, a moving mean."""

    __slots__ = ("longest_us", "runs", "typical_us")
    FADE: Final = 0.9

    def __init__(self) -> None:
        self.longest_us = 0
        self.typical_us = 0
        self.runs = 0

    def observe(self, each_us: int, runs: int = 1) -> None:
        """`runs` calls took `each_us` on the average, > 0 runs."""
        keep = self.FADE if runs == 1 else self.FADE**runs
        self.longest_us = max(each_us, int(self.longest_us * keep))
        self.typical_us = int(self.typical_us * keep + each_us * (1 - keep)) if self.runs else each_us
        self.runs += runs

    def is_quick(self, limits: PoolLimits) -> bool:
        """True when calls may be put behind others."""
        return self.runs >= limits.blind_runs and self.longest_us < limits.quick_us


def choose(*, idle: int, busy: int, depth: int, times: RunTimes, queued: int, limits: PoolLimits) -> Step:
    """Where the next call of a pool goes.

    Args:
        idle: Workers that wait for a call.
        busy: Workers that have one or more.
        depth: Calls that the busy worker with the fewest holds; 0 when none is busy or all are stuck.
        times: How long the pool's handler runs.
        queued: Calls that wait in the pool, this one not counted.
        limits: The pool's bounds.
    """
    if 0 < depth < limits.depth and times.is_quick(limits):
        if idle and depth * times.typical_us > (limits.pack_us if busy < limits.cores else limits.crowded_us):
            return Step.IDLE
        if depth * times.longest_us <= limits.drain_us:
            return Step.PIPELINE
    if idle:
        return Step.IDLE
    return Step.QUEUE if queued < limits.queue_calls else Step.REFUSE


def starts_wanted(
    *, queued: int, waited_us: int, running_us: int, ready: int, starting: int, times: RunTimes, limits: PoolLimits
) -> int:
    """How many workers to start beyond those that are starting.

    One for every queued call; but for a quick handler no more than it takes to get the queue done within the time of a start, and none while
    the workers at hand can do that, unless the first call waits longer already.

    Args:
        queued: Calls that wait in the pool.
        waited_us: How long the first of them has waited.
        running_us: How long the call that runs longest now has run.
        ready: Workers that take calls.
        starting: Workers on their way.
        times: How long the pool's handler runs.
        limits: The pool's bounds.
    """
    wanted = queued - starting
    if running_us >= limits.start_us:
        pass
    elif times.runs < limits.blind_runs:
        wanted = min(wanted, limits.blind_starts - starting - ready)
    elif times.typical_us < limits.quick_us:
        needed = -(-queued * times.typical_us // limits.start_us)
        if needed <= ready and waited_us < limits.start_us:
            return 0
        wanted = min(wanted, max(1, needed - ready) - starting)
    return max(0, min(wanted, limits.workers - ready - starting))


class IdleWorker(NamedTuple):
    """An idle worker as `evictions` sees it."""

    name: int
    memory_mib: int
    last_used_us: int


def evictions(idle: Iterable[IdleWorker], *, need_mib: int, free_mib: int) -> list[int] | None:
    """Names of the idle workers to end so that `need_mib` fit, least recently used first; None when even all would not do."""
    ended: list[int] = []
    for worker in sorted(idle, key=lambda w: w.last_used_us):
        if free_mib >= need_mib:
            break
        ended.append(worker.name)
        free_mib += worker.memory_mib
    return ended if free_mib >= need_mib else None


def worker_cap(*, memory_mib: int, budget_mib: int, cap: int) -> int:
    """How many workers of a size one host may have, at least one."""
    return max(1, min(cap, budget_mib // memory_mib))
