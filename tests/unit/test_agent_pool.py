"""The agent's pools over played workers: who gets a call, what a death means, what is answered."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.agent.host import HostLimits
from sandbox.pool import PoolLimits
from schemas.frames import WANT_LOG_TAIL, DoneOutcome, Flow
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
    assert made.cache.leases == 0


def echo_at_once(agent: FakeAgent) -> None:
    agent.driver.on_run = lambda played: played.finish()


def use(agent: FakeAgent, **limits: object) -> None:
    agent.host.limits = dataclasses.replace(LIMITS, **limits)  # type: ignore[arg-type]


def error(body: bytes) -> tuple[int, str]:
    said = json.loads(body)
    return said["statusCode"], said["errorMessage"]


# Results


async def test_a_call_comes_back_with_its_measures_and_the_level_of_the_start_that_it_met(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    echo_at_once(agent)
    first = gateway.invoke({"a": 1})
    await until(lambda: first in gateway.results)
    second = gateway.invoke([2])
    await until(lambda: second in gateway.results)
    assert [(r.status, r.level, r.body, r.memory_kib) for r in gateway.results.values()] == [
        (200, 5, b'{"a": 1}', 7),
        (200, 0, b"[2]", 7),
    ]
    assert gateway.results[first].wait_us > gateway.results[second].wait_us


async def test_levels_tell_a_new_node_a_fetch_and_a_fork_apart(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    specs = [SPEC, dataclasses.replace(SPEC, code_sha256="cd" * 32), dataclasses.replace(SPEC, memory_mib=256)]
    echo_at_once(agent)
    levels = []
    for spec in specs:
        corr = gateway.invoke(spec=spec)
        await until(lambda corr=corr: corr in gateway.results)  # type: ignore[misc]
        levels.append(gateway.results[corr].level)
    assert levels == [5, 2, 1]


async def test_the_log_frame_surrounds_what_was_said_and_the_error_stands_in_it(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    corrs = [gateway.invoke() for _ in range(3)]
    await until(lambda: len(agent.driver.begun) == 3)
    by_id = {w.given[0].request_id: w for w in agent.driver.live}
    quiet, said, failed = (by_id[c.to_bytes(16, "big")] for c in corrs)
    quiet.finish()
    said.say("one\ntwo\n")
    said.say("three", stream=2)
    said.finish()
    failed.finish(b'{"errorCode":-1}', DoneOutcome.USER_EXCEPTION)
    await until(lambda: len(gateway.results) == 3)
    assert [line.split(" Duration")[0] for line in agent.lines(corrs[0])] == ["START", "END", "REPORT"]
    assert agent.lines(corrs[1])[1:4] == ["one", "two", "three"]
    report = r"REPORT Duration: \d+ ms Billed Duration: \d+ ms Memory Size: 128 MB Max Memory Used: 1 MB"
    assert re.fullmatch(report, agent.lines(corrs[1])[-1])
    assert agent.lines(corrs[2])[1] == 'ERROR Result: {"errorCode":-1}'
    assert gateway.results[corrs[2]].status == 430


async def test_the_tail_of_the_log_comes_with_the_result_when_asked_for(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    corr = gateway.invoke(flags=WANT_LOG_TAIL)
    await until(lambda: agent.driver.begun)
    agent.driver.live[0].say("hello")
    agent.driver.live[0].finish()
    await until(lambda: corr in gateway.results)
    lines = gateway.results[corr].tail.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["START", "hello", "END", "REPORT"]


async def test_native_output_belongs_to_the_call_that_ran_also_without_a_line_end(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    first = gateway.invoke()
    await until(lambda: agent.driver.begun)
    played = agent.driver.live[0]
    os.write(played.stdout, b"from C\nunfinished")
    await until(lambda: agent.host.pools and next(iter(next(iter(agent.host.pools.values())).all)).native)
    os.write(played.stderr, b"oh")
    played.finish()
    await until(lambda: first in gateway.results)
    second = gateway.invoke()
    await until(lambda: len(agent.driver.begun) == 2)
    played.finish()
    await until(lambda: second in gateway.results)
    assert agent.lines(first)[:-2] == ["START", "from C", "unfinished", "oh"]
    assert len(agent.lines(second)) == 3


async def test_native_output_stands_in_its_call_also_when_the_end_is_heard_of_first(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    corr = gateway.invoke()
    await until(lambda: agent.driver.begun)
    played = agent.driver.live[0]
    asyncio.get_running_loop().remove_reader(played.stdout_fd)  # as when both are ready at once and the socket is first
    os.write(played.stdout, b"from C\n")
    played.finish()
    await until(lambda: corr in gateway.results)
    assert agent.lines(corr)[1:-2] == ["from C"]


async def test_what_is_printed_at_import_stands_in_the_first_calls_log(agent: FakeAgent) -> None:
    def load(played: FakeWorker) -> None:
        played.say("importing", sequence=0)
        played.ready()

    agent.driver.on_load = load
    echo_at_once(agent)
    gateway = agent.gateway()
    corr = gateway.invoke()
    await until(lambda: corr in gateway.results)
    assert agent.lines(corr)[:2] == ["START", "importing"]


@pytest.mark.parametrize(
    ("outcome", "body", "status"),
    [
        (DoneOutcome.BAD_EVENT, b"the event is not JSON", 400),
        (DoneOutcome.REPLY_TOO_LARGE, b"too large", 407),
        (DoneOutcome.BAD_REPLY, b"not JSON", 430),
    ],
)
async def test_a_workers_refusal_becomes_error_json(
    agent: FakeAgent, outcome: DoneOutcome, body: bytes, status: int
) -> None:
    gateway = agent.gateway()
    agent.driver.on_run = lambda played: played.finish(body, outcome)
    corr = gateway.invoke()
    await until(lambda: corr in gateway.results)
    assert gateway.results[corr].status == status
    assert error(gateway.results[corr].body)[0] == status
    assert body.decode() in error(gateway.results[corr].body)[1]


# Who gets a call


async def test_32_callers_of_a_slow_handler_get_32_workers_by_at_most_4_forks_at_a_time(agent: FakeAgent) -> None:
    agent.driver.fork_gate.clear()
    gateway = agent.gateway()
    gateway.invoke_all([None] * 32)
    for _ in range(20):
        await until(lambda: agent.driver.forks_now or len(agent.driver.begun) == 32)
        await settle()
        agent.driver.fork_gate.set()
        await settle()
        agent.driver.fork_gate.clear()
    assert len(agent.driver.live) == len(agent.driver.begun) == 32
    assert agent.driver.most_forks == 4


@pytest.fixture
def clock_by_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A microsecond a look at the clock: a machine that stalls makes no handler a slow one."""
    ticks = itertools.count()
    for module in ("gatewaylink", "host", "worker"):
        monkeypatch.setattr(f"sandbox.agent.{module}.mono_s", lambda: 1_000.0 + next(ticks) / 1e6)


