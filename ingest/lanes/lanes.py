"""Lanes: order per key, concurrency across keys, inside one partition. The pure core of the engine.

A *lane* is the queue of one key of one partition (or of a whole partition, by `Ordering`). At most one run of a lane is out at a time, and
its records leave it in offset order; lanes that are ready are served first in, first out, up to the trigger's concurrency. Records without
order (no key, or `Ordering.NONE`) share one *pool* per partition, from which any number of runs may be out.

What becomes of a run:

* It succeeds: its offsets are finished, the lane goes on.
* The platform failed it (`policy.WAITING_FOR`): the lane waits 50 ms × 2, at most 2 s, and the same run goes out again, without end.
* The function failed it: the lane waits 100 ms × 2 with jitter, at most 2 s, and the same records go out again. Other lanes go on meanwhile.
* A *batch* is retried whole, as it is. For the last try it is taken apart, and each of its records gets one run of its own, in order, so that
  only the poison ones die. With `retries=0` the batch has had its only try, yet its records get those single runs all the same:
  to let the innocent die with the guilty would be worse than one run more.
* A record whose last try failed is condemned: it must be written to the dead-letter topic (`take_condemned`), and only when that was
  acknowledged (`buried`) is its offset finished and does its lane go on.

Ownership: `assign` starts an epoch of a partition, `revoke` drops what waits and lets what is out finish, `release` ends it. Results of runs of an
ended epoch are ignored, but for the place they take in the concurrency: it is free again when the run really ended.

No I/O, no clock (`now_ms` is any monotonic clock's), deterministic but for the given `jitter`. 1-2 µs a record for `offer`, `take`
and `finish` together: tests/bench/bench_lanes_core.py. Not thread-safe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final

from ingest.lanes.policy import WAITING_FOR, LanePolicy, Ordering, retry_delay_ms, wait_delay_ms
from ingest.lanes.run import Lane, Owned, Run, Trouble, weight
from schemas.runstatus import RunStatus
from schemas.tracker import CommitTracker

if TYPE_CHECKING:
    from infra.kafka.consumer import Record

_OK: Final = int(RunStatus.OK)


class LaneSet:
    """The lanes of one trigger.

    Args:
        policy: order, concurrency, batch, retries.
        jitter: uniform in [0, 1), for the retry delays.
    """

    def __init__(self, policy: LanePolicy, jitter: Callable[[], float]) -> None:
        self.policy = policy
        self.in_flight = 0
        """Invocations out, also of partitions that are gone."""
        self.held = 0
        """Records taken in and not finished: what back-pressure looks at."""
        self.held_bytes = 0
        self.done = 0
        """Records that succeeded; whoever reports it may set it to 0."""
        self.retried = 0
        """Function failures that are tried again; likewise."""
        self.dead = 0
        """Records buried; likewise."""
        self.owned: dict[int, Owned] = {}
        self.troubled: dict[Run, None] = {}
        """Runs that failed at least once and are not finished."""
        self._jitter = jitter
        self._by_key = policy.ordering is Ordering.KEY
        self._unkeyed_ordered = policy.ordering is Ordering.PARTITION
        self._ready: deque[Lane | Run] = deque()
        self._condemned: deque[Run] = deque()
        self._due: list[tuple[float, int, Run]] = []
        self._sequence = count()

    # ------------------------------------------------------------------------------------------------- ownership

    def assign(self, partition: int, epoch: int, offset: int, finished: Iterable[tuple[int, int]] = ()) -> None:
        """A partition is ours from `offset` on; `finished` as in `CommitTracker`."""
        self.release((partition,))
        self.owned[partition] = Owned(partition, epoch, CommitTracker(offset, finished))

    def revoke(self, partitions: Iterable[int]) -> None:
        """Drop what waits of these partitions at once; what is out may still finish (see `drained`)."""
        for partition in partitions:
            owner = self.owned.get(partition)
            if owner is not None and not owner.leaving:
                owner.leaving = True
                self._drop_waiting(owner)

    def drained(self, partitions: Iterable[int]) -> bool:
        """True when nothing of these partitions is out any more."""
        return not any(p in self.owned and self.owned[p].out for p in partitions)

    def release(self, partitions: Iterable[int]) -> None:
        """These partitions are no longer ours: whatever is still out of them is ignored when it ends."""
        partitions = tuple(partitions)
        self.revoke(partitions)
        for partition in partitions:
            self.owned.pop(partition, None)

    def _drop_waiting(self, owner: Owned) -> None:
        for lane in owner.lanes.values():
            self._let_go(lane.queue)
        owner.lanes.clear()
        waiting = [run for _, _, run in self._due if run.lane.owner is owner]
        waiting += [run for run in self._condemned if run.lane.owner is owner]
        waiting += [run for run in self._ready if isinstance(run, Run) and run.lane.owner is owner]
        for run in waiting:
            self._forget(run)
        self._ready = deque(
            item for item in self._ready if (item.lane if isinstance(item, Run) else item).owner is not owner
        )
        self._condemned = deque(run for run in self._condemned if run.lane.owner is not owner)
        self._due = [entry for entry in self._due if entry[2].lane.owner is not owner]
        heapify(self._due)

    # --------------------------------------------------------------------------------------------------- records in

    def offer(self, records: Iterable[Record]) -> None:
        """Take records in, per partition in offset order. Those of partitions that are not ours are ignored, and those that an earlier
        ownership finished are not run again.

        An offset below one seen before means that the partition's log went back (deleted and made again, or truncated): what is
        buffered of it is dropped, for it comes again, and the new log is taken from there, finished or not.
        """
        owned, ready, by_key, ordered = self.owned, self._ready, self._by_key, self._unkeyed_ordered
        last, owner = -1, None
        for record in records:
            partition, offset, key, _, _, _ = record
            if partition != last:
                last, owner = partition, owned.get(partition)
            if owner is None or owner.leaving:
                continue
            if offset < owner.tracker.next_offset:
                owner, ready = self._rewound(owner, offset), self._ready
            if not owner.tracker.deliver(offset):
                owner.dirty = True
                continue
            self.held += 1
            self.held_bytes += weight(record)
            if not by_key:
                key = None
            lane = owner.lanes.get(key)
            if lane is None:
                owner.lanes[key] = lane = Lane(owner, key, deque((record,)), ordered=key is not None or ordered)
                ready.append(lane)
            else:
                lane.queue.append(record)
                if lane.idle:
                    lane.idle = False
                    ready.append(lane)

    def _rewound(self, owner: Owned, offset: int) -> Owned:
        self.assign(owner.partition, owner.epoch, offset)
        return self.owned[owner.partition]

    # ---------------------------------------------------------------------------------------------------- runs out

    def take(self, now_ms: float) -> list[Run]:
        """Runs to start now, up to the free concurrency; each must come back once, through `finish` or `reject`."""
        if self._due and self._due[0][0] <= now_ms:
            self._wake(now_ms)
        ready = self._ready
        free = self.policy.concurrency - self.in_flight
        runs: list[Run] = []
        while ready and free > 0:
            item = ready.popleft()
            if isinstance(item, Run):
                if len(item.records) > 1 and 1 < item.attempt == self.policy.tries:
                    self._take_apart(item)
                    continue
                run = item
            else:
                run = self._next_run(item)
            run.lane.owner.out += len(run.records)
            runs.append(run)
            free -= 1
        self.in_flight += len(runs)
        return runs

    def _next_run(self, lane: Lane) -> Run:
        queue, batch, attempt = lane.queue, self.policy.batch, 1
        if lane.singles:
            lane.singles -= 1
            batch, attempt = 1, lane.single_attempt
        records = [queue.popleft()] if batch == 1 else [queue.popleft() for _ in range(min(batch, len(queue)))]
        if not lane.ordered:
            if queue:
                self._ready.append(lane)
            else:
                lane.idle = True
        return Run(lane, records, attempt)

    def trim(self, run: Run, size: int) -> None:
        """Give back all but the first `size` (>= 1) records of a run just taken, for its event was too large: they are next in their lane."""
        lane, rest = run.lane, run.records[size:]
        run.records = run.records[:size]
        lane.owner.out -= len(rest)
        lane.queue.extendleft(reversed(rest))
        if lane.idle:
            lane.idle = False
            self._ready.append(lane)

    def take_condemned(self, limit: int) -> list[Run]:
        """At most `limit` runs whose only record must go to the dead-letter topic now; each must come back once, through `buried` or
        `unburied`.
        """
        condemned = [self._condemned.popleft() for _ in range(min(limit, len(self._condemned)))]
        for run in condemned:
            run.lane.owner.out += 1
        return condemned

    @property
    def next_due_ms(self) -> float | None:
        """When `take` or `take_condemned` has something that it does not have now, unless a result comes first."""
        return self._due[0][0] if self._due else None

    def _wake(self, now_ms: float) -> None:
        while self._due and self._due[0][0] <= now_ms:
            _, _, run = heappop(self._due)
            if run.trouble is not None and run.trouble.condemned:
                self._condemned.append(run)
            else:
                self._ready.append(run)

    # ------------------------------------------------------------------------------------------------- results back

    def finish(self, run: Run, status: int, now_ms: float, error: bytes = b"") -> None:
        """A run ended with `status` (a RunStatus); `error` is its error JSON."""
        owner = run.lane.owner
        self.in_flight -= 1
        owner.out -= len(run.records)
        if status == _OK:
            self.done += len(run.records)
            self._settle(run)
        elif owner.leaving:
            self._forget(run)
        elif status in WAITING_FOR:
            trouble = self._trouble(run, status, error)
            trouble.waits += 1
            self._later(run, now_ms + wait_delay_ms(trouble.waits))
        else:
            self._failed(run, status, now_ms, error)

    def reject(self, run: Run, status: int, error: bytes) -> None:
        """A run of one record can't be made into an invocation (406: too large): it goes to the dead-letter topic without a try."""
        owner = run.lane.owner
        self.in_flight -= 1
        owner.out -= 1
        self._trouble(run, status, error)
        self._condemn(run)

    def buried(self, run: Run) -> None:
        """The dead letter of a condemned run is safe in its topic."""
        run.lane.owner.out -= 1
        self.dead += 1
        self._settle(run)

    def unburied(self, run: Run, now_ms: float) -> None:
        """The dead letter could not be written: it is tried again later, and the offset stays."""
        owner = run.lane.owner
        owner.out -= 1
        if owner.leaving or run.trouble is None:
            self._forget(run)
            return
        run.trouble.waits += 1
        self._later(run, now_ms + wait_delay_ms(run.trouble.waits))

    def _failed(self, run: Run, status: int, now_ms: float, error: bytes) -> None:
        trouble = self._trouble(run, status, error)
        trouble.failures, trouble.waits = run.attempt, 0
        if run.attempt < self.policy.tries:
            run.attempt += 1
            self.retried += 1
            self._later(run, now_ms + retry_delay_ms(trouble.failures, self._jitter))
        elif len(run.records) > 1:
            run.attempt += 1
            self._take_apart(run)
        else:
            self._condemn(run)

    def _condemn(self, run: Run) -> None:
        assert run.trouble is not None and len(run.records) == 1
        run.trouble.condemned, run.trouble.waits = True, 0
        self._condemned.append(run)

    def _take_apart(self, run: Run) -> None:
        """Put a failed batch back as single records with one run each, before whatever else its lane has."""
        lane, records = run.lane, run.records
        self.troubled.pop(run, None)
        if lane.ordered:
            lane.queue.extendleft(reversed(records))
        else:  # a pool goes on; these get a lane of their own, unlike any key
            key = object()
            lane = lane.owner.lanes[key] = Lane(lane.owner, key, deque(records), ordered=True)
        lane.singles, lane.single_attempt = len(records), run.attempt
        self._ready.append(lane)

    def _settle(self, run: Run) -> None:
        lane = run.lane
        owner = lane.owner
        self._forget(run)
        unfinished = owner.tracker.unfinished
        for record in run.records:
            unfinished.pop(record[1], None)
        owner.dirty = True
        if lane.ordered and not owner.leaving:
            if lane.queue:
                self._ready.append(lane)
            else:
                del owner.lanes[lane.key]

    def _forget(self, run: Run) -> None:
        if run.trouble is not None:
            self.troubled.pop(run, None)
        self._let_go(run.records)

    def _let_go(self, records: Iterable[Record]) -> None:
        for record in records:
            self.held -= 1
            self.held_bytes -= weight(record)

    def _later(self, run: Run, due_ms: float) -> None:
        heappush(self._due, (due_ms, next(self._sequence), run))

    def _trouble(self, run: Run, status: int, error: bytes) -> Trouble:
        if run.trouble is None:
            run.trouble = Trouble()
            self.troubled[run] = None
        run.trouble.status, run.trouble.error = status, error
        return run.trouble

    # -------------------------------------------------------------------------------------------------- what to commit

    def marks(self) -> Iterator[tuple[int, int, int, Iterator[tuple[int, int]]]]:
        """(partition, epoch, committable offset, finished runs beyond it) of each partition that changed since the last call."""
        for owner in self.owned.values():
            if owner.dirty:
                owner.dirty = False
                yield owner.partition, owner.epoch, owner.tracker.committable, owner.tracker.runs()
