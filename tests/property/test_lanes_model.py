"""The lanes' core against a simple model: assign, revoke, let go, results in any order and too late, failures, dead letters, crash, restore.

The model knows a log per partition and which of its records took effect. What must hold is checked at every step:
order per lane, one run of a lane at a time, the concurrency, commits that never pass an unfinished record, nothing finished twice within an
ownership, and in the end: every record took effect or is buried.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infra.kafka.consumer import Record
from ingest.lanes import marks
from ingest.lanes.lanes import LaneSet
from ingest.lanes.policy import LanePolicy, Ordering
from ingest.lanes.run import Run, weight
from tests.records import record

PARTITIONS = (0, 1)
KEYS = [b"a", b"b", b"c", None]


@dataclass
class Partition:
    """The model of one partition."""

    log: list[Record] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    """Offsets that took effect, under any ownership."""
    committed: tuple[int, str] = (0, "")
    owned: bool = False
    leaving: bool = False
    epoch: int = 0
    position: int = 0
    """Index into the log of the next delivery."""
    settled: set[int] = field(default_factory=set)
    """Finished as this ownership knows: by itself, or by the metadata it started from."""
    unfinished: list[int] = field(default_factory=list)
    """Delivered under this ownership and not finished."""


class Lanes(RuleBasedStateMachine):
    """Drives a LaneSet; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.partitions = {p: Partition() for p in PARTITIONS}
        self.out: dict[Run, tuple[int, int]] = {}
        self.burying: dict[Run, tuple[int, int]] = {}
        self.ended: list[Run] = []

    @initialize(
        ordering=st.sampled_from(Ordering),
        batch=st.sampled_from([1, 1, 2, 5]),
        concurrency=st.integers(1, 5),
        retries=st.integers(0, 2),
        steps=st.lists(
            st.tuples(st.sampled_from(PARTITIONS), st.sampled_from(KEYS), st.sampled_from([1, 1, 2, 3])),
            min_size=20,
            max_size=60,
        ),
    )
    def begin(
        self, ordering: Ordering, batch: int, concurrency: int, retries: int, steps: list[tuple[int, bytes | None, int]]
    ) -> None:
        self.policy = LanePolicy(ordering, concurrency, batch, retries)
        self.lanes = LaneSet(self.policy, lambda: 0.5)
        ends = dict.fromkeys(PARTITIONS, 0)
        for partition, key, gap in steps:
            ends[partition] += gap
            self.partitions[partition].log.append(record(ends[partition], key, partition=partition))
        for partition in PARTITIONS:
            self.assign(partition)

    # ------------------------------------------------------------------------------------------------- what may happen

    @precondition(lambda self: not all(part.owned for part in self.partitions.values()))
    @rule(partition=st.sampled_from(PARTITIONS))
    def assign(self, partition: int) -> None:
        part = self.partitions[partition]
        if part.owned:
            return
        offset, metadata = part.committed
        known = marks.decode(offset, metadata)
        part.epoch = max(part.epoch, known.epoch) + 1
        part.owned, part.leaving, part.unfinished = True, False, []
        part.settled = {o for first, end in known.finished for o in range(first, end)} | set(range(offset))
        part.position = next((i for i, r in enumerate(part.log) if r.offset >= offset), len(part.log))
        self.lanes.assign(partition, part.epoch, offset, known.finished)

    @rule(partition=st.sampled_from(PARTITIONS), count=st.integers(1, 12), fits=st.sampled_from([1, 2, 9, 9]))
    def work(self, partition: int, count: int, fits: int) -> None:
        """The usual turn of the engine. `fits` records make an event that is just not too large."""
        self.lanes.offer(self.deliver(partition, count) + self.deliver(1 - partition, count // 2))
        self.take(fits)

    def deliver(self, partition: int, count: int) -> list[Record]:
        """What the consumer hands over; to a partition that is not ours it hands what must be ignored."""
        part = self.partitions[partition]
        records = part.log[part.position : part.position + count]
        if part.owned and not part.leaving:
            part.position += len(records)
            part.unfinished += [r.offset for r in records if r.offset not in part.settled]
        return records

    def take(self, fits: int = 9) -> None:
        for run in self.lanes.take(self.now):
            assert run.attempt <= max(self.policy.tries, 2)
            if len(run.records) > fits and run.trouble is None:
                self.lanes.trim(run, fits)
            self._check_start(run)
            self.out[run] = (run.partition, run.epoch)
        for run in self.lanes.take_condemned(9):
            assert len(run.records) == 1
            self._check_start(run)
            self.burying[run] = (run.partition, run.epoch)

    def _check_start(self, run: Run) -> None:
        part = self.partitions[run.partition]
        assert part.owned and not part.leaving and run.epoch == part.epoch
        offsets = [r.offset for r in run.records]
        assert len(set(offsets)) == len(offsets) and set(offsets) <= set(part.unfinished)
        assert 1 <= len(offsets) <= self.policy.batch
        lane = self._lane(run.records[0])
        if lane is None:
            return
        assert all(self._lane(r) == lane for r in run.records)
        others = [r for r, place in (self.out | self.burying).items() if place == (run.partition, run.epoch)]
        assert lane not in [self._lane(r.records[0]) for r in others], "two runs of one lane at once"
        waiting = [r.offset for r in part.log if r.offset in set(part.unfinished) and self._lane(r) == lane]
        assert offsets == waiting[: len(offsets)], "out of order"

    def _lane(self, taken: Record) -> object:
        """What the record is in order with; None for nothing."""
        if self.policy.ordering is Ordering.NONE:
            return None
        if self.policy.ordering is Ordering.PARTITION:
            return taken.partition
        return None if taken.key is None else (taken.partition, taken.key)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), everything=st.booleans())
    def finish(self, data: st.DataObject, everything: bool) -> None:
        outcomes = st.sampled_from([200, 200, 200, 430, 430, 433, 449, 438])
        for _ in range(len(self.out) if everything else 1):
            run = data.draw(st.sampled_from(list(self.out)))
            partition, epoch = self.out.pop(run)
            status = data.draw(outcomes)
            self.lanes.finish(run, status, self.now, b"{}")
            if status == 200:
                self._took_effect(run, partition, epoch)

    @rule(times=st.integers(1, 4), status=st.sampled_from([430, 430, 449]))
    def a_bad_minute(self, times: int, status: int) -> None:
        """Everything that is out fails, time passes, and all is tried again: leads to last tries and dead letters."""
        for _ in range(times):
            for run in list(self.out):
                del self.out[run]
                self.lanes.finish(run, status, self.now, b"{}")
            self.now += 3_000
            self.take()

    @precondition(lambda self: self.burying)
    @rule(data=st.data(), works=st.booleans())
    def bury(self, data: st.DataObject, works: bool) -> None:
        run = data.draw(st.sampled_from(list(self.burying)))
        partition, epoch = self.burying.pop(run)
        if works:
            self.lanes.buried(run)
            self._took_effect(run, partition, epoch)
        else:
            self.lanes.unburied(run, self.now)

    def _took_effect(self, run: Run, partition: int, epoch: int) -> None:
        part = self.partitions[partition]
        offsets = {r.offset for r in run.records}
        part.done |= offsets
        if part.owned and part.epoch == epoch:
            assert offsets <= set(part.unfinished), "finished twice"
            part.unfinished = [o for o in part.unfinished if o not in offsets]
            part.settled |= offsets

    @rule(passed_ms=st.sampled_from([1, 60, 500, 3_000]))
    def time(self, passed_ms: int) -> None:
        self.now += passed_ms

    @rule(partitions=st.sets(st.sampled_from(PARTITIONS), max_size=1))
    def revoke(self, partitions: set[int]) -> None:
        for p in partitions:
            self.partitions[p].leaving |= self.partitions[p].owned
        self.lanes.revoke(partitions)
        out = [place for run, place in (self.out | self.burying).items()]
        busy = any((p, self.partitions[p].epoch) in out for p in partitions if self.partitions[p].owned)
        assert self.lanes.drained(partitions) == (not busy)

    @precondition(lambda self: any(part.leaving for part in self.partitions.values()))
    @rule(partition=st.sampled_from(PARTITIONS), commits=st.booleans())
    def release(self, partition: int, commits: bool) -> None:
        """Let go, drained or not; `commits` is False for a lost partition."""
        if commits:
            self.commit()
        self.partitions[partition].owned = False
        self.lanes.release((partition,))

    @rule()
    def commit(self) -> None:
        for partition, epoch, offset, runs in self.lanes.marks():
            part = self.partitions[partition]
            assert part.owned and epoch == part.epoch
            metadata, _ = marks.encode(epoch, offset, runs)
            claimed = {o for first, end in marks.decode(offset, metadata).finished for o in range(first, end)}
            existing = {r.offset for r in part.log}
            assert {o for o in existing if o < offset} | claimed & existing <= part.done, (
                "commit passes what is unfinished"
            )
            delivered = {r.offset for r in part.log[: part.position]}
            assert delivered - set(part.unfinished) <= set(range(offset)) | claimed, "a finished record is not known"
            assert offset >= part.committed[0]
            part.committed = (offset, metadata)

    @rule(luck=st.integers(0, 4))
    def crash(self, luck: int) -> None:
        """The process dies: what was not committed is run again."""
        if luck:
            return
        self.lanes = LaneSet(self.policy, lambda: 0.5)
        self.out, self.burying = {}, {}
        for part in self.partitions.values():
            part.owned = False

    # --------------------------------------------------------------------------------------------------- always true

    @invariant()
    def the_concurrency_is_kept(self) -> None:
        if not hasattr(self, "lanes"):
            return
        assert len(self.out) == self.lanes.in_flight <= self.policy.concurrency
        for partition, part in self.partitions.items():
            if part.owned:
                places = (self.out | self.burying).items()
                out = [len(run.records) for run, place in places if place == (partition, part.epoch)]
                assert self.lanes.owned[partition].out == sum(out)

    @invariant()
    def what_is_held_is_counted(self) -> None:
        if not hasattr(self, "lanes"):
            return
        held = [
            r
            for partition, part in self.partitions.items()
            if part.owned and not part.leaving
            for r in part.log
            if r.offset in set(part.unfinished)
        ]
        for run, (partition, epoch) in (self.out | self.burying).items():
            part = self.partitions[partition]
            if not part.owned or part.leaving or part.epoch != epoch:
                held += run.records
        assert self.lanes.held == len(held)
        assert self.lanes.held_bytes == sum(map(weight, held))

    def teardown(self) -> None:
        """Whatever happened: from here, everything gets done."""
        if not hasattr(self, "lanes"):
            return
        for partition, part in self.partitions.items():
            if part.leaving:
                self.release(partition, True)
            self.assign(partition)
        for _ in range(400):
            self.now += 3_000
            for partition in PARTITIONS:
                self.lanes.offer(self.deliver(partition, 100))
            self.take()
            for run in list(self.out):
                place = self.out.pop(run)
                self.lanes.finish(run, 200, self.now)
                self._took_effect(run, *place)
            for run in list(self.burying):
                place = self.burying.pop(run)
                self.lanes.buried(run)
                self._took_effect(run, *place)
            if not any(part.unfinished for part in self.partitions.values()):
                break
        self.commit()
        for part in self.partitions.values():
            offsets = {r.offset for r in part.log}
            assert part.done == offsets, "lost"
            assert not part.log or part.committed[0] > max(offsets)
        assert self.lanes.held == self.lanes.held_bytes == self.lanes.in_flight == 0
        assert not self.lanes.troubled


Lanes.TestCase.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLanes = pytest.mark.timeout(240)(Lanes.TestCase)
