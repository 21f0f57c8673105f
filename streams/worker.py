"""The streams process: one Faust worker, from its checks to its clean stop. docs/adr/0002 has the why and the figures.

Faust owns membership of the consumer group, tables with their changelogs, and recovery. It is embedded (`app.start()`, `app.stop()`),
never run by its command line. Records go to `streams.processors` through `streams.lanes`; everything written is awaited there, so an
offset is committed only after all that follows from its record is safe.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from infra import clock, telemetry
from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from schemas import avro
from schemas.errors import BrokerUnavailable, ConfigError, PenstockError
from schemas.records import Member
from schemas.topics import (
    COMMANDS,
    CONTROL_PARTITIONS,
    INVOCATIONS,
    MEMBERS,
    STEP_RESULTS,
    TENANT_COMMANDS,
    TOPICS,
    TopicSpec,
)
from streams.activity import Activity
from streams.embedding import FaustReader, Outbox, RecoveryWatch, Table, build_app, calm_logs, raw_topic, start
from streams.entries import Entry
from streams.intake import Intake, Place
from streams.lanes import KeyLanes
from streams.processors import ActivityProcessor, Input, Publication, RegistryProcessor, every
from streams.tenancy import TenantProcessor
from streams.tenants import TenantEntry

APP_ID: Final = "penstock-streams"
HEARTBEAT_S: Final = 2.0
TICK_S: Final = 0.5
SWEEP_S: Final = 5.0
TIMER_S: Final = 0.1
TIMERS_FROM_S: Final = 2.0
WATCH_S: Final = 0.5
RECOVERY_S: Final = 1.0
STOP_S: Final = 2.5
ADMIN_S: Final = 10.0
DRAIN_S: Final = 2.0
_log = telemetry.get_logger("streams.worker")


@dataclass(frozen=True, slots=True)
class StreamsConfig:
    """What a worker needs.

    Args:
        bootstrap_servers: of the fabric's cluster.
        instance_id: stable over restarts (static membership of the group), its own for every worker.
        data_dir: a folder for a lock per instance, and for Faust, which insists on one; no state is kept in it.
        host, zone: for the membership topic.
        app_id: consumer group, and first part of the names of the changelog topics.
        session_s: how long the partitions of a worker that is gone for good stand still.
        commit_every_s: what may be done again after a crash.
    """

    bootstrap_servers: str
    instance_id: str
    data_dir: Path
    host: str = "localhost"
    zone: str = "local"
    app_id: str = APP_ID
    session_s: float = 6.0
    commit_every_s: float = 0.25


async def run_streams(config: StreamsConfig, *, on_ready: Callable[[], None] | None = None) -> None:
    """Run one worker until cancelled; cancelling stops it cleanly, within `STOP_S` seconds and some.

    Args:
        config: see there.
        on_ready: called once, when state is recovered and records are being read.

    Raises:
        BrokerUnavailable: Kafka does not answer, or was away for more than some ten seconds: start the process again.
        ConfigError: the control topics have other partition counts than this release needs, or a worker of this instance id runs.
    """
    calm_logs()
    with _only_one(config):
        await check_topics(config)
        worker = _Worker(config)
        try:
            async with worker.started(), asyncio.TaskGroup() as tasks:
                for work in worker.works(on_ready):
                    tasks.create_task(work)
        except BaseExceptionGroup as group:
            raise _first(group) from group


async def check_topics(config: StreamsConfig) -> None:
    """Make the changelog topics, and check that all that must be co-partitioned is.

    Faust says nothing when counts differ: it just does not deliver.
    """
    admin = Admin(Cluster(config.bootstrap_servers), timeout_s=ADMIN_S)
    try:
        changelogs = changelog_specs(config.app_id)
        await admin.provision(changelogs)
        partitioned = [spec.name for spec in TOPICS if spec.partitions == CONTROL_PARTITIONS]
        for name in (*partitioned, *(spec.name for spec in changelogs)):
            facts = await admin.topic(name)
            if facts is None:
                raise BrokerUnavailable(f"topic {name} is not there yet; penstock up makes it")
            if facts.partitions != CONTROL_PARTITIONS:
                raise ConfigError(
                    f"topic {name} has {facts.partitions} partitions and must have {CONTROL_PARTITIONS}, as all control topics:"
                    " use a Kafka cluster where Penstock makes its topics itself"
                )
    finally:
        admin.close()


@contextmanager
def _only_one(config: StreamsConfig) -> Iterator[None]:
    """Hold the instance's lock: aiokafka does not notice that another took its place in the group, it takes it back again and again."""
    config.data_dir.mkdir(parents=True, exist_ok=True)
    with (config.data_dir / f"{config.instance_id}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(
                f"a streams worker with instance id {config.instance_id!r} runs already: give each its own"
            ) from exc
        yield


def changelog_specs(app_id: str) -> tuple[TopicSpec, ...]:
    """The topics that the tables are recovered from."""
    return tuple(
        TopicSpec(f"{app_id}-{table}-changelog", record, CONTROL_PARTITIONS, True, None, "streams", f"table {table}")
        for table, record in (("registry", Entry), ("activity", Activity), ("tenants", TenantEntry))
    )