@pytest.mark.usefixtures("clock_by_looks")
async def test_a_quick_handler_with_32_callers_stays_with_few_workers(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    echo_at_once(agent)
    for _ in range(30):
        corrs = gateway.invoke_all([None] * 32, flow=Flow("t", 0, 1))
        await until(lambda corrs=corrs: corrs[-1] in gateway.results)  # type: ignore[misc]
    assert len(agent.driver.workers) <= 4


@pytest.mark.usefixtures("clock_by_looks")
async def test_nothing_is_put_behind_a_call_that_turned_slow(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    echo_at_once(agent)
    for _ in range(20):
        corr = gateway.invoke()
        await until(lambda corr=corr: corr in gateway.results)  # type: ignore[misc]
    (only,) = agent.driver.live
    agent.driver.on_run = lambda _: None
    gateway.invoke()
    await until(lambda: only.given)
    behind = gateway.invoke()
    await until(lambda: len(only.given) == 2)
    (pool,) = agent.host.pools.values()
    (link,) = pool.busy
    link.head_at -= 0.03
    gateway.invoke()
    await until(lambda: len(agent.driver.live) == 2)
    assert len(only.given) == 2
    assert only.given[1].request_id == behind.to_bytes(16, "big")


async def test_the_most_recently_used_idle_worker_is_taken(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    gateway.invoke_all([None] * 3)
    await until(lambda: len(agent.driver.begun) == 3)
    a, b, c = agent.driver.live
    for played in (c, a, b):
        played.finish()
        await until(lambda played=played: not played.given)  # type: ignore[misc]
        await settle()
    await until(lambda: len(gateway.results) == 3)
    gateway.invoke()
    await until(lambda: len(agent.driver.begun) == 4)
    assert [bool(w.given) for w in (a, b, c)] == [False, True, False]


async def test_beyond_the_queues_bound_a_call_is_refused_as_the_platforms_fault(agent: FakeAgent) -> None:
    agent.driver.fork_gate.clear()
    gateway = agent.gateway()
    corrs = gateway.invoke_all([None] * 52)
    assert {c: r.status for c, r in gateway.results.items()} == {corrs[50]: 429, corrs[51]: 429}


async def test_calls_that_wait_too_long_for_a_worker_are_answered_449(agent: FakeAgent) -> None:
    use(agent, queue_wait_s=0.05, budget_mib=128)
    gateway = agent.gateway()
    gateway.invoke()
    await until(lambda: agent.driver.begun)
    waits = gateway.invoke()
    await until(lambda: waits in gateway.results)
    assert gateway.results[waits].status == 449


async def test_two_configurations_have_their_own_workers(agent: FakeAgent) -> None:
    gateway = agent.gateway()
    gateway.invoke(spec=SPEC)
    gateway.invoke(spec=dataclasses.replace(SPEC, environment={"A": "2"}))
    await until(lambda: len(agent.driver.begun) == 2)
    assert sorted(w.spec.environment["A"] for w in agent.driver.workers) == ["1", "2"]
    assert len(agent.driver.nodes) == 1


# Memory and idleness


async def test_an_idle_worker_of_another_function_makes_room_and_a_busy_one_does_not(agent: FakeAgent) -> None:
    use(agent, budget_mib=300)
    gateway = agent.gateway()
    other = dataclasses.replace(SPEC, function="other")
    third = dataclasses.replace(SPEC, function="third")
    gateway.invoke(spec=SPEC)
    idle = gateway.invoke(spec=other)
    await until(lambda: len(agent.driver.begun) == 2)
    busy_worker, idle_worker = sorted(agent.driver.live, key=lambda w: w.spec.function)
    idle_worker.finish()
    await until(lambda: idle in gateway.results)
    gateway.invoke(spec=third)
    await until(lambda: len(agent.driver.begun) == 3)
    assert idle_worker.killed
    assert busy_worker.alive
    assert agent.host.facts()["used_mib"] == 256


async def test_idle_workers_end_after_their_time_and_the_pool_is_forgotten_but_serves_again(agent: FakeAgent) -> None:
    use(agent, keep_alive_s=0.05)
    gateway = agent.gateway()
    echo_at_once(agent)
    first = gateway.invoke()
    await until(lambda: first in gateway.results)
    agent.host.start()
    await until(lambda: not agent.driver.live and not agent.host.pools)
    again = gateway.invoke()
    await until(lambda: again in gateway.results)
    assert gateway.results[again].level == 1


async def test_workers_of_an_older_configuration_go_sooner_but_finish_first(agent: FakeAgent) -> None:
    use(agent, superseded_s=0.01)
    gateway = agent.gateway()
    old = gateway.invoke(spec=SPEC)
    await until(lambda: agent.driver.begun)
    new_spec = dataclasses.replace(SPEC, code_sha256="cd" * 32)
    gateway.invoke(spec=new_spec)
    await until(lambda: len(agent.driver.begun) == 2)
    old_worker, new_worker = agent.driver.live
    agent.host.start()
    await asyncio.sleep(1.1)
    assert old_worker.alive
    old_worker.finish()
    new_worker.finish()
    await until(lambda: not old_worker.alive)
    assert gateway.results[old].status == 200
    assert new_worker.alive


# Deaths
