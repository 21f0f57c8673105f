"""Workers that are kept ready because somebody asked for it (PutProvisionedConcurrencyConfig): this agent follows the provisions' topic, keeps
its part of each, and says how far it is.

Agents divide a provision among themselves: each takes its part by its place among the live ones, and takes another when one comes or goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from infra.clock import unix_ms
from sandbox.agent.functionpool import FunctionPool
from sandbox.agent.host import Host
from sandbox.agent.membership import RecordSink
from schemas import avro
from schemas.concurrency import ProvisionRecord, ProvisionStatus
from schemas.frames import Spec
from schemas.records import Member
from schemas.specs import spec_of_config
from schemas.topics import PROVISION_STATUS

LOOK_S: Final = 0.1
ALIVE_MS: Final = 15_000
"""An agent whose last heartbeat is older keeps nothing."""


def part_of(target: int, agents: Collection[str], me: str) -> int:
    """How many of `target` workers are mine; over all agents, `me` among them, they add up to the target."""
    ordered = sorted(agents)
    each, rest = divmod(target, len(ordered))
    return each + (ordered.index(me) < rest)


@dataclass(slots=True)
class _Held:
    record: ProvisionRecord
    spec: Spec
    part: int
    pool: FunctionPool | None
    said: ProvisionStatus | None = None


class Provisions:
    """The provisions of this agent."""

    def __init__(self, host: Host, sink: RecordSink, *, member_id: str, term: int, region: str) -> None:
        self._host, self._sink = host, sink
        self._me, self._term, self._region = member_id, term, region
        self._records: dict[str, ProvisionRecord] = {}
        self._members: dict[str, Member] = {}
        self._held: dict[str, _Held] = {}

    def provision_changed(self, key: str, record: ProvisionRecord | None) -> None:
        """Feed of the provisions' table."""
        if record is None:
            self._records.pop(key, None)
        else:
            self._records[key] = record

    def member_changed(self, key: str, member: Member | None) -> None:
        """Feed of the membership table; other kinds than agent are ignored."""
        if not key.startswith("agent/"):
            return
        if member is None:
            self._members.pop(member_id(key), None)
        else:
            self._members[member_id(key)] = member

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Have the host keep what is to be kept now, and tell what has changed."""
        now_ms = unix_ms()
        agents = {name for name, member in self._members.items() if now_ms - member.unix_ms < ALIVE_MS} | {self._me}
        for key in [key for key in self._held if key not in self._records]:
            self._let_go(key)
        for key, record in self._records.items():
            held = self._keep(key, record, part_of(record.target, agents, self._me))
            self._tell(key, held, now_ms)

    def _keep(self, key: str, record: ProvisionRecord, mine: int) -> _Held:
        held = self._held.get(key)
        if held is None or held.record is not record:
            spec = spec_of_config(
                record.config, appid=record.appid, uin=record.uin, namespace=record.namespace,
                function=record.function, region=self._region,
            )  # fmt: skip
            said = None if held is None else held.said
            if held is not None and held.pool is not None and (held.spec != spec or not mine):
                self._host.let_go(held.pool)
            held = self._held[key] = _Held(record, spec, mine, self._pool(spec, mine), said)
        elif held.part != mine or (held.pool is not None and _may_have_more(held.pool, mine)):
            if held.pool is not None and not mine:
                self._host.let_go(held.pool)
            held.part, held.pool = mine, self._pool(held.spec, mine)
        return held

    def _pool(self, spec: Spec, mine: int) -> FunctionPool | None:
        return self._host.keep(spec, mine) if mine else None

    def _let_go(self, key: str) -> None:
        pool = self._held[key].pool
        if pool is not None:
            self._host.let_go(pool)
        if self._sink.send_nowait(PROVISION_STATUS, key=self._key(key), value=None):
            del self._held[key]

    def _tell(self, key: str, held: _Held, now_ms: int) -> None:
        ready, reason, failed = self._state(held)
        status = ProvisionStatus(self._me, self._term, held.record.applied, held.part, ready, reason[:1_000], failed, 0)
        if status != held.said and self._sink.send_nowait(
            PROVISION_STATUS, key=self._key(key), value=avro.encode(replace(status, unix_ms=now_ms))
        ):
            held.said = status

    def _state(self, held: _Held) -> tuple[int, str, bool]:
        """How many are ready, why not all are, and whether waiting alone won't help."""
        pool, mine = held.pool, held.part
        if pool is None or pool.ready >= mine:
            return mine, "", False
        if pool.kept < mine:
            has_mib = self._host.limits.kept_mib
            return (
                pool.ready,
                f"host {self._me} has {has_mib} MB for workers that are kept ready, and that is taken",
                True,
            )
        if not pool.kept_why and not pool.starting:
            facts = self._host.facts()
            size = f"{facts['used_mib']} of {facts['budget_mib']} MB"
            return pool.ready, f"waiting for memory: on host {self._me} {size} for workers are in use", False
        return pool.ready, pool.kept_why, bool(pool.kept_why)

    def _key(self, key: str) -> bytes:
        return f"{self._me}/{key}".encode()


def _may_have_more(pool: FunctionPool, mine: int) -> bool:
    """True when the host had too little room; a function that was released is about to lose its provisions."""
    return pool.kept < mine and not pool.superseded


def member_id(key: str) -> str:
    """Of an agent, from the key of its row in the membership topic."""
    return key.partition("/")[2]
