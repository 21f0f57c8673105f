"""The trigger module: what must be there before a trigger's records flow, and what goes after it. A consumer of its own step topic, idempotent."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from infra.steps import StepRetry
from schemas.errors import BrokerUnavailable
from schemas.ids import FunctionKey, TriggerKey, dead_letter_topic
from schemas.records import KafkaSource, StatusReason, StepCommand

DEAD_LETTER_PARTITIONS: Final = 12
"""At most so many partitions in a dead-letter topic."""
BROKER_S: Final = 3.0
"""How long the brokers of a source have, in all: what is left of CreateTrigger's 5 s is for its record."""
Reasons = tuple[StatusReason, ...]


class Sources(Protocol):
    """`ingest.api.ports.SourceAdmin`, as far as it is needed."""

    async def partitions(self, bootstrap_servers: str, topic: str) -> int | None:
        """How many partitions the topic has, or None when there is no such topic."""
        ...

    async def pin_offsets(self, bootstrap_servers: str, group: str, topic: str, start: str) -> None:
        """Commit where the group begins, in partitions where it has not begun."""
        ...

    async def make_dead_letter_topic(self, topic: str, partitions: int) -> None:
        """Create it on the fabric's own cluster when it isn't there."""
        ...

    async def delete_group(self, bootstrap_servers: str, group: str) -> bool:
        """True when the group is gone; False while it still has members."""
        ...


class TriggerModule:
    """Answers steps of module `trigger`. `bootstrap_servers` is the fabric's own cluster."""

    def __init__(self, sources: Sources, bootstrap_servers: str) -> None:
        self._sources, self._own = sources, bootstrap_servers

    async def handle(self, step: StepCommand) -> Reasons:
        """`bind`: the topic is known, start offsets are committed, dead letters have a place. `unbind`: the consumer group is gone.

        Returns:
            Why the step failed, nothing when it is done.

        Raises:
            StepRetry: try again later.
        """
        source = step.trigger.kafka if step.trigger is not None else None
        if source is None or step.operation not in ("bind", "unbind"):
            return (StatusReason("InvalidParameter", f"module trigger can't do {step.operation!r} on this"),)
        try:
            async with asyncio.timeout(BROKER_S):
                if step.operation == "bind":
                    return await self._bind(source, step.key)
                return await self._unbind(source)
        except (TimeoutError, BrokerUnavailable) as exc:
            raise StepRetry(self._unusable(source, str(exc) or f"no answer within {BROKER_S:g} s")) from exc

    async def _bind(self, source: KafkaSource, key: str) -> Reasons:
        partitions = await self._sources.partitions(source.bootstrap_servers, source.topic)
        if partitions is None:
            where = source.bootstrap_servers or self._own
            return (
                StatusReason(
                    "ResourceNotFound.Ckafka", f"topic {source.topic!r} does not exist on {where}; create it first"
                ),
            )
        await self._sources.pin_offsets(source.bootstrap_servers, source.group_id, source.topic, source.start)
        function, _, name = key.rpartition("/")
        letters = dead_letter_topic(TriggerKey(FunctionKey.parse(function), name))
        await self._sources.make_dead_letter_topic(letters, min(partitions, DEAD_LETTER_PARTITIONS))
        return ()

    async def _unbind(self, source: KafkaSource) -> Reasons:
        if not await self._sources.delete_group(source.bootstrap_servers, source.group_id):
            raise StepRetry(StatusReason("ResourceInUse", f"consumer group {source.group_id} has members still"))
        return ()

    def _unusable(self, source: KafkaSource, said: str) -> StatusReason:
        is_own = source.bootstrap_servers in ("", self._own)
        return StatusReason(
            "InternalError.Ckafka" if is_own else "InvalidParameterValue.Ckafka",
            f"Kafka can't be used at {source.bootstrap_servers or self._own}: {said};"
            f" {'see penstock status' if is_own else 'check bootstrapServers'}, then try again",
        )
