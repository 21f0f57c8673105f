"""Pools of workers at the agent: deaths, time-outs, starts that fail, cancellation, and the end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.agent import worker
from sandbox.agent.host import HostLimits
from sandbox.driver import WorkerExit
from sandbox.pool import PoolLimits
from schemas.errors import BadPackage, StoreUnavailable, WorkerStartFailed
from schemas.frames import Flow, Kind, frame
from tests.agent_fakes import SPEC, FakeAgent, FakeWorker, Given, settle, until

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
    assert made.cache.leases == 0


def echo_at_once(agent: FakeAgent) -> None:
    agent.driver.on_run = lambda played: played.finish()


def use(agent: FakeAgent, **limits: object) -> None:
    agent.host.limits = dataclasses.replace(LIMITS, **limits)  # type: ignore[arg-type]


def error(body: bytes) -> tuple[int, str]:
    said = json.loads(body)
    return said["statusCode"], said["errorMessage"]


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        (WorkerExit("exit", 3, 50), 439, "exited with code 3"),
        (WorkerExit("exit", -11, 50), 439, "signal 11"),
        (WorkerExit("oom", -9, 140_000), 434, "more memory than its 128 MB"),
    ],
)
async def test_a_worker_that_dies_answers_its_call_and_the_next_gets_another(
    agent: FakeAgent, how: WorkerExit, status: int, words: str
) -> None:
    gateway = agent.gateway()
    corr = gateway.invoke()
    await until(lambda: agent.driver.begun)
    agent.driver.live[0].die(how)
    await until(lambda: corr in gateway.results)
    result = gateway.results[corr]
    assert (result.status, result.memory_kib) == (status, how.peak_kib)
    assert words in error(result.body)[1]
    assert words in " ".join(agent.lines(corr))
    echo_at_once(agent)
    after = gateway.invoke()
    await until(lambda: after in gateway.results)
    assert gateway.results[after].status == 200


@pytest.mark.parametrize(("runtime", "status"), [("CustomRuntime", 200), ("Python3.10", 439)])
async def test_a_bootstrap_that_ends_between_two_events_costs_no_call_and_only_a_custom_runtime_is_believed(
    agent: FakeAgent, runtime: str, status: int
) -> None:
    gateway = agent.gateway()
    corr = gateway.invoke(spec=dataclasses.replace(SPEC, runtime=runtime))
    await until(lambda: agent.driver.begun)
    echo_at_once(agent)
    agent.driver.live[0].send(frame(Kind.LEAVING, b""))
    agent.driver.live[0].die(WorkerExit("exit", 0, 50))
    await until(lambda: corr in gateway.results)
    assert gateway.results[corr].status == status


async def test_a_call_over_its_time_is_killed_and_answered_433_when_the_worker_is_dead(agent: FakeAgent) -> None:
    agent.driver.slow_death = True
    gateway = agent.gateway()
    corr = gateway.invoke(spec=dataclasses.replace(SPEC, timeout_s=0))
    await until(lambda: agent.driver.workers and agent.driver.workers[0].killed)
    await settle()
    assert corr not in gateway.results
    agent.driver.workers[0].die(WorkerExit("killed", -9, 1))
    await until(lambda: corr in gateway.results)
    assert gateway.results[corr].status == 433
    assert agent.lines(corr)[0] == "START"


async def test_last_words_of_a_dead_worker_count(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    corr = gateway.invoke("x")
    await until(lambda: agent.driver.begun)
    played = agent.driver.live[0]
    played.say("done in time")
    played.finish()
    os.write(played.stderr, b"Segmentation fault")
    played.die(WorkerExit("exit", -11, 1))
    await until(lambda: corr in gateway.results)
    assert gateway.results[corr].status == 200
    assert "done in time" in agent.lines(corr)


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


async def test_calls_behind_a_death_run_again_in_order_and_the_dead_one_is_blamed(agent: FakeAgent) -> None:
    played = await warmed(agent, None)
    gateway = agent.gateway()
    corrs = gateway.invoke_all(list(range(4)))
    await until(lambda: len(played.given) == 4)
    played.finish()
    await until(lambda: corrs[0] in gateway.results)
    echo_at_once(agent)
    played.die(WorkerExit("exit", 1, 1))
    await until(lambda: len(gateway.results) == 4)
    assert [gateway.results[c].status for c in corrs] == [200, 439, 200, 200]
    assert [g.event for g in agent.driver.begun] == [b"0", b"1", b"2", b"3"]


async def test_when_answers_were_kept_back_nobody_is_blamed_before_they_run_again_one_by_one(agent: FakeAgent) -> None:
    flow = Flow("t", 0, 1)
    played = await warmed(agent, flow)
    agent.driver.holds_back = True
    gateway = agent.gateway()
    corrs = gateway.invoke_all(list(range(5)), flow=flow)
    await until(lambda: len(played.given) == 5)
    assert all(g.batched for g in played.given)
    played.finish()
    played.finish()
    await settle()
    assert gateway.results == {}

    def on_begin(player: FakeWorker, given: Given) -> None:
        loop = asyncio.get_running_loop()
        if given.event == b"2":
            loop.call_soon(player.die, WorkerExit("exit", 1, 1))
        else:
            loop.call_soon(player.finish)

    agent.driver.on_begin = on_begin
    played.die(WorkerExit("exit", 1, 1))
    await until(lambda: len(gateway.results) == 5)
    assert [gateway.results[c].status for c in corrs] == [200, 200, 439, 200, 200]
    assert not any(g.batched for g in agent.driver.begun[3:])


async def test_an_api_call_is_never_put_where_it_could_run_twice(agent: FakeAgent) -> None:
    flow = Flow("t", 0, 1)
    played = await warmed(agent, flow)
    gateway = agent.gateway()
    gateway.invoke(flow=flow)
    await until(lambda: len(played.given) == 1)
    gateway.invoke()
    await settle()
    assert len(played.given) == 1
    assert played.given[0].batched
    await until(lambda: len(agent.driver.live) == 2)


@pytest.mark.parametrize(
    "said",
    [
        frame(Kind.DONE, b"\0" * 4),
        frame(Kind.DONE, b"\0\0\0\7\0\0\0\0\1"),
        frame(Kind.DONE, b"\0\0\0\1\x63\0\0\0\1"),
        frame(Kind.RUN, b""),
        frame(Kind.LOG, b"\0\0"),
        frame(Kind.LOG, b"\0\0\0\1\x09text"),
        frame(Kind.READY, b"\0\0\0\0{}"),
        b"\xff\xff\xff\xff\x01",
        b"\0\0\0\0\x01",
    ],
)
async def test_a_worker_that_says_what_it_should_not_is_ended(agent: FakeAgent, said: bytes) -> None:
    gateway = agent.gateway()
    corr = gateway.invoke()
    await until(lambda: agent.driver.begun)
    (played,) = agent.driver.live
    played.send(said)
    await until(lambda: corr in gateway.results)
    assert played.killed
    assert gateway.results[corr].status == 439


async def test_a_worker_that_hangs_up_is_ended_and_its_exit_code_told_when_it_has_one(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "EOF_GRACE_S", 0.05)
    gateway = agent.gateway()
    corrs = gateway.invoke_all([None, None])
    await until(lambda: len(agent.driver.begun) == 2)
    stays, leaves = agent.driver.live
    leaves.hang_up()
    leaves.die(WorkerExit("exit", 7, 1))
    stays.hang_up()
    await until(lambda: len(gateway.results) == 2)
    said = sorted(error(gateway.results[c].body)[1] for c in corrs)
    assert "closed its connection" in said[0]
    assert "code 7" in said[1]


# Starts that fail


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"status": 437, "message": "no function main"}, 437),
        ({"status": 443, "message": "RuntimeError: at import", "trace": "Traceback\n  boom"}, 443),
        ({"status": 200, "message": "forged"}, 445),
        ({"message": ["not text"]}, 445),
    ],
)
async def test_code_that_does_not_load_answers_what_waits_and_is_not_started_over_and_over(
    agent: FakeAgent, said: dict[str, object], status: int
) -> None:
    agent.driver.on_load = lambda played: played.ready(ok=False, **said)
    gateway = agent.gateway()
    corrs = gateway.invoke_all([None] * 6)
    await until(lambda: len(gateway.results) == 6)
    assert {r.status for r in gateway.results.values()} == {status}
    assert str(said["message"]) in error(gateway.results[corrs[0]].body)[1]
    if "trace" in said:
        assert "  boom" in agent.lines(corrs[0])
    forks = len(agent.driver.workers)
    for _ in range(20):
        gateway.invoke()
    await settle()
    assert len(gateway.results) == 26
    assert len(agent.driver.workers) == forks <= 4


async def test_a_failed_start_is_tried_again_after_a_while(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.agent.starting.USER_FAILURE_S", 0.05)
    agent.driver.on_load = lambda played: played.ready(ok=False, status=443, message="not yet")
    gateway = agent.gateway()
    first = gateway.invoke()
    await until(lambda: first in gateway.results)
    agent.driver.on_load = lambda played: played.ready()
    echo_at_once(agent)
    await asyncio.sleep(0.06)
    second = gateway.invoke()
    await until(lambda: second in gateway.results)
    assert gateway.results[second].status == 200


async def test_with_a_worker_at_hand_a_failed_start_harms_nobody(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    gateway.invoke()
    await until(lambda: agent.driver.begun)
    agent.driver.on_load = lambda played: played.ready(ok=False, status=443, message="only once")
    waits = gateway.invoke()
    await until(lambda: len(agent.driver.workers) == 2 and not agent.driver.workers[1].alive)
    assert waits not in gateway.results
    echo_at_once(agent)
    agent.driver.live[0].finish()
    await until(lambda: waits in gateway.results)
    assert gateway.results[waits].status == 200


@pytest.mark.parametrize(
    ("how", "status"),
    [(WorkerExit("exit", 3, 1), 439), (WorkerExit("oom", -9, 1), 434), (WorkerExit("exit", -11, 1), 439)],
)
async def test_a_death_while_loading_is_told_as_such(agent: FakeAgent, how: WorkerExit, status: int) -> None:
    agent.driver.on_load = lambda played: played.die(how)
    gateway = agent.gateway()
    corr = gateway.invoke()
    await until(lambda: corr in gateway.results)
    assert gateway.results[corr].status == status
    assert "loaded" in error(gateway.results[corr].body)[1]


async def test_code_that_loads_for_too_long_is_450(agent: FakeAgent) -> None:
    agent.driver.on_load = lambda played: played.say("still loading", sequence=0)
    gateway = agent.gateway()
    corr = gateway.invoke(spec=dataclasses.replace(SPEC, init_timeout_s=0))
    await until(lambda: corr in gateway.results)
    assert gateway.results[corr].status == 450
    await until(lambda: not agent.driver.live)


@pytest.mark.parametrize(
    ("failure", "status"),
    [(StoreUnavailable("down"), 500), (BadPackage("'../x' leads out"), 443), (WorkerStartFailed("no fork"), 500)],
)
@pytest.mark.parametrize("layers", [(), ("cd" * 32, "ef" * 32, "cd" * 32)])
async def test_what_keeps_a_worker_from_starting_blames_the_right_side_and_leaves_nothing_held(
    agent: FakeAgent, failure: Exception, status: int, layers: tuple[str, ...]
) -> None:
    errors = agent.driver.fork_errors if isinstance(failure, WorkerStartFailed) else agent.store.errors
    errors.append(failure)
    gateway = agent.gateway()
    corr = gateway.invoke(spec=dataclasses.replace(SPEC, layers=layers))
    await until(lambda: corr in gateway.results)
    assert gateway.results[corr].status == status
    assert str(failure) in error(gateway.results[corr].body)[1]
    assert (agent.host.facts()["used_mib"], agent.cache.leases) == (0, 0)


async def test_a_node_that_died_is_made_again(agent: FakeAgent) -> None:
    echo_at_once(agent)
    gateway = agent.gateway()
    first = gateway.invoke()
    await until(lambda: first in gateway.results)
    agent.driver.nodes[0].alive = False
    agent.driver.live[0].die(WorkerExit("killed", -9, 1))
    await settle()
    second = gateway.invoke()
    await until(lambda: second in gateway.results)
    assert gateway.results[second].level == 5
    assert agent.driver.closed_nodes == [SPEC.appid]
