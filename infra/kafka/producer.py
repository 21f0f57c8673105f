"""Writing to Kafka from an event loop: acknowledged sends as awaitables, in batches across the thread border."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as Librdkafka

from infra.kafka.clients import UNKNOWN_TOPIC, Cluster, unavailable
from schemas.errors import BrokerUnavailable, UserError

Headers = Sequence[tuple[str, bytes | None]]
_POLL_S = 0.05


class Delivered(NamedTuple):
    """Where an acknowledged record stands."""

    partition: int
    offset: int


class Producer:
    """One librdkafka producer (acks=all, idempotent) and the thread that polls it.

    Delivery reports reach the loop in batches, one call per poll round. After the broker was away sending works again by itself.
    """

    def __init__(self, cluster: Cluster, *, client_id: str, linger_ms: float = 1.0, buffered: int = 100_000) -> None:
        self.failed = 0
        """Records of `send_nowait` that were not delivered."""
        self._config = cluster.config(
            client_id=client_id,
            linger_ms=linger_ms,
            acks="all",
            enable_idempotence=True,
            message_timeout_ms=30_000,
            queue_buffering_max_messages=buffered,
            message_max_bytes=10_000_000,
            compression_type="lz4",
        )
        self._client: Librdkafka | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._reports: list[tuple[asyncio.Future[Delivered], KafkaError | None, int, int]] = []
        self._lock = threading.Lock()

    async def start(self) -> None:
        """Make the client and its thread; does not wait for the broker."""
        self._loop = asyncio.get_running_loop()
        self._client = Librdkafka(self._config)
        self._thread = threading.Thread(target=self._run, name="kafka-producer", daemon=True)
        self._thread.start()

    async def close(self, timeout_s: float = 10.0) -> int:
        """Flush within the time-out and end; how many records were not delivered."""
        if self._client is None or self._thread is None:
            return 0
        left = await asyncio.to_thread(self._client.flush, timeout_s)
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, 5.0)
        self._resolve()
        return int(left)

    async def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
        timeout_s: float = 10.0,
    ) -> Delivered:
        """Write one record and wait for all replicas.

        Raises:
            BrokerUnavailable: no acknowledgement in time; the record may still arrive.
            UserError: the broker will never take it (too large, unknown topic).
        """
        answer: asyncio.Future[Delivered] = asyncio.get_running_loop().create_future()

        def report(error: KafkaError | None, message: Any) -> None:
            with self._lock:
                first = not self._reports
                self._reports.append((answer, error, message.partition() or 0, message.offset() or 0))
            if first and self._loop is not None:
                self._loop.call_soon_threadsafe(self._resolve)

        self._produce(topic, key, value, headers, partition, timestamp_ms, report)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as exc:
            raise BrokerUnavailable(f"Kafka: no acknowledgement for {topic} within {timeout_s:g} s") from exc

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = ()) -> bool:
        """Write one record without waiting; False when the buffer is full. A failure later is counted in `failed`."""
        try:
            self._produce(topic, key, value, headers, None, None, self._count)
        except (BrokerUnavailable, UserError):
            self.failed += 1
            return False
        return True

    def _produce(  # noqa: PLR0917 - one inner call, mirrors send
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        partition: int | None,
        timestamp_ms: int | None,
        report: Any,
    ) -> None:
        if self._client is None:
            raise BrokerUnavailable("Kafka: the producer is not started")
        optional: dict[str, Any] = {}
        if partition is not None:
            optional["partition"] = partition
        if timestamp_ms is not None:
            optional["timestamp"] = timestamp_ms
        if headers:
            optional["headers"] = list(headers)
        try:
            self._client.produce(topic, value=value, key=key, on_delivery=report, **optional)
        except BufferError as exc:
            raise BrokerUnavailable("Kafka: the producer's buffer is full") from exc
        except KafkaException as exc:
            if exc.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise UserError(f"record for {topic} is too large for Kafka") from exc
            raise unavailable(f"produce to {topic}", exc) from exc

    def _count(self, error: KafkaError | None, _message: Any) -> None:
        if error is not None:
            self.failed += 1

    def _run(self) -> None:
        client = self._client
        while client is not None and not self._stopping.is_set():
            client.poll(_POLL_S)

    def _resolve(self) -> None:
        with self._lock:
            reports, self._reports = self._reports, []
        for answer, error, partition, offset in reports:
            if answer.done():
                continue
            if error is None:
                answer.set_result(Delivered(partition, offset))
            elif error.code() in (
                KafkaError.MSG_SIZE_TOO_LARGE,
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                UNKNOWN_TOPIC,
            ):
                answer.set_exception(UserError(f"Kafka refused the record: {error.str()}"))
            else:
                answer.set_exception(BrokerUnavailable(f"Kafka: record not delivered: {error.str()}"))
