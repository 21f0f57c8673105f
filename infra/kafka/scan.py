"""Reading a stretch of one partition on demand: no group, no lasting assignment, bounded in time and bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition

from infra.kafka.clients import PARTITION_EOF, Cluster, reason
from infra.kafka.consumer import Record
from schemas.errors import BrokerUnavailable

_WAITING = 64
_BATCH = 200
_POLL_S = 0.05
NEWEST: Final = 20_000
_NEWEST_S = 5.0
_NEWEST_BYTES = 64 * 1024 * 1024


class ScanEnd(NamedTuple):
    """How far a scan came: `next_offset` was not visited; `at_end` when the partition ended there."""

    next_offset: int
    at_end: bool


class Bounds(Protocol):
    """Where partitions begin and end (infra.kafka.admin.Admin)."""

    async def start_offsets(self, topic: str) -> dict[int, int]:
        """First kept offset by partition."""
        ...

    async def end_offsets(self, topic: str) -> dict[int, int]:
        """Offset of the next record by partition."""
        ...


class Scanner:
    """A few threads, each with a Consumer of its own that is made when first needed and reads one stretch at a time."""

    def __init__(self, cluster: Cluster, *, threads: int = 2) -> None:
        self._cluster = cluster
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kafka-scan")
        self._own = threading.local()
        self._consumers: list[Consumer] = []
        self._waiting = 0

    async def scan(
        self,
        topic: str,
        partition: int,
        offset: int,
        visit: Callable[[Record], bool],
        *,
        max_bytes: int = 8 * 1024 * 1024,
        timeout_s: float = 2.0,
    ) -> ScanEnd:
        """Visit records from `offset` on (from the oldest kept, when that is gone) until the end, the bounds, or `visit` says False.

        Args:
            topic: what to read.
            partition: of it.
            offset: the first to visit.
            visit: called in the scanner's thread; the record of which it says False counts as not visited.
            max_bytes: of values.
            timeout_s: for the whole stretch; what was visited till then counts.

        Raises:
            BrokerUnavailable: nothing was heard of the broker in time, or too many scans wait.
        """
        if self._waiting >= _WAITING:
            raise BrokerUnavailable("Kafka: too many scans at once")
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s + 5.0):
                return await asyncio.get_running_loop().run_in_executor(
                    self._pool,
                    lambda: self._scan(TopicPartition(topic, partition, offset), visit, max_bytes, timeout_s),
                )
        except KafkaException as exc:
            raise BrokerUnavailable(f"Kafka: scan of {topic}[{partition}]: {reason(exc)}") from exc
        except TimeoutError as exc:
            raise BrokerUnavailable(f"Kafka: scan of {topic}[{partition}] waits too long") from exc
        finally:
            self._waiting -= 1

    async def newest(
        self, admin: Bounds, topic: str, visit: Callable[[Record], bool], *, only: int | None = None
    ) -> None:
        """Visit the newest records of each partition, at most `NEWEST` of them, or of one partition only; as `scan`, bounded and raising like it."""
        starts, ends = await asyncio.gather(admin.start_offsets(topic), admin.end_offsets(topic))
        for partition, end in ends.items():
            first = max(starts.get(partition, 0), end - NEWEST)
            if first < end and only in (None, partition):
                await self.scan(topic, partition, first, visit, max_bytes=_NEWEST_BYTES, timeout_s=_NEWEST_S)

    async def close(self) -> None:
        """End the threads and close the consumers."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
        for consumer in self._consumers:
            await asyncio.to_thread(consumer.close)

    def _consumer(self) -> Consumer:
        consumer: Consumer | None = getattr(self._own, "consumer", None)
        if consumer is None:
            consumer = self._own.consumer = Consumer(
                self._cluster.config(
                    group_id="penstock-scan",
                    enable_auto_commit=False,
                    enable_partition_eof=True,
                    auto_offset_reset="earliest",
                    fetch_wait_max_ms=20,
                    queued_max_messages_kbytes=4096,
                    queued_min_messages=1_000,
                )
            )
            self._consumers.append(consumer)
        return consumer

    def _scan(
        self, start: TopicPartition, visit: Callable[[Record], bool], max_bytes: int, timeout_s: float
    ) -> ScanEnd:
        consumer = self._consumer()
        deadline = time.monotonic() + timeout_s
        stretch = _Stretch(start.offset, visit, max_bytes)
        consumer.assign([start])
        try:
            while not stretch.done and time.monotonic() < deadline:
                first = consumer.poll(_POLL_S)
                if first is not None:
                    for message in (first, *consumer.consume(_BATCH, 0)):
                        stretch.take(message)
        finally:
            consumer.unassign()
        if not stretch.heard:
            raise BrokerUnavailable(f"Kafka: nothing heard of {start.topic}[{start.partition}] within {timeout_s:g} s")
        return ScanEnd(stretch.next_offset, stretch.at_end)


class _Stretch:
    """What one scan has seen."""

    def __init__(self, offset: int, visit: Callable[[Record], bool], max_bytes: int) -> None:
        self.next_offset = offset
        self.at_end = False
        self.heard = False
        self.done = False
        self._visit, self._left = visit, max_bytes

    def take(self, message: Any) -> None:
        """One message or event."""
        if self.done:
            return
        if message.error() is not None:
            if message.error().code() == PARTITION_EOF:
                self.heard = self.at_end = self.done = True
                self.next_offset = message.offset()
            return
        self.heard = True
        value = message.value()
        record = Record(
            message.partition(),
            message.offset(),
            message.key(),
            value,
            tuple(message.headers() or ()),
            message.timestamp()[1],
        )
        if not self._visit(record):
            self.next_offset = record.offset
            self.done = True
            return
        self.next_offset = record.offset + 1
        self._left -= len(value or b"")
        self.done = self._left <= 0
