"""Asynchronous events in Kafka: accepted durably, looked up by a scan of their states, and the way out for those that ran."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from infra.kafka.admin import Admin
from infra.kafka.consumer import Record
from infra.kafka.producer import Headers, Producer
from infra.kafka.scan import Scanner
from infra.telemetry import get_logger
from ingest.events.runner import status_of
from schemas import avro, topics
from schemas.errors import BrokerUnavailable, UserError, WireError
from schemas.events import AsyncEvent, EventState, EventStatus, Termination
from schemas.ids import FunctionKey

SEND_S: Final = 5.0
ERROR_BYTES: Final = 8 * 1024

log = get_logger("ingest.events")


class KafkaOutlet:
    """`ingest.events.runner.Outlet`, and where new events are written."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def new(self, event: AsyncEvent, now_ms: int) -> None:
        """It is accepted when this returns. Raises BrokerUnavailable; then it may be, or not."""
        await asyncio.gather(
            self._write(topics.EVENTS_NEW, event), self.status(status_of(event, EventState.RUNNING, now_ms))
        )

    async def later(self, event: AsyncEvent) -> None:
        """See the port."""
        await self._write(topics.EVENTS_LATER, event)

    async def crowded(self, event: AsyncEvent) -> None:
        """See the port. Events of a function stand in one partition, so that crowds of other functions don't wait behind it."""
        await self._write(topics.EVENTS_CROWDED, event, partition=partition_of(str(event.key)))

    async def dead(self, event: AsyncEvent, status: int, error: bytes) -> None:
        """See the port."""
        headers = (
            ("penstock-reason", str(status).encode()),
            ("penstock-error", error[:ERROR_BYTES]),
            ("penstock-function", str(event.key).encode()),
            ("penstock-request-id", event.request_id.encode()),
        )
        await self._write(topics.EVENTS_DEAD, event, headers=headers)

    async def status(self, status: EventStatus) -> None:
        """See the port."""
        await self._send(topics.EVENTS_STATUS, status.request_id, avro.encode(status), partition_of(status.key))

    async def terminate(self, wish: Termination) -> None:
        """Tell all gateways. Raises BrokerUnavailable."""
        await self._send(topics.TERMINATIONS, wish.request_id, avro.encode(wish), None)

    async def _write(
        self, topic: str, event: AsyncEvent, *, partition: int | None = None, headers: Headers = ()
    ) -> None:
        await self._send(topic, event.request_id, avro.encode(event), partition, headers)

    async def _send(self, topic: str, key: str, value: bytes, partition: int | None, headers: Headers = ()) -> None:
        try:
            await self._producer.send(
                topic, key=key.encode(), value=value, partition=partition, headers=headers, timeout_s=SEND_S
            )
        except UserError as exc:  # topics and sizes are ours
            raise BrokerUnavailable(f"{topic}: {exc}") from exc


def partition_of(function: str) -> int:
    """Where a function's records stand, in topics where that counts."""
    return crc32(function.encode()) % topics.CONTROL_PARTITIONS


@dataclass(slots=True)
class _Newest:
    """The newest state of each event of a tenant, or of one of its functions. Used in the scanner's thread."""

    prefix: str
    request_id: str
    found: dict[str, EventStatus] = field(default_factory=dict)

    def visit(self, record: Record) -> bool:
        """Take a record in."""
        if record.value is None or (self.request_id and record.key != self.request_id.encode()):
            return True
        try:
            status = avro.decode(EventStatus, record.value)
        except WireError as exc:
            log.warning("event state skipped", offset=record.offset, error=str(exc))
            return True
        if f"{status.key}/".startswith(self.prefix):
            self.found[status.request_id] = status
        return True


class KafkaEvents:
    """`ingest.api.ports.EventLog`."""

    def __init__(self, outlet: KafkaOutlet, admin: Admin, scanner: Scanner) -> None:
        self._outlet, self._admin, self._scanner = outlet, admin, scanner

    async def accept(self, event: AsyncEvent, now_ms: int) -> None:
        """See the port."""
        await self._outlet.new(event, now_ms)

    async def terminate(self, wish: Termination) -> None:
        """See the port."""
        await self._outlet.terminate(wish)

    async def find(self, appid: str, request_id: str) -> EventStatus | None:
        """See the port."""
        found = await self._scan(_Newest(f"{appid}/", request_id), None)
        return found.get(request_id)

    async def of(self, key: FunctionKey, request_id: str = "") -> list[EventStatus]:
        """See the port."""
        return list((await self._scan(_Newest(f"{key}/", request_id), partition_of(str(key)))).values())

    async def _scan(self, newest: _Newest, only: int | None) -> dict[str, EventStatus]:
        await self._scanner.newest(self._admin, topics.EVENTS_STATUS, newest.visit, only=only)
        return newest.found
