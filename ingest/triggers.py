"""Triggers at work: from the registry's view to running engines. The trouble of one trigger never touches another.

Each enabled Kafka trigger has a *keeper*: a task that starts its engine, starts it again when what it was made of changes or when it fails (after 1 s × 2, at
most 30 s), and closes it when the trigger is paused or deleted. After a deletion nothing of it is left that could commit, so its consumer group,
once deleted, stays deleted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from infra.clock import unix_ms
from infra.kafka.clients import Cluster
from infra.kafka.consumer import ConsumerEvents, GroupConsumer
from infra.metrics import LANE_IN_FLIGHT, LANE_QUEUED, LANE_RECORDS, MetricRegistry
from infra.telemetry import get_logger
from ingest.deadletter import DeadLetterSink, trigger_key
from ingest.lanes import marks
from ingest.lanes.engine import LaneEngine, Source, Submit
from ingest.lanes.versions import Division
from router.aliases import Split
from router.counts import Counts
from schemas import avro
from schemas.errors import ConfigError, PenstockError, PlatformError
from schemas.ids import LATEST, FunctionKey
from schemas.records import LanePartition, LaneStatus, TriggerRecord
from schemas.topics import LANES

_LOG = get_logger("ingest.triggers")
STARTS_AT_ONCE: Final = 8
JOIN_S: Final = 3.0
"""How long a starting engine keeps its place among those that start at once."""
RESTART_FIRST_S: Final = 1.0
RESTART_LIMIT_S: Final = 30.0
STEADY_S: Final = 60.0
"""An engine that ran so long begins the row of restart pauses anew."""
PUBLISH_S: Final = 1.0
REPEAT_S: Final = 10.0
"""An unchanged state is published again so often, so that a reader knows that its gateway lives."""


class Triggers(Protocol):
    """The registry's view of triggers (infra.kafka.tables.TableView)."""

    def items(self) -> Mapping[str, TriggerRecord]:
        """All, by `appid/namespace/function/name`."""
        ...

    def subscribe(self, callback: Callable[[str, TriggerRecord | None], None]) -> None:
        """Called on the loop for each later change; None when it was deleted."""
        ...


class Publish(Protocol):
    """infra.kafka.producer.Producer, as far as it is needed."""

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        """False when it could not be taken."""
        ...


OpenSource = Callable[[TriggerRecord, ConsumerEvents], Source]


def kafka_source(cluster: Cluster, slot: str) -> OpenSource:
    """Consumers of triggers, each a static member `slot` of its trigger's group. A trigger that names no brokers reads from `cluster`; no other
    cluster gets `cluster`'s options, which may hold its credentials.
    """

    def open_source(record: TriggerRecord, events: ConsumerEvents) -> Source:
        source = record.kafka
        assert source is not None
        own = source.bootstrap_servers in ("", cluster.bootstrap_servers)
        return GroupConsumer(
            cluster if own else Cluster(source.bootstrap_servers),
            topic=source.topic,
            group_id=source.group_id,
            instance_id=slot,
            events=events,
            loop=asyncio.get_running_loop(),
            parse_epoch=marks.parse_epoch,
        )

    return open_source


