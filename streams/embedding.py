"""Faust, bent to embedded use: the app with its settings, prompt starts, tables and sends that are awaited.

This is the only module that imports Faust, which has no types. docs/adr/0002 has the why and the figures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import faust
import faust.exceptions
import faust.tables.manager
import faust.tables.table
import faust.transport.drivers.aiokafka as driver
from aiokafka.errors import KafkaError
from faust.types import TP
from mode.threads import WorkerThread

from infra import clock, telemetry
from schemas.errors import BrokerUnavailable
from schemas.topics import CONTROL_PARTITIONS
from streams.intake import Place
from streams.processors import Publication

ACK_S: Final = 10.0
"""How long the broker may be away before the worker gives up; Faust and its clients reconnect by themselves until then."""
FETCH_WAIT_MS: Final = 200
REPEATED_S: Final = 5.0
STANDS_FOR_GOOD: Final = 10
"""Looks at a recovery that stands still, before the worker gives up."""
THREAD_STOP_S: Final = 1.0
_VERSION: Final = "v"
_MESSAGES: Final = 100
_NOISY: Final = (
    "aiokafka",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
    "aiokafka.producer.sender",
)
_log = telemetry.get_logger("streams.embedding")


def build_app(
    *, app_id: str, instance_id: str, bootstrap_servers: str, data_dir: str, session_s: float, commit_every_s: float
) -> Any:
    """A Faust app that is not started yet; needs the running event loop."""
    return faust.App(
        app_id,
        broker=[f"aiokafka://{server}" for server in bootstrap_servers.split(",")],
        datadir=str(data_dir),
        loop=asyncio.get_running_loop(),
        store="memory://",
        Table=_ChangelogTable,
        TableManager=_PromptTables,
        recovery_consistency_check=False,  # takes the offsets that `Table.put` notes for those of a broken store
        web_enabled=False,
        autodiscover=False,
        key_serializer="raw",
        value_serializer="raw",
        processing_guarantee="at_least_once",
        topic_partitions=CONTROL_PARTITIONS,
        topic_disable_leader=True,
        broker_client_id=f"{app_id}-{instance_id}",
        broker_commit_interval=commit_every_s,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / 6,
        broker_request_timeout=max(ACK_S, session_s + 1),
        consumer_group_instance_id=instance_id,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        producer_linger=0.0,
        producer_request_timeout=ACK_S,
        table_standby_replicas=0,  # a copy of another worker's state would be taken for one's own
        stream_recovery_delay=0.0,
        stream_wait_empty=False,
    )


async def start(app: Any, *, on_starts: Callable[[Mapping[Place, int]], None]) -> None:
    """Start the app, with a repaired transport. Raises BrokerUnavailable.

    `on_starts` gets the offset that each partition of a source topic is read from, before its records come, after every rebalance.
    """
    try:
        app.finalize()
        app.transport = _Transport(app.conf.broker_consumer, app, on_starts=on_starts)
        await app.start()
    except KafkaError as exc:
        raise BrokerUnavailable(f"Kafka: the stream processor could not start: {exc!r}") from exc


def raw_topic(app: Any, name: str) -> Any:
    return app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")


class _PromptTables(faust.tables.manager.TableManager):
    """Faust's table manager without its fixed pause of a second: all tables are there before the app starts."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class _Thread(WorkerThread):
    """Faust waits for its consumer's thread for ever, blocking the loop, and that thread may wait for the loop."""

    def __init__(self, service: Any, **more: Any) -> None:
        super().__init__(service, **more)
        self.daemon = True

    def stop(self) -> None:
        self.is_stopped.wait(THREAD_STOP_S)


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    Worker = _Thread

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust fixes it at 1.5 s, and partitions that become ready during one fetch wait for its end.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001 - there is no setting for it
        return consumer

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Faust's only logs, takes a quiet topic for a stuck one, and ends the worker when a position is not known at that moment."""

    def verify_recovery_event_path(self, now: float, tp: Any) -> None:
        """As `verify_event_path`."""

    async def seek_to_committed(self) -> Any:
        """Faust's own leaves partitions where they are that have nothing committed, or 0, though it dropped what it had fetched."""
        consumer = self._ensure_consumer()
        places = [tp for tp in consumer.assignment() if tp.topic not in self.app.tables.changelog_topics]
        first = await self.earliest_offsets(*places) if places else {}
        known = await asyncio.gather(*(self.call_thread(consumer.committed, tp) for tp in places))
        starts = {tp: max(first[tp], offset or 0) for tp, offset in zip(places, known, strict=True)}
        cast(_Transport, self.transport).on_starts({Place(*tp): offset for tp, offset in starts.items()})
        committed = dict(await super().seek_to_committed())
        fresh = [tp for tp in places if (committed.get(tp) or 0) < max(first[tp], 1)]
        if fresh:
            await self.seek_to_beginning(*fresh)
        return committed | {tp: first[tp] for tp in fresh if first[tp]}


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> Any:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Faust takes offsets that it did not see for processed ones."""


class _Transport(driver.Transport):
    Consumer = _Consumer

    def __init__(self, *args: Any, on_starts: Callable[[Mapping[Place, int]], None]) -> None:
        super().__init__(*args)
        self.on_starts = on_starts


class FaustReader:
    """The app's consumer as a `Reader`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def end(self, place: Place) -> int | None:
        consumer, tp = self._app.consumer, TP(*place)
        if self._app.rebalancing or not consumer.flow_active or tp not in consumer.assignment():
            return None
        end: int | None = consumer.highwater(tp)
        return end

    def is_settled(self) -> bool:
        """True when partitions and their state are here for good: no rebalance, no recovery."""
        flows: bool = self._app.consumer.flow_active
        return flows and not self._app.rebalancing and not self._app.tables.recovery.in_recovery

    async def rewind(self, place: Place, offset: int) -> None:
        await _read_again(self._app, {TP(*place): offset})

    def accept_hole(self, place: Place, offset: int) -> None:
        self._app.consumer._committed_offset[TP(*place)] = offset  # noqa: SLF001 - or it never commits past the hole


