"""Views of topics: one thread and one consumer without a group read all tables of a process, and the loop holds them.

A view is only touched on the event loop. It follows its topic within milliseconds; when the broker is away it keeps what it saw.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from infra.kafka.clients import CALL_TIMEOUT_S, PARTITION_EOF, Cluster, reason, unavailable
from schemas import avro
from schemas.errors import DeadlineExceeded, WireError
from schemas.topics import TopicSpec

T = TypeVar("T")
_LOG = logging.getLogger("infra.kafka.tables")
_POLL_S = 0.05
_METADATA_S = 30.0
Change = tuple[str, str, Any]


class TableView(Generic[T]):
    """The newest value of each key of one topic."""

    def __init__(self) -> None:
        self._items: dict[str, T] = {}
        self._subscribers: list[Callable[[str, T | None], None]] = []
        self._waiters: dict[str, list[tuple[Callable[[T | None], bool], asyncio.Future[None]]]] = {}

    def get(self, key: str) -> T | None:
        """The newest state of a key, None when there is none."""
        return self._items.get(key)

    def items(self) -> Mapping[str, T]:
        """All keys with their states; a live mapping, touched only on the loop."""
        return self._items

    def subscribe(self, callback: Callable[[str, T | None], None]) -> None:
        """Have `callback(key, value or None)` called for each change from now on."""
        self._subscribers.append(callback)

    def follow(self, callback: Callable[[str, T | None], None]) -> None:
        """`subscribe`, and first tell it of every key that there is."""
        self.subscribe(callback)
        for key, value in list(self._items.items()):
            callback(key, value)

    async def wait(self, key: str, predicate: Callable[[T | None], bool], timeout_s: float) -> T | None:
        """The value once `predicate` holds for it; raises DeadlineExceeded."""
        if not predicate(self.get(key)):
            waiter = (predicate, asyncio.get_running_loop().create_future())
            self._waiters.setdefault(key, []).append(waiter)
            try:
                async with asyncio.timeout(timeout_s):
                    await waiter[1]
            except TimeoutError as exc:
                raise DeadlineExceeded(f"{key} did not reach the awaited state within {timeout_s:g} s") from exc
            finally:
                left = [w for w in self._waiters.get(key, []) if w is not waiter]
                if left:
                    self._waiters[key] = left
                else:
                    self._waiters.pop(key, None)
        return self.get(key)

    def apply(self, key: str, value: T | None, *, tell: bool) -> None:
        """Take one change in; called by the reader on the loop."""
        if value is None:
            self._items.pop(key, None)
        else:
            self._items[key] = value
        if tell:
            for callback in self._subscribers:
                callback(key, value)
        for predicate, future in self._waiters.get(key, ()):
            if not future.done() and predicate(value):
                future.set_result(None)


class TableReader:
    """Reads topics into views.

    `specs` are read from their beginning (compacted topics); those named in `from_end` from what comes after `start`.
    """

    def __init__(self, cluster: Cluster, specs: Sequence[TopicSpec], *, from_end: frozenset[str] = frozenset()) -> None:
        self._cluster, self._from_end = cluster, from_end
        self._specs = {spec.name: spec for spec in specs}
        self._views: dict[str, TableView[Any]] = {spec.name: TableView() for spec in specs}
        self._stopping = threading.Event()
        self._caught_up: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._targets: dict[tuple[str, int], int] = {}

    def view(self, name: str) -> TableView[Any]:
        """The view of one topic."""
        return self._views[name]

    async def start(self, timeout_s: float = 30.0) -> None:
        """Read until every table stands where its topic ended at the start; then follow.

        Raises BrokerUnavailable or DeadlineExceeded; the reader is then closed.
        """
        self._loop = asyncio.get_running_loop()
        self._caught_up = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="kafka-tables", daemon=True)
        self._thread.start()
        try:
            async with asyncio.timeout(timeout_s):
                await self._caught_up
        except TimeoutError as exc:
            await self.close()
            raise DeadlineExceeded(f"tables not read within {timeout_s:g} s") from exc

    async def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 5.0)

    def _run(self) -> None:
        consumer = Consumer(
            self._cluster.config(
                group_id="penstock-tables",
                enable_auto_commit=False,
                enable_partition_eof=True,
                auto_offset_reset="earliest",
                fetch_wait_max_ms=100,
                fetch_queue_backoff_ms=10,
                queued_max_messages_kbytes=4096,
                topic_metadata_refresh_interval_ms=10_000,
            )
        )
        try:
            self._assign_when_possible(consumer)
            next_look = time.monotonic() + _METADATA_S
            told = self._tell_if_caught_up(False)
            while not self._stopping.is_set():
                first = consumer.poll(_POLL_S)
                if first is not None:
                    changes = self._decode([first, *consumer.consume(499, 0)])
                    self._post(self._apply, changes, told)
                told = self._tell_if_caught_up(told)
                if time.monotonic() > next_look:
                    next_look = time.monotonic() + _METADATA_S
                    self._follow_new_partitions(consumer)
        except KafkaException as exc:
            self._post(self._fail, unavailable("read tables", exc))
        finally:
            consumer.close()

    def _assign_when_possible(self, consumer: Consumer) -> None:
        """New topics have no leader for a moment, and the broker may be starting: `start` bounds the wait."""
        while not self._stopping.is_set():
            try:
                self._assign(consumer)
            except KafkaException as exc:
                _LOG.info("tables wait: %s", reason(exc))
                self._stopping.wait(0.1)
            else:
                return

    def _assign(self, consumer: Consumer) -> None:
        parts = []
        for name, count in self._partitions(consumer).items():
            for partition in range(count):
                low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=CALL_TIMEOUT_S)
                if name in self._from_end:
                    parts.append(TopicPartition(name, partition, high))
                    continue
                if high > low:
                    self._targets[name, partition] = high
                parts.append(TopicPartition(name, partition, low))
        consumer.assign(parts)

    def _partitions(self, consumer: Consumer) -> dict[str, int]:
        topics = consumer.list_topics(timeout=CALL_TIMEOUT_S).topics
        return {name: len(topics[name].partitions) for name in self._specs if name in topics}

    def _follow_new_partitions(self, consumer: Consumer) -> None:
        try:
            have = {(tp.topic, tp.partition) for tp in consumer.assignment()}
            new = [
                TopicPartition(name, p, OFFSET_BEGINNING)
                for name, count in self._partitions(consumer).items()
                for p in range(count)
                if (name, p) not in have
            ]
        except KafkaException:
            return  # the broker is away; next time
        if new:
            consumer.incremental_assign(new)

    def _decode(self, messages: Sequence[Any]) -> list[Change]:
        changes: list[Change] = []
        for message in messages:
            topic, key, value = message.topic(), message.key(), message.value()
            if message.error() is not None:
                # Compaction may have taken the last records before the end: only the end itself tells.
                if message.error().code() == PARTITION_EOF:
                    self._reached(topic, message.partition(), message.offset())
                continue  # librdkafka tries again by itself
            self._reached(topic, message.partition(), message.offset() + 1)
            if key is None:
                continue
            try:
                decoded = None if value is None else avro.decode(self._specs[topic].record, value)
                changes.append((topic, key.decode(), decoded))
            except (WireError, UnicodeDecodeError) as exc:
                _LOG.warning("skipped %s[%d]@%d: %s", topic, message.partition(), message.offset(), exc)
        return changes

    def _reached(self, topic: str, partition: int, offset: int) -> None:
        target = self._targets.get((topic, partition))
        if target is not None and offset >= target:
            del self._targets[topic, partition]

    def _tell_if_caught_up(self, told: bool) -> bool:
        if not told and not self._targets:
            self._post(self._ready)
            return True
        return told

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    def _apply(self, changes: list[Change], tell: bool) -> None:
        for topic, key, value in changes:
            self._views[topic].apply(key, value, tell=tell)

    def _ready(self) -> None:
        if self._caught_up is not None and not self._caught_up.done():
            self._caught_up.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._caught_up is not None and not self._caught_up.done():
            self._caught_up.set_exception(error)
        else:
            _LOG.error("tables are no longer followed: %s", error)
