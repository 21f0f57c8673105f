"""Load on a lane engine: records by key, and a function in this process that takes its time and keeps account of what it was given."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

from confluent_kafka import Producer

from infra.clock import mono_s
from infra.kafka.clients import Cluster
from infra.kafka.commits import Mark
from infra.kafka.consumer import ConsumerEvents
from ingest.deadletter import DeadLetter
from ingest.lanes.engine import Bury, LaneEngine, Source
from ingest.triggers import kafka_source
from schemas.errors import PenstockError
from schemas.frames import Flow, Result
from schemas.ids import FunctionKey
from schemas.records import TriggerRecord
from tests.lane_fakes import result, trigger

Place = tuple[int, int]
"""Partition and offset."""


def fill(bootstrap: str, topic: str, records: Iterable[tuple[bytes | None, bytes, int]]) -> None:
    """Produce (key, value, partition), acknowledged."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "acks": "all"})
    failures: list[object] = []
    for key, value, partition in records:
        producer.produce(
            topic, value, key=key, partition=partition, on_delivery=lambda e, _m: failures.append(e) if e else None
        )
        producer.poll(0)
    assert producer.flush(30) == 0
    assert not failures


def spread(count: int, *, keys: int, partitions: int) -> list[tuple[bytes, bytes, int]]:
    """`count` records of `keys` keys; a key is always in the same partition, its values count up."""
    rng, numbers, made = random.Random(count), Counter[int](), []
    for _ in range(count):
        key = rng.randrange(keys)
        made.append((b"key-%d" % key, b'{"n": %d}' % numbers[key], key % partitions))
        numbers[key] += 1
    return made


class Function:
    """What the dispatcher would run. Answers after `delay_s()` by `verdict(body, attempt)`; several engines may share it."""

    def __init__(
        self,
        delay_s: Callable[[], float],
        verdict: Callable[[str, int], Result | None] = lambda _body, _attempt: result(),
    ) -> None:
        self._delay_s, self._verdict = delay_s, verdict
        self.starts: Counter[Place] = Counter()
        self.finished: dict[int, set[int]] = defaultdict(set)
        self.order: dict[str, list[Place]] = defaultdict(list)
        """What succeeded, by key, in order."""
        self.running: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.overlaps: list[str] = []
        """Keys of which a second record started while one ran."""

    def submit(
        self,
        function: FunctionKey,
        qualifier: str,
        event: bytes,
        *,
        flow: Flow | None,
        attempt: int,
        flags: int,
        done: Callable[[Result], None],
    ) -> None:
        """One record a call."""
        (entry,) = json.loads(event)["Records"]
        record = entry["Ckafka"]
        key = f"{record['partition']}/{record['msgKey']}"
        self.starts[record["partition"], record["offset"]] += 1
        if self.running[key]:
            self.overlaps.append(key)
        self.running[key] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        asyncio.get_running_loop().call_later(self._delay_s(), self._answer, key, record, attempt, done)

    def _answer(self, key: str, record: dict[str, Any], attempt: int, done: Callable[[Result], None]) -> None:
        self.running[key] -= 1
        self.at_once -= 1
        answer = self._verdict(record["msgBody"], attempt)
        if answer is None:
            return
        if answer.status == 200:
            self.finished[record["partition"]].add(record["offset"])
            self.order[key].append((record["partition"], record["offset"]))
        done(answer)

    @property
    def count(self) -> int:
        """Distinct records that succeeded."""
        return sum(map(len, self.finished.values()))

    def assert_in_order(self) -> None:
        """Each key's records took effect in offset order, and never two at once. A record that ran again counts where it first did."""
        assert not self.overlaps
        for key, places in self.order.items():
            offsets = list(dict.fromkeys(offset for _, offset in places))
            assert offsets == sorted(offsets), f"order of {key}"


class WatchedSource:
    """A trigger's consumer, with every commit checked against what the function finished."""

    def __init__(self, source: Source, function: Function, buried: set[Place]) -> None:
        self._source, self._function, self._buried = source, function, buried
        self.start, self.hold, self.release, self.close = source.start, source.hold, source.release, source.close
        self.passed_unfinished: list[tuple[int, Mark]] = []

    def commit(self, marks: Mapping[int, Mark]) -> None:
        """Every offset below a mark must be finished or buried."""
        for partition, mark in marks.items():
            finished = self._function.finished[partition]
            if any(o not in finished and (partition, o) not in self._buried for o in range(mark.offset)):
                self.passed_unfinished.append((partition, mark))
        self._source.commit(marks)


class Engine:
    """A lane engine on a real broker, feeding a `Function`."""

    def __init__(
        self,
        bootstrap: str,
        record: TriggerRecord,
        function: Function,
        *,
        slot: str = "gateway-1",
        bury: Bury | None = None,
    ) -> None:
        self.buried: set[Place] = set()
        self.letters: list[DeadLetter] = []
        self.errors: list[PenstockError] = []
        opener = kafka_source(Cluster(bootstrap), slot)

        def watched(events: ConsumerEvents) -> WatchedSource:
            self.source = WatchedSource(opener(record, events), function, self.buried)
            return self.source

        self._bury = bury
        self.lanes_engine = LaneEngine(
            record,
            submit=function.submit,
            bury=self._put,
            source=watched,
            jitter=random.random,
            ended=self.errors.append,
        )
        self.lanes_engine.start()

    async def _put(self, letter: DeadLetter) -> None:
        if self._bury is not None:
            await self._bury(letter)
        self.letters.append(letter)
        self.buried.add((letter.record.partition, letter.record.offset))

    @property
    def partitions(self) -> list[int]:
        return [state.partition for state in self.lanes_engine.status()]

    async def close(self) -> None:
        await self.lanes_engine.close()
        assert not self.source.passed_unfinished, "a commit passed what was not finished"
        assert not self.errors


def new_trigger(topic: str, *, name: str = "t1", **kafka: Any) -> TriggerRecord:
    """A trigger with a group of its own that reads the topic from its start."""
    return trigger(name, topic=topic, group_id=f"g-{uuid4().hex[:12]}", **kafka)


async def eventually(claim: Callable[[], Any], what: str, *, within_s: float = 30) -> None:
    """Wait until the claim holds."""
    deadline = mono_s() + within_s
    while not claim():
        assert mono_s() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.005)
