"""The gateway's side of the data path against an agent that speaks the real frames over a real socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import RFC_4122, UUID

import pytest

from infra.clock import unix_ms
from infra.wire import FrameConnection, Server, connect
from router.agents import AgentPool
from router.counts import Counts
from router.dispatch import Dispatcher, RequestIds
from router.functions import Resolver
from schemas.errors import AgentUnavailable, WireError
from schemas.frames import Flow, Kind, Result, decode_invoke, encode_result, parse_json
from schemas.ids import FunctionKey
from schemas.records import FunctionConfig, FunctionRecord, Member
from schemas.runstatus import RunStatus

KEY = b"k" * 32
FUNCTION = FunctionKey("1250000000", "default", "echo")
MEMORY_MIB = 128


def record(status: str = "Active", *, serving: bool = True) -> FunctionRecord:
    config = FunctionConfig("$LATEST", "ab" * 32, 10, "index.main_handler", "Python3.10", MEMORY_MIB, 3, 65)
    return FunctionRecord(
        1,
        FUNCTION.appid,
        "1",
        FUNCTION.namespace,
        FUNCTION.name,
        "lam-1",
        status,
        "",
        0,
        0,
        0,
        "c",
        config if serving else None,
    )


class Agent:
    """Answers INVOKE as told: echo, or silence."""

    def __init__(self) -> None:
        self.flows: list[dict[str, Any]] = []
        self.events: list[bytes] = []
        self.silent = False
        self.connections: list[FrameConnection] = []

    def open(self, _peer: dict[str, Any]) -> Any:
        return self.frames, lambda _c, _e: None

    def frames(self, connection: FrameConnection, frames: list[tuple[int, bytes]]) -> None:
        if connection not in self.connections:
            self.connections.append(connection)
        for kind, payload in frames:
            if kind == Kind.FLOW:
                self.flows.append(parse_json(payload)[1])
            if kind == Kind.INVOKE:
                call = decode_invoke(payload)
                self.events.append(call.event)
                if not self.silent:
                    connection.send(encode_result(Result(call.corr, 200, 1, 0, 5, 6, 7, b"", call.event)))


@asynccontextmanager
async def fabric(
    records: dict[str, FunctionRecord], *, limit: int = 1000
) -> AsyncIterator[tuple[Agent, Dispatcher, AgentPool, Counts]]:
    agent = Agent()
    server = Server(f"unix:@penstock-test-{os.getpid()}-{id(agent)}", KEY, {"kind": "agent"}, agent.open)
    server.start()
    counts = Counts(quota_mib=limit * MEMORY_MIB)
    pool = AgentPool(KEY, {"kind": "gateway"}, lambda: dispatcher.agents_changed())  # noqa: PLW0108 - made below
    dispatcher = Dispatcher(Resolver(records, region="ap-guangzhou"), counts, pool)
    running = asyncio.get_running_loop().create_task(pool.run())
    member = Member("agent", "a", "h", "z", server.address, 1, unix_ms())
    pool.member_changed("agent/a", member)
    try:
        yield agent, dispatcher, pool, counts
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        pool.close()
        await server.close()


async def call(
    dispatcher: Dispatcher, event: bytes, function: FunctionKey = FUNCTION, flow: Flow | None = None
) -> Result:
    answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    dispatcher.submit(function, "$LATEST", event, flow=flow, attempt=1, flags=0, done=answer.set_result)
    return await asyncio.wait_for(answer, 5)


async def test_a_call_made_before_the_agent_is_connected_waits_for_it_and_is_counted_out() -> None:
    async with fabric({str(FUNCTION): record()}) as (_agent, dispatcher, _pool, counts):
        result = await call(dispatcher, b'{"a":1}')
        assert (result.status, result.body) == (200, b'{"a":1}')
        (window,) = counts.close_windows(gateway="g", term=1, number=1, unix_ms=0, span_ms=250)
        assert (window.arrivals, window.completed, window.in_flight, window.cold) == (1, 1, 0, (0, 1, 0, 0, 0, 0))


async def test_a_large_event_comes_back_whole() -> None:
    async with fabric({str(FUNCTION): record()}) as (_agent, dispatcher, _pool, _counts):
        event = os.urandom(3_000_000).hex().encode()
        assert (await call(dispatcher, event)).body == event


@pytest.mark.parametrize(
    ("known", "status"),
    [
        ({}, RunStatus.NO_FUNCTION),
        ({str(FUNCTION): record("Creating", serving=False)}, RunStatus.FUNCTION_STATE),
        ({str(FUNCTION): record("Deleting")}, RunStatus.FUNCTION_STATE),
    ],
)
async def test_a_function_that_cannot_run_is_answered_with_its_status(
    known: dict[str, FunctionRecord], status: RunStatus
) -> None:
    async with fabric(known) as (_agent, dispatcher, _pool, _counts):
        assert (await call(dispatcher, b"{}")).status == status


async def test_the_tenant_limit_refuses_the_call_above_it_and_lets_in_again_after() -> None:
    async with fabric({str(FUNCTION): record()}, limit=2) as (agent, dispatcher, _pool, _counts):
        await call(dispatcher, b"{}")
        agent.silent = True
        for _ in range(2):
            dispatcher.submit(FUNCTION, "$LATEST", b"{}", flow=None, attempt=1, flags=0, done=lambda _r: None)
        assert (await call(dispatcher, b"{}")).status == RunStatus.CONCURRENCY


async def test_at_the_limit_what_a_lane_sends_waits_for_its_turn_and_is_refused_when_that_does_not_come() -> None:
    async with fabric({str(FUNCTION): record()}, limit=1) as (agent, dispatcher, _pool, counts):
        await call(dispatcher, b"{}")
        agent.silent = True
        dispatcher.submit(FUNCTION, "$LATEST", b"{}", flow=None, attempt=1, flags=0, done=lambda _r: None)
        loop = asyncio.get_running_loop()
        lane = loop.create_task(call(dispatcher, b'"lane"', flow=Flow("t", 0, 1)))
        await asyncio.sleep(0)
        assert (await call(dispatcher, b'"api"')).status == RunStatus.CONCURRENCY
        assert not lane.done()
        agent.silent = False
        agent.connections[0].close()
        assert (await lane).status == 200
        agent.silent = True
        dispatcher.submit(FUNCTION, "$LATEST", b"{}", flow=None, attempt=1, flags=0, done=lambda _r: None)
        lane = loop.create_task(call(dispatcher, b'"lane"', flow=Flow("t", 0, 1)))
        while not lane.done():
            dispatcher.tick()
            await asyncio.sleep(0.01)
        assert lane.result().status == RunStatus.CONCURRENCY
        (window,) = counts.close_windows(gateway="g", term=1, number=1, unix_ms=0, span_ms=250)
        assert (window.arrivals, window.throttled) == (6, 2)


async def test_calls_out_when_the_connection_breaks_are_answered_500_and_the_pool_connects_again() -> None:
    async with fabric({str(FUNCTION): record()}) as (agent, dispatcher, _pool, _counts):
        await call(dispatcher, b"{}")
        agent.silent = True
        pending = asyncio.get_running_loop().create_task(call(dispatcher, b'"lost"'))
        while b'"lost"' not in agent.events:
            await asyncio.sleep(0.005)
        agent.connections[0].close()
        assert (await pending).status == RunStatus.INTERNAL
        agent.silent = False
        assert (await call(dispatcher, b"{}")).status == 200


async def test_a_flow_is_declared_once_per_epoch() -> None:
    async with fabric({str(FUNCTION): record()}) as (agent, dispatcher, _pool, _counts):
        for epoch in (1, 1, 2, 2):
            await call(dispatcher, b"{}", flow=Flow("t", 0, epoch))
        assert [f["epoch"] for f in agent.flows] == [1, 2]


async def test_a_peer_without_the_key_gets_no_connection() -> None:
    agent = Agent()
    server = Server(f"unix:@penstock-test-key-{os.getpid()}", KEY, {"kind": "agent"}, agent.open)
    server.start()
    with pytest.raises((WireError, AgentUnavailable)):
        await connect(server.address, b"x" * 32, {}, lambda _c, _f: None, lambda _c, _e: None)
    assert agent.connections == []
    await server.close()


def test_request_ids_are_version_4_uuids_and_differ() -> None:
    ids = RequestIds(ahead=8)
    made = [UUID(bytes=ids.next()) for _ in range(100)]
    assert len(set(made)) == 100
    assert {(u.version, u.variant) for u in made} == {(4, RFC_4122)}