class TriggerManager:
    """Keeps one engine for each enabled Kafka trigger of the view.

    Args:
        triggers: the registry's view; other types than Kafka triggers are ignored.
        submit: where runs go (Dispatcher.submit).
        sink: where dead letters go.
        producer: for the published states.
        cluster: the fabric's own; a trigger without bootstrap servers reads from it.
        slot: this gateway's name; the static member id of its consumers.
        term: of this process.
        counts: where retried and dead records are counted, by function.
        metrics: where they are counted for Prometheus.
        open_source: instead of Kafka, in tests.
        split: how calls of a function by a qualifier divide now (Dispatcher.split).
    """

    def __init__(
        self,
        triggers: Triggers,
        submit: Submit,
        sink: DeadLetterSink,
        producer: Publish,
        *,
        cluster: Cluster,
        slot: str,
        term: int,
        counts: Counts,
        metrics: MetricRegistry | None = None,
        open_source: OpenSource | None = None,
        split: Callable[[FunctionKey, str], Split | None] | None = None,
    ) -> None:
        self._triggers, self._submit, self._sink, self._producer = triggers, submit, sink, producer
        self._slot, self._term, self._counts = slot, term, counts
        self._open = open_source or kafka_source(cluster, slot)
        self._split = split
        self._keepers: dict[str, _Keeper] = {}
        self._gate = asyncio.Semaphore(STARTS_AT_ONCE)
        self._published: dict[str, tuple[LaneStatus, float]] = {}
        self._gauges = _Gauges(metrics) if metrics is not None else None
        self._waiting: frozenset[FunctionKey] = frozenset()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Follow the view until cancelled; then stop all engines, at once."""
        async with asyncio.TaskGroup() as self._group:
            self._triggers.subscribe(self._changed)
            for key, record in list(self._triggers.items().items()):
                self._changed(key, record)
            while True:
                self._count()
                self._publish()
                await asyncio.sleep(PUBLISH_S)

    def status(self) -> list[LaneStatus]:
        """What this gateway knows now of every Kafka trigger."""
        return [self._status(key, keeper) for key, keeper in self._keepers.items()]

    def status_of(self, key: str) -> LaneStatus | None:
        """The same of one trigger; None when it is none of ours."""
        keeper = self._keepers.get(key)
        return self._status(key, keeper) if keeper is not None else None

    def _status(self, key: str, keeper: _Keeper) -> LaneStatus:
        return LaneStatus(key, self._slot, self._term, unix_ms(), keeper.state, keeper.partitions())

    def engine(self, key: str) -> LaneEngine | None:
        """The running engine of a trigger."""
        keeper = self._keepers.get(key)
        return keeper.engine if keeper is not None else None

    def _changed(self, key: str, record: TriggerRecord | None) -> None:
        keeper = self._keepers.get(key)
        wanted = record if record is not None and record.kafka is not None else None
        if keeper is not None:
            keeper.want(wanted)
        elif wanted is not None and self._group is not None:
            self._keepers[key] = keeper = _Keeper(wanted, self._make, self._gate)
            self._group.create_task(self._keep(key, keeper))

    async def _keep(self, key: str, keeper: _Keeper) -> None:
        try:
            await keeper.run()
        finally:
            del self._keepers[key]

    def _make(self, record: TriggerRecord, ended: Callable[[PenstockError], None]) -> LaneEngine:
        return LaneEngine(
            record,
            submit=self._submit,
            bury=self._sink.put,
            source=lambda events: self._open(record, events),
            jitter=random.random,
            ended=ended,
            division=self._division(record),
        )

    def _division(self, record: TriggerRecord) -> Division | None:
        if self._split is None or record.qualifier == LATEST:
            return None
        return partial(self._split, trigger_key(record).function, record.qualifier)

    def _publish(self) -> None:
        now = asyncio.get_running_loop().time()
        current = {status.key: status for status in self.status()}
        for key in [k for k in self._published if k not in current]:
            if self._producer.send_nowait(LANES, key=f"{self._slot}/{key}".encode(), value=None):
                del self._published[key]
        for key, status in current.items():
            before, at_s = self._published.get(key, (None, 0.0))
            if before is None or now - at_s > REPEAT_S or replace(before, unix_ms=0) != replace(status, unix_ms=0):
                self._published[key] = (status, now)
                self._producer.send_nowait(LANES, key=f"{self._slot}/{key}".encode(), value=avro.encode(status))

    def _count(self) -> None:
        """What became of records since the last look, and what waits: into the functions' windows and the metrics."""
        total, in_flight = Counted(), 0
        waiting: dict[FunctionKey, int] = dict.fromkeys(self._waiting, 0)
        for keeper in self._keepers.values():
            counted = keeper.counted()
            total += counted
            if counted.retried or counted.dead:
                count = self._counts.of(keeper.function)
                count.retried += counted.retried
                count.dead += counted.dead
                count.touched = True
            out, queued = keeper.load()
            in_flight += out
            if queued:
                waiting[keeper.function] = waiting.get(keeper.function, 0) + queued
        for function, queued in waiting.items():
            count = self._counts.of(function)
            count.queued, count.touched = queued, True
        self._waiting = frozenset(function for function, queued in waiting.items() if queued)
        if self._gauges is not None:
            self._gauges.show(total, in_flight=in_flight, queued=sum(waiting.values()))


@dataclass(slots=True)
class Counted:
    """Records by what became of them."""

    done: int = 0
    retried: int = 0
    dead: int = 0

    def __iadd__(self, other: Counted) -> Counted:
        self.done += other.done
        self.retried += other.retried
        self.dead += other.dead
        return self


class _Gauges:
    """The lanes' rows of `infra.metrics`."""

    def __init__(self, metrics: MetricRegistry) -> None:
        records = metrics.counter(LANE_RECORDS)
        self._done, self._retried, self._dead = (records.labels(outcome=o) for o in ("done", "retried", "dead"))
        self._in_flight, self._queued = metrics.gauge(LANE_IN_FLIGHT), metrics.gauge(LANE_QUEUED)

    def show(self, counted: Counted, *, in_flight: int, queued: int) -> None:
        """Add what was counted, set what is now."""
        self._done.inc(counted.done)
        self._retried.inc(counted.retried)
        self._dead.inc(counted.dead)
        self._in_flight.set(in_flight)
        self._queued.set(queued)


