"""Triggers at work: from the registry's view to running engines. The trouble of one trigger never touches another."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

from infra.clock import mono_s, unix_ms
from infra.kafka.clients import Cluster
from infra.kafka.consumer import ConsumerEvents, GroupConsumer
from infra.kafka.producer import Producer
from infra.kafka.tables import TableView
from infra.telemetry import get_logger
from ingest.deadletter import DeadLetterSink
from ingest.lanes import marks
from ingest.lanes.engine import LaneEngine, Submit
from router.counts import Counts
from schemas import avro
from schemas.errors import PenstockError
from schemas.records import LaneStatus, TriggerRecord
from schemas.topics import LANES

_LOG = get_logger("ingest.triggers")
STARTS_AT_ONCE = 8
RESTART_FIRST_S, RESTART_LIMIT_S = 1.0, 30.0
PUBLISH_S = 1.0
REPEAT_S = 10.0


@dataclass(slots=True)
class _Failed:
    """A trigger whose engine ended by itself: when it is tried again."""

    why: str
    again_mono_s: float
    pause_s: float


class TriggerManager:
    """Keeps one engine for each enabled Kafka trigger of the view.

    Args:
        triggers: the registry's view.
        submit: where runs go (Dispatcher.submit).
        sink: where dead letters go.
        producer: for the published states.
        cluster: the fabric's own; a trigger without bootstrap servers reads from it.
        slot: this gateway's name; the static member id of its consumers.
        term: of this process.
        counts: where retried and dead records are counted.
    """

    def __init__(
        self,
        triggers: TableView[TriggerRecord],
        submit: Submit,
        sink: DeadLetterSink,
        producer: Producer,
        *,
        cluster: Cluster,
        slot: str,
        term: int,
        counts: Counts,
    ) -> None:
        self._triggers, self._submit, self._sink, self._producer = triggers, submit, sink, producer
        self._cluster, self._slot, self._term, self._counts = cluster, slot, term, counts
        self._engines: dict[str, LaneEngine] = {}
        self._failed: dict[str, _Failed] = {}
        self._published: dict[str, tuple[LaneStatus, float]] = {}
        self._told: dict[str, tuple[int, int]] = {}
        self._wake = asyncio.Event()
        triggers.subscribe(lambda _key, _record: self._wake.set())

    async def run(self) -> None:
        """Follow the view until cancelled; then stop all engines."""
        try:
            while True:
                self._wake.clear()
                await self._converge()
                self._publish()
                try:
                    async with asyncio.timeout(PUBLISH_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await asyncio.gather(*(e.close() for e in self._engines.values()), return_exceptions=True)

    def status(self) -> list[LaneStatus]:
        """What this gateway knows now of every trigger it runs."""
        now = unix_ms()
        running = [
            LaneStatus(key, self._slot, self._term, now, engine.state, engine.status())
            for key, engine in self._engines.items()
        ]
        failed = [LaneStatus(key, self._slot, self._term, now, f"failed: {f.why}") for key, f in self._failed.items()]
        return running + failed

    async def _converge(self) -> None:
        wanted = {k: r for k, r in self._triggers.items().items() if r.kafka is not None and r.enabled}
        stale = [k for k, e in self._engines.items() if k not in wanted or wanted[k].seq != e.record.seq]
        await asyncio.gather(*(self._stop(key) for key in stale))
        for key in [k for k in self._failed if k not in wanted]:
            del self._failed[key]
        now = mono_s()
        for key, record in wanted.items():
            failed = self._failed.get(key)
            if key not in self._engines and (failed is None or failed.again_mono_s <= now):
                self._start(key, record)

    def _start(self, key: str, record: TriggerRecord) -> None:
        engine = LaneEngine(
            record,
            submit=self._submit,
            bury=self._sink.put,
            source=lambda events: self._consumer(record, events),
            jitter=random.random,
            ended=lambda error: self._engine_ended(key, error),
        )
        self._engines[key] = engine
        engine.start()
        _LOG.info("trigger started", trigger=key)

    def _consumer(self, record: TriggerRecord, events: ConsumerEvents) -> GroupConsumer:
        source = record.kafka
        assert source is not None
        own = source.bootstrap_servers in ("", self._cluster.bootstrap_servers)
        return GroupConsumer(
            self._cluster if own else Cluster(source.bootstrap_servers),
            topic=source.topic,
            group_id=source.group_id,
            instance_id=self._slot,
            events=events,
            loop=asyncio.get_running_loop(),
            parse_epoch=marks.parse_epoch,
        )

    async def _stop(self, key: str) -> None:
        await self._engines[key].close()
        del self._engines[key]
        self._told.pop(key, None)
        _LOG.info("trigger stopped", trigger=key)

    def _engine_ended(self, key: str, error: PenstockError) -> None:
        before = self._failed.get(key)
        pause_s = min(before.pause_s * 2, RESTART_LIMIT_S) if before is not None else RESTART_FIRST_S
        self._failed[key] = _Failed(str(error), mono_s() + pause_s, pause_s)
        engine = self._engines.pop(key, None)
        _LOG.error("trigger failed", trigger=key, error=str(error), again_in_s=pause_s)
        if engine is not None:
            asyncio.get_running_loop().call_soon(self._close_soon, engine)

    def _close_soon(self, engine: LaneEngine) -> None:
        task = asyncio.get_running_loop().create_task(engine.close())
        _CLOSING.add(task)
        task.add_done_callback(_CLOSING.discard)

    def _publish(self) -> None:
        now = mono_s()
        self._count()
        current = {status.key: status for status in self.status()}
        for key in [k for k in self._published if k not in current]:
            del self._published[key]
            self._producer.send_nowait(LANES, key=f"{self._slot}/{key}".encode(), value=None)
        for key, status in current.items():
            before, at_s = self._published.get(key, (None, 0.0))
            if before is None or replace(before, unix_ms=0) != replace(status, unix_ms=0) or now - at_s > REPEAT_S:
                self._published[key] = (status, now)
                self._producer.send_nowait(LANES, key=f"{self._slot}/{key}".encode(), value=avro.encode(status))

    def _count(self) -> None:
        """Retries and dead letters since the last look, into the function's window."""
        for key, engine in self._engines.items():
            retried, dead = engine.lanes.retried, engine.lanes.dead
            before = self._told.get(key, (0, 0))
            if (retried, dead) != before or engine.lanes.held:
                self._told[key] = (retried, dead)
                count = self._counts.of(engine.key.function)
                count.retried += retried - before[0]
                count.dead += dead - before[1]
                count.queued = max(0, engine.lanes.held - engine.lanes.in_flight)
                count.touched = True


_CLOSING: set[asyncio.Task[None]] = set()
"""Engines on their way out, kept from the garbage collector."""
