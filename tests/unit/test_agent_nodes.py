"""Nodes of a host: one per tenant, shared by those who ask at a time, closed when long unused."""

from __future__ import annotations

import asyncio

import pytest

from infra.clock import mono_s
from sandbox.agent.nodes import UNUSED_S, Nodes
from schemas.errors import WorkerStartFailed
from tests.agent_fakes import FakeDriver, FakeNode, settle


class SlowDriver(FakeDriver):
    """Makes nodes when told."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.errors: list[Exception] = []

    async def create_node(self, tenant: str) -> FakeNode:
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop()
        return await super().create_node(tenant)


async def test_tenants_have_their_own_node_and_callers_at_a_time_share_its_making() -> None:
    driver = SlowDriver()
    nodes = Nodes(driver)
    asked = [asyncio.get_running_loop().create_task(nodes.hold(t)) for t in ("a", "a", "b")]
    await settle()
    asked[0].cancel()
    driver.gate.set()
    second, third = await asked[1], await asked[2]
    later = await nodes.hold("a")
    assert [n.tenant for n in driver.nodes] == ["a", "b"]
    assert (second.made, third.made, later.made) == (True, True, False)
    assert later.node is second.node
    await nodes.close()
    assert sorted(driver.closed_nodes) == ["a", "b"]


async def test_a_node_that_is_not_made_is_an_error_for_all_who_wait_and_tried_again_for_the_next() -> None:
    driver = SlowDriver()
    driver.errors = [WorkerStartFailed("no")]
    driver.gate.set()
    nodes = Nodes(driver)
    results = await asyncio.gather(nodes.hold("a"), nodes.hold("a"), return_exceptions=True)
    assert [type(r) for r in results] == [WorkerStartFailed, WorkerStartFailed]
    assert (await nodes.hold("a")).made


async def test_only_nodes_that_nobody_uses_for_long_are_closed() -> None:
    driver = FakeDriver()
    nodes = Nodes(driver)
    used, idle = await nodes.hold("used"), await nodes.hold("idle")
    idle.release()
    idle.release()
    nodes.close_unused(mono_s() + UNUSED_S - 10)
    assert len(nodes) == 2
    nodes.close_unused(mono_s() + UNUSED_S + 10)
    await settle()
    assert driver.closed_nodes == ["idle"]
    assert used.node.alive
    with pytest.raises(AssertionError):
        _ = idle.node