class _Keeper:
    """One trigger of the view: what is wanted of it, and its engine."""

    def __init__(
        self,
        record: TriggerRecord,
        make: Callable[[TriggerRecord, Callable[[PenstockError], None]], LaneEngine],
        gate: asyncio.Semaphore,
    ) -> None:
        self.engine: LaneEngine | None = None
        self.function = trigger_key(record).function
        self._wanted: TriggerRecord | None = record
        self._make, self._gate = make, gate
        self._wake = asyncio.Event()
        self._error: PenstockError | None = None
        self._counted = Counted()

    @property
    def state(self) -> str:
        """One of starting, running, paused, stopping, or `failed: ` and why."""
        if self._error is not None:
            return f"failed: {self._error}"
        if self._wanted is None:
            return "stopping"
        if not self._wanted.enabled:
            return "paused"
        return "running" if self.engine is not None and self.engine.joined.is_set() else "starting"

    def partitions(self) -> tuple[LanePartition, ...]:
        """What the engine says of its partitions."""
        return self.engine.status() if self.engine is not None else ()

    def want(self, record: TriggerRecord | None) -> None:
        """The trigger as it is to be from now on; None when it was deleted."""
        if _made_of(record) != _made_of(self._wanted):
            self._wake.set()
        self._wanted = record

    def load(self) -> tuple[int, int]:
        """Records in runs that are out, and records taken in that are in none."""
        if self.engine is None:
            return 0, 0
        lanes = self.engine.lanes
        out = sum(owner.out for owner in lanes.owned.values())
        return out, max(0, lanes.held - out)

    def counted(self) -> Counted:
        """What became of records since the last call, also under an engine that is closed by now."""
        if self.engine is not None:
            lanes = self.engine.lanes
            self._counted += Counted(lanes.done, lanes.retried, lanes.dead)
            lanes.done = lanes.retried = lanes.dead = 0
        counted, self._counted = self._counted, Counted()
        return counted

    async def run(self) -> None:
        """Keep the trigger as it is wanted, until it is deleted."""
        pause_s = RESTART_FIRST_S
        while (record := self._wanted) is not None:
            self._wake.clear()
            self._error = None
            if not record.enabled:
                await self._wake.wait()
                continue
            began_s = asyncio.get_running_loop().time()
            try:
                await self._work(record)
            except PenstockError as exc:
                self._error = exc
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is this trigger's alone
                self._error = PlatformError(f"{type(exc).__name__}: {exc}")
                _LOG.error("trigger broke", trigger=str(trigger_key(record)), exc_info=exc)
            if self._error is not None:
                if asyncio.get_running_loop().time() - began_s > STEADY_S:
                    pause_s = RESTART_FIRST_S
                if _made_of(self._wanted) == _made_of(record):
                    self._wake.clear()  # it was the engine's end
                _LOG.error(
                    "trigger failed", trigger=str(trigger_key(record)), error=str(self._error), again_in_s=pause_s
                )
                await self._rest(pause_s)
                pause_s = min(2 * pause_s, RESTART_LIMIT_S)

    async def _work(self, record: TriggerRecord) -> None:
        """Run one engine until something else is wanted; raises what ended it."""
        if record.kafka is not None and record.kafka.on_poison != "skip":
            raise ConfigError(f"on_poison {record.kafka.on_poison!r} is not available in this release; skip is")
        ended: list[PenstockError] = []

        def end(error: PenstockError) -> None:
            ended.append(error)
            self._wake.set()

        try:
            async with self._gate:
                self.engine = self._make(record, end)
                self.engine.start()
                await self._joined(self.engine)
            _LOG.info("trigger started", trigger=str(trigger_key(record)))
            await self._wake.wait()
        finally:
            if self.engine is not None:
                await self.engine.close()
                self._counted = self.counted()
                self.engine = None
            _LOG.info("trigger stopped", trigger=str(trigger_key(record)))
        if ended:
            raise ended[0]

    async def _joined(self, engine: LaneEngine) -> None:
        try:
            async with asyncio.timeout(JOIN_S):
                await engine.joined.wait()
        except TimeoutError:
            return

    async def _rest(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return


def _made_of(record: TriggerRecord | None) -> object:
    """What an engine depends on; a change of anything else leaves it running."""
    return None if record is None else (record.enabled, record.qualifier, record.kafka)
