"""`SourceAdmin` over infra's Kafka door: the fabric's own cluster and the ones that triggers name."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from ingest.api.ports import Position
from schemas.errors import BrokerUnavailable
from schemas.topics import HOUR_MS

CALL_S: Final = 1.6
"""Of each call to a broker; the door allows three of them for one question, so a dead cluster is known within 5 s."""
CLUSTERS: Final = 32
DEAD_LETTER_CONFIG: Final = {"retention.ms": str(14 * 24 * HOUR_MS), "max.message.bytes": str(10 * 1024 * 1024)}
"""Dead letters are kept for 14 days. A record as large as Penstock's producer sends fits, whatever the cluster's default is."""


class KafkaSources:
    """One admin client per cluster, made when first asked; the longest unused are let go."""

    def __init__(self, own: Cluster) -> None:
        self._own = own
        self._admins: OrderedDict[str, Admin] = OrderedDict()

    async def partitions(self, bootstrap_servers: str, topic: str) -> int | None:
        """How many partitions, or None when there is no such topic."""
        facts = await self._admin(bootstrap_servers).topic(topic)
        return facts.partitions if facts is not None else None

    async def pin_offsets(self, bootstrap_servers: str, group: str, topic: str, start: str) -> None:
        """Commit the group's beginning, in partitions where it has not begun."""
        admin = self._admin(bootstrap_servers)
        if start == "latest":
            offsets = await admin.end_offsets(topic)
        elif start == "earliest":
            offsets = await admin.start_offsets(topic)
        else:
            offsets = await admin.offsets_at(topic, int(start))
        begun = await admin.committed(group, topic)
        if missing := {p: offset for p, offset in offsets.items() if p not in begun}:
            await admin.commit_offsets(group, topic, missing)

    async def positions(self, bootstrap_servers: str, group: str, topic: str) -> Mapping[int, Position]:
        """Committed and end offset of every partition, now."""
        admin = self._admin(bootstrap_servers)
        committed, ends = await asyncio.gather(admin.committed(group, topic), admin.end_offsets(topic))
        starts = await admin.start_offsets(topic) if ends.keys() - committed.keys() else {}
        return {
            p: Position(committed[p].offset if p in committed else starts.get(p, 0), end)
            for p, end in sorted(ends.items())
        }

    async def make_dead_letter_topic(self, topic: str, partitions: int) -> None:
        """Create it on the fabric's cluster when it isn't there."""
        await self._admin(self._own.bootstrap_servers).create_topic(topic, partitions, DEAD_LETTER_CONFIG)

    async def delete_group(self, bootstrap_servers: str, group: str) -> bool:
        """True when it is gone.

        A client that asked while the broker was away may go on waiting for the group's old coordinator: the next question is another's.
        """
        try:
            return await self._admin(bootstrap_servers).delete_group(group)
        except BrokerUnavailable:
            if (admin := self._admins.pop(bootstrap_servers, None)) is not None:
                admin.close()
            raise

    def close(self) -> None:
        """Let all clients go."""
        for admin in self._admins.values():
            admin.close()
        self._admins.clear()

    def _admin(self, bootstrap_servers: str) -> Admin:
        admin = self._admins.get(bootstrap_servers)
        if admin is None:
            # The own cluster's options (its credentials) go to no other.
            own = bootstrap_servers in ("", self._own.bootstrap_servers)
            admin = self._admins[bootstrap_servers] = Admin(
                self._own if own else Cluster(bootstrap_servers), timeout_s=CALL_S
            )
            if len(self._admins) > CLUSTERS:
                self._admins.popitem(last=False)[1].close()
        self._admins.move_to_end(bootstrap_servers)
        return admin
