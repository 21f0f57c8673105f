"""The agent's heartbeat on the membership topic: where it listens, since when, and for people what it holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final, Protocol

from infra.clock import unix_ms
from infra.telemetry import get_logger
from schemas import avro, topics
from schemas.errors import PenstockError
from schemas.records import Member

log = get_logger("sandbox.membership")

HEARTBEAT_S: Final = 2.0
SEND_TIMEOUT_S: Final = 5.0


class RecordSink(Protocol):
    """Writes acknowledged records; infra.kafka.producer.Producer is one."""

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, timeout_s: float) -> object:
        """Raises BrokerUnavailable."""

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        """False when its buffer is full."""


class Membership:
    """Announces one agent. `term` is the unix millisecond of its start."""

    def __init__(
        self, sink: RecordSink, *, member_id: str, host: str, zone: str, facts: Callable[[], dict[str, Any]]
    ) -> None:
        self._sink, self._facts = sink, facts
        self._member_id, self._host, self._zone = member_id, host, zone
        self.term = unix_ms()

    async def run(self, address: str) -> None:
        """Announce now and at every heartbeat, until cancelled. A broker that is away is tried again at the next one."""
        while True:
            try:
                await self._sink.send(
                    topics.MEMBERS, key=self._key, value=avro.encode(self._record(address)), timeout_s=SEND_TIMEOUT_S
                )
            except PenstockError as exc:
                log.warning("a heartbeat was not sent", reason=str(exc))
            await asyncio.sleep(HEARTBEAT_S)

    async def leave(self) -> None:
        """Say that this agent is gone."""
        try:
            await self._sink.send(topics.MEMBERS, key=self._key, value=None, timeout_s=SEND_TIMEOUT_S)
        except PenstockError as exc:
            log.warning("the membership topic could not be told of our end", reason=str(exc))

    @property
    def _key(self) -> bytes:
        return f"agent/{self._member_id}".encode()

    def _record(self, address: str) -> Member:
        detail = json.dumps(self._facts(), separators=(",", ":"))
        return Member("agent", self._member_id, self._host, self._zone, address, self.term, unix_ms(), detail)
