"""The nodes of this host: one per tenant, made when first needed, made again when it died, closed when long unused."""

from __future__ import annotations

import asyncio
from typing import Final

from infra.clock import mono_s
from infra.telemetry import get_logger
from sandbox.driver import Node, NodeDriver
from schemas.errors import PenstockError

log = get_logger("sandbox.nodes")

UNUSED_S: Final = 300.0
MAKE_TIMEOUT_S: Final = 30.0


class _Held:
    __slots__ = ("last_used", "node", "users")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.users = 0
        self.last_used = mono_s()


class NodeLease:
    """The right to use a node: it stays open until `release`. `made` tells that it was not there before."""

    __slots__ = ("_held", "made")

    def __init__(self, held: _Held, *, made: bool) -> None:
        self._held: _Held | None = held
        self.made = made
        held.users += 1

    @property
    def node(self) -> Node:
        """The node; only before `release`."""
        assert self._held is not None
        return self._held.node

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        held, self._held = self._held, None
        if held is not None:
            held.users -= 1
            held.last_used = mono_s()


class Nodes:
    """Opens and closes nodes by a driver."""

    def __init__(self, driver: NodeDriver) -> None:
        self._driver = driver
        self._held: dict[str, _Held] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._held)

    async def hold(self, tenant: str) -> NodeLease:
        """The tenant's node, made when there is none; raises WorkerStartFailed."""
        made = False
        while (held := self._held.get(tenant)) is None or not held.node.alive:
            made = True
            await self._make(tenant)
        return NodeLease(held, made=made)

    async def _make(self, tenant: str) -> None:
        task = self._making.get(tenant)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._create(tenant))
            self._making[tenant] = task
            task.add_done_callback(lambda done: self._made(tenant, done))
        await asyncio.shield(task)  # a caller that is cancelled must not take the node away from the others

    def _made(self, tenant: str, task: asyncio.Task[None]) -> None:
        self._making.pop(tenant, None)
        if not task.cancelled():
            task.exception()  # seen, also when every caller was cancelled

    async def _create(self, tenant: str) -> None:
        old = self._held.pop(tenant, None)
        if old is not None:
            log.warning("a node died", tenant=tenant)
            await _close(old.node)
        async with asyncio.timeout(MAKE_TIMEOUT_S):
            node = await self._driver.create_node(tenant)
        self._held[tenant] = _Held(node)

    def close_unused(self, now: float) -> None:
        """Close nodes that nobody has used for UNUSED_S."""
        for tenant, held in list(self._held.items()):
            if held.users == 0 and now - held.last_used > UNUSED_S:
                del self._held[tenant]
                task = asyncio.get_running_loop().create_task(_close(held.node))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, *self._closing, return_exceptions=True)
        held, self._held = list(self._held.values()), {}
        await asyncio.gather(*(_close(h.node) for h in held))


async def _close(node: Node) -> None:
    try:
        await node.close()
    except (PenstockError, OSError) as exc:
        log.warning("a node did not close cleanly", tenant=node.tenant, reason=str(exc))