class RecoveryWatch:
    """Has changelogs read again where Faust waits for records that it has dropped.

    A fetch that was under way when partitions changed hands may end after the recovery has set its positions; what it brings is thrown
    away, the position is behind it, and the recovery waits for those records for ever.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._stood: dict[Any, int] = {}
        self._looks = 0

    async def look(self) -> None:
        """Call it now and then. Raises BrokerUnavailable when reading again does not help."""
        recovery = self._app.tables.recovery
        waits = recovery.in_recovery and self._app.consumer.flow_active
        left = [tp for tp, count in recovery.active_remaining().items() if count > 0] if waits else []
        stands = {tp: max(recovery.active_offsets[tp], 0) for tp in left}
        stood, self._stood = self._stood, stands
        if not stands or stands != stood:
            self._looks = 0
            return
        self._looks += 1
        if self._looks > STANDS_FOR_GOOD:
            raise BrokerUnavailable(f"Kafka: the state of {len(stands)} partitions could not be read back")
        _log.warning(
            "changelogs stand still; reading again", partitions=sorted(f"{tp.topic}/{tp.partition}" for tp in stands)
        )
        await _read_again(self._app, stands)


async def _read_again(app: Any, offsets: Mapping[Any, int]) -> None:
    """Have partitions delivered again from these offsets. A failure is only logged: the next look, or a rebalance, does it."""
    try:
        await app.consumer.seek_wait(offsets)
    except (KafkaError, TimeoutError) as exc:
        where = {f"{tp.topic}/{tp.partition}": offset for tp, offset in offsets.items()}
        _log.warning("could not read again", offsets=where, why=repr(exc))


class _ChangelogTable(faust.tables.table.Table[bytes, bytes]):
    """A Faust table that is only a changelog and its recovery; what is read back goes to a `Table`."""

    owner: Table

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        for event in batch:
            self.owner.read_back(event.message)


class _State(NamedTuple):
    partition: int
    version: int
    value: bytes


class Table:
    """A Faust table as a `Journal`: a change goes to its changelog by an awaited send, to memory after that.

    Each changelog record carries the version of its state. One that is older than what was read before it, written late by a worker
    that had lost the partition without knowing, is passed over.
    """

    def __init__(self, app: Any, name: str) -> None:
        self.on_recovered: Callable[[bytes], None] = _ignore
        self._recovery = app.tables.recovery
        self._states: dict[bytes, _State] = {}
        self._table = app.Table(name, partitions=CONTROL_PARTITIONS, key_type=bytes, value_type=bytes)
        self._table.owner = self

    def get(self, key: bytes) -> bytes | None:
        state = self._states.get(key)
        return None if state is None else state.value

    def partition(self, key: bytes) -> int:
        return self._states[key].partition

    def keys(self) -> Collection[bytes]:
        return self._states

    async def put(self, partition: int, key: bytes, value: bytes | None, *, version: int) -> None:
        headers = ((_VERSION, b"%d" % version),)
        topic = self._table.changelog_topic
        [written] = await acknowledged([topic.send(key=key, value=value, partition=partition, headers=headers)])
        self._set(key, None if value is None else _State(partition, version, value))
        # Else a rebalance reads all that was written here back again: Faust notes this for stores on disk only.
        tp = TP(written.topic, written.partition)
        if tp in self._recovery.active_offsets:
            self._recovery.active_offsets[tp] = max(self._recovery.active_offsets[tp], written.offset)

    def keep(self, partitions: set[int]) -> None:
        """Let go of the state of all other partitions."""
        for key in [key for key, state in self._states.items() if state.partition not in partitions]:
            del self._states[key]

    def read_back(self, message: Any) -> None:
        """Take in one record of the changelog."""
        if message.value is None:
            self._set(message.key, None)
            return
        version = int(dict(message.headers or ()).get(_VERSION, b"0"))
        known = self._states.get(message.key)
        if known is None or known.partition != message.partition or version >= known.version:
            self._set(message.key, _State(message.partition, version, message.value))
        self.on_recovered(message.key)

    def _set(self, key: bytes, state: _State | None) -> None:
        if state is None:
            self._states.pop(key, None)
        else:
            self._states[key] = state


class Outbox:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._topics: dict[str, Any] = {}

    async def publish(self, publications: Sequence[Publication]) -> None:
        await acknowledged(
            [self._topic(p.topic).send(key=p.key, value=p.value, partition=p.partition) for p in publications]
        )

    def _topic(self, name: str) -> Any:
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = raw_topic(self._app, name)
        return topic


async def acknowledged(sends: Sequence[Awaitable[Any]]) -> list[Any]:
    """Where each record stands, when all are acknowledged. `sends`: calls of a topic's `send`, done in order."""
    try:
        async with asyncio.timeout(ACK_S):
            sent = [await send for send in sends]
            return [await acknowledgement for acknowledgement in sent]
    except (TimeoutError, KafkaError, faust.exceptions.ProducerSendError) as exc:
        raise BrokerUnavailable(f"Kafka: no acknowledgement within {ACK_S:g} s: {exc!r}") from exc


def _ignore(_key: bytes) -> None:
    return None


def calm_logs() -> None:
    """Have the Kafka client say the same thing once in `REPEATED_S`; it says a hundred times a second that a broker is away."""
    for name in _NOISY:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Calm) for known in logger.filters):
            logger.addFilter(_Calm())


class _Calm(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = clock.mono_s()
        if len(self._said) > _MESSAGES:
            self._said.clear()
        if now - self._said.get(str(record.msg), -REPEATED_S) < REPEATED_S:
            return False
        self._said[str(record.msg)] = now
        return True
