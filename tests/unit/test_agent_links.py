"""Calls that are cancelled, connections that break, an agent that stops; and what user code is told of itself."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.agent.host import HostLimits
from sandbox.agent.starting import context_of, environment_of
from sandbox.driver import WorkerExit
from sandbox.pool import PoolLimits
from schemas.errors import WireError
from schemas.frames import Flow, Kind, frame
from tests.agent_fakes import SPEC, FakeAgent, FakeWorker, settle, until

LIMITS = HostLimits(budget_mib=10_000, pool=PoolLimits(queue_calls=50))


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    made = FakeAgent(tmp_path / "code", LIMITS)
    await made.cache.start()
    yield made
    made.driver.fork_gate.set()
    await made.host.close(0)
    assert made.driver.live == []
    assert all(w.closed for w in made.driver.workers), "a worker's descriptors were kept"


def echo_at_once(agent: FakeAgent) -> None:
    agent.driver.on_run = lambda played: played.finish()


def use(agent: FakeAgent, **limits: object) -> None:
    agent.host.limits = dataclasses.replace(LIMITS, **limits)  # type: ignore[arg-type]


def error(body: bytes) -> tuple[int, str]:
    said = json.loads(body)
    return said["statusCode"], said["errorMessage"]


async def warmed(agent: FakeAgent, flow: Flow | None) -> FakeWorker:
    """One worker whose pool knows that the handler is quick."""
    gateway = agent.gateway()
    echo_at_once(agent)
    for _ in range(20):
        corr = gateway.invoke(flow=flow)
        await until(lambda corr=corr: corr in gateway.results)  # type: ignore[misc]
    agent.driver.on_run = lambda _: None
    agent.driver.begun.clear()
    (only,) = agent.driver.live
    return only


async def test_a_queued_call_is_cancelled_at_once_and_a_running_one_by_its_workers_death(agent: FakeAgent) -> None:
    use(agent, budget_mib=128)
    gateway = agent.gateway()
    runs, waits = gateway.invoke_all([None, None])
    await until(lambda: agent.driver.begun)
    gateway.cancel(waits)
    assert gateway.results[waits].status == 499
    gateway.cancel(runs)
    await until(lambda: runs in gateway.results)
    assert gateway.results[runs].status == 499
    assert agent.driver.workers[0].killed
    gateway.cancel(runs)
    gateway.cancel(12345)


async def test_a_call_cancelled_behind_another_is_ended_when_its_turn_comes(agent: FakeAgent) -> None:
    played = await warmed(agent, None)
    gateway = agent.gateway()
    ends, cancelled, last = gateway.invoke_all([0, 1, 2])
    await until(lambda: len(played.given) == 3)
    gateway.cancel(cancelled)
    await settle()
    assert played in agent.driver.live
    assert cancelled not in gateway.results
    played.finish()
    await until(lambda: cancelled in gateway.results, within_s=1)  # long before its time limit
    assert played.killed
    await until(lambda: agent.driver.begun[-1].event == b"2")
    agent.driver.live[0].finish()
    await until(lambda: last in gateway.results)
    assert [gateway.results[c].status for c in (ends, cancelled, last)] == [200, 499, 200]


async def test_a_call_that_may_run_unseen_is_ended_at_once(agent: FakeAgent) -> None:
    flow = Flow("t", 0, 1)
    played = await warmed(agent, flow)
    agent.driver.holds_back = True
    gateway = agent.gateway()
    first, cancelled = gateway.invoke_all([0, 1], flow=flow)
    await until(lambda: len(played.given) == 2)
    played.finish()
    await settle()
    assert gateway.results == {}
    agent.driver.on_run = lambda worker: worker.finish()
    gateway.cancel(cancelled)
    assert played.killed
    await until(lambda: len(gateway.results) == 2)
    assert (gateway.results[first].status, gateway.results[cancelled].status) == (200, 499)


async def test_an_api_call_that_may_have_begun_when_its_worker_was_killed_is_not_run_again(agent: FakeAgent) -> None:
    played = await warmed(agent, None)
    agent.driver.slow_death = True
    gateway = agent.gateway()
    cancelled, behind = gateway.invoke_all([0, 1])
    await until(lambda: len(played.given) == 2)
    gateway.cancel(cancelled)
    assert played.killed
    played.finish()
    played.die(WorkerExit("killed", -9, 1))
    await until(lambda: len(gateway.results) == 2)
    assert (gateway.results[cancelled].status, gateway.results[behind].status) == (200, 500)
    assert [g.event for g in agent.driver.begun] == [b"0", b"1"]


async def test_when_a_gateway_goes_what_waits_is_dropped_and_what_runs_goes_on(agent: FakeAgent) -> None:
    use(agent, budget_mib=128)
    gateway, other = agent.gateway(), agent.gateway()
    gateway.invoke_all(["runs", "waits"])
    await until(lambda: agent.driver.begun)
    stays = other.invoke("stays")
    gateway.close()
    (played,) = agent.driver.live
    echo_at_once(agent)
    played.finish()
    await until(lambda: stays in other.results)
    assert [g.event for g in agent.driver.begun] == [b'"runs"', b'"stays"']
    assert gateway.results == {}


async def test_frames_that_a_gateway_may_not_send_are_wire_errors(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    for data in (
        frame(Kind.RESULT, b""),
        frame(Kind.INVOKE, b"short"),
        frame(Kind.SPEC, b"\0\0\0\1{}"),
        frame(Kind.FLOW, b"\0\0\0\1[]"),
        frame(Kind.INVOKE, b"\0" * 31),
    ):
        with pytest.raises(WireError):
            gateway.send(data)


async def test_ping_is_answered(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    gateway.send(frame(Kind.PING, b""))
    assert gateway.connection.others == [frame(Kind.PONG, b"")]


async def test_stopping_lets_running_calls_end_and_answers_the_others(agent: FakeAgent) -> None:
    use(agent, budget_mib=256)
    gateway = agent.gateway()
    ends, hangs, waits = gateway.invoke_all([None] * 3)
    await until(lambda: len(agent.driver.begun) == 2)
    by_id = {w.given[0].request_id: w for w in agent.driver.live}
    closing = asyncio.get_running_loop().create_task(agent.host.close(0.2))
    await until(lambda: waits in gateway.results)
    late = gateway.invoke()
    by_id[ends.to_bytes(16, "big")].finish()
    await closing
    statuses = {corr: gateway.results[corr].status for corr in (ends, hangs, waits, late)}
    assert statuses == {ends: 200, hangs: 500, waits: 500, late: 500}
    assert agent.driver.live == []
    assert agent.driver.closed_nodes == [SPEC.appid]


# What user code is told


def test_the_environment_holds_the_users_variables_and_scfs_own_which_win() -> None:
    made = environment_of(dataclasses.replace(SPEC, environment={"A": "1", "SCF_NAMESPACE": "forged", "LANG": "de"}))
    assert (made["A"], made["SCF_NAMESPACE"], made["LANG"]) == ("1", "default", "de")
    assert made["USER_CODE_ROOT"] == "/var/user/"


def test_the_context_has_scfs_keys_and_types() -> None:
    context = context_of(SPEC)
    assert context == {
        "memory_limit_in_mb": 128,
        "time_limit_in_ms": 3000,
        "function_name": "echo",
        "function_version": "$LATEST",
        "namespace": "default",
        "tencentcloud_region": "ap-guangzhou",
        "tencentcloud_appid": "1250000000",
        "tencentcloud_uin": "100000000001",
        "environment": '{"SCF_NAMESPACE":"default","A":"1"}',
        "environ": "SCF_NAMESPACE=default;A=1",
    }