class _Worker:
    def __init__(self, config: StreamsConfig) -> None:
        self._config = config
        self._app = build_app(
            app_id=config.app_id,
            instance_id=config.instance_id,
            bootstrap_servers=config.bootstrap_servers,
            data_dir=str(config.data_dir),
            session_s=config.session_s,
            commit_every_s=config.commit_every_s,
        )
        self._lanes = KeyLanes()
        self._reader = FaustReader(self._app)
        self._intake = Intake(self._reader, self._lanes)
        self._settled_mono_s: float | None = None
        self._outbox = Outbox(self._app)
        registry_table, activity_table, tenant_table = self._tables = (
            Table(self._app, "registry"), Table(self._app, "activity"), Table(self._app, "tenants"),
        )  # fmt: skip
        self._registry = RegistryProcessor(registry_table, self._outbox)
        self._activity = ActivityProcessor(activity_table, self._outbox, is_registered=self._registry.knows)
        self._tenants = TenantProcessor(tenant_table, self._outbox)
        registry_table.on_recovered = self._registry.recovered
        activity_table.on_recovered = self._activity.recovered
        for topic in (COMMANDS, STEP_RESULTS):
            self._consume(topic, self._registry.handle)
        self._consume(INVOCATIONS, self._activity.handle)
        self._consume(TENANT_COMMANDS, self._tenants.handle)
        self._app.on_partitions_revoked.connect(self._revoked, weak=False)
        self._app.on_partitions_assigned.connect(self._assigned, weak=False)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Faust runs inside."""
        try:
            await start(self._app, on_starts=self._intake.begin)
            yield
        finally:
            await self._stop()

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(STOP_S):
                await self._app.stop()
        except TimeoutError:
            _log.warning("Faust did not stop in time; what it had not committed is done again", seconds=STOP_S)

    def works(self, on_ready: Callable[[], None] | None) -> list[Any]:
        """What runs beside Faust, as coroutines that don't end."""
        return [
            self._lanes.run(),
            self._watch(),
            self._announce(on_ready),
            every(TICK_S, self._activity.tick),
            every(SWEEP_S, self._forget),
            every(TIMER_S, self._wake),
            every(WATCH_S, self._intake.watch),
            every(RECOVERY_S, RecoveryWatch(self._app).look),
        ]

    async def _watch(self) -> None:
        await self._app.wait_until_stopped()
        reason = self._app.crash_reason
        raise BrokerUnavailable(f"Kafka: the stream processor stopped: {reason!r}") from reason

    async def _announce(self, on_ready: Callable[[], None] | None) -> None:
        await self._app.tables.recovery.completed.wait()
        _log.info("streams worker is ready", instance=self._config.instance_id)
        if on_ready is not None:
            on_ready()
        term = clock.unix_ms()
        config = self._config
        key = f"streams/{config.instance_id}".encode()
        while True:
            detail = json.dumps(
                {"pid": os.getpid(), "partitions": sorted(self._owned()), "keys": self._registry.known()}
            )
            member = Member("streams", config.instance_id, config.host, config.zone, "", term, clock.unix_ms(), detail)
            await self._outbox.publish([Publication(MEMBERS, None, key, avro.encode(member))])
            await asyncio.sleep(HEARTBEAT_S)

    async def _forget(self) -> None:
        for processor in (self._registry, self._activity, self._tenants):
            for key in processor.due():
                await self._lanes.put(key, partial(processor.forget, key))

    async def _wake(self) -> None:
        if not self._reader.is_settled():
            self._settled_mono_s = None
            return
        if self._settled_mono_s is None:
            self._settled_mono_s = clock.mono_s()
        # Answers that came while nobody was here are taken first: they may be what a saga waits for.
        if clock.mono_s() - self._settled_mono_s >= TIMERS_FROM_S:
            for key in self._registry.awake():
                await self._lanes.put(key, partial(self._registry.wake, key))

    def _consume(self, topic: str, handle: Callable[[Input], Any]) -> None:
        async def agent(stream: Any) -> None:
            async for event in stream.noack().events():
                message = event.message
                place = Place(topic, message.partition)
                await self._intake.take(
                    place, message.offset, message.key, message.value, let_go=event.ack, handle=handle
                )

        self._app.agent(raw_topic(self._app, topic), name=topic)(agent)

    def _owned(self) -> set[int]:
        return {tp.partition for tp in self._app.consumer.assignment() if tp.topic == COMMANDS}

    async def _revoked(self, _app: Any, revoked: Iterable[Any], **_more: Any) -> None:
        """Finish what is under way, so that the next owner of a partition finds its state whole."""
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._lanes.drained()
        except TimeoutError:
            _log.warning("work goes on though its partition is given up", partitions=len(set(revoked)))
        self._intake.clear()

    async def _assigned(self, _app: Any, assigned: Iterable[Any], **_more: Any) -> None:
        owned = {tp.partition for tp in assigned if tp.topic == COMMANDS}
        for table in self._tables:
            table.keep(owned)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show: ours before a stranger's."""
    errors = [*_leaves(group)]
    return next((error for error in errors if isinstance(error, PenstockError)), errors[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
