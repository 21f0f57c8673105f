"""Ownership of partitions at the agent: an orphan is dead before its successor begins, and neighbours are untouched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.agent import fences
from sandbox.agent.host import HostLimits
from sandbox.driver import WorkerExit
from schemas.frames import Flow
from tests.agent_fakes import FakeAgent, settle, until


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    made = FakeAgent(tmp_path / "code", HostLimits(budget_mib=10_000))
    await made.cache.start()
    yield made
    made.driver.slow_death = False
    for worker in made.driver.live:
        worker.die(WorkerExit("killed", -9, 1))
    await made.host.close(0)


def flow(epoch: int, partition: int = 0, trigger: str = "1/default/f/t") -> Flow:
    return Flow(trigger, partition, epoch)


async def test_the_successor_begins_when_the_orphan_is_dead_and_not_before(agent: FakeAgent) -> None:
    agent.driver.slow_death = True
    old, new = agent.gateway(), agent.gateway()
    orphan = old.invoke("orphan", flow=flow(1))
    await until(lambda: agent.driver.begun)
    (its_worker,) = agent.driver.live
    successor = new.invoke("successor", flow=flow(2))
    assert its_worker.killed
    await settle()
    assert len(agent.driver.begun) == 1
    its_worker.die(WorkerExit("killed", -9, 1))
    await until(lambda: len(agent.driver.begun) == 2)
    assert old.results[orphan].status == 499
    agent.driver.live[0].finish()
    await until(lambda: successor in new.results)
    assert new.results[successor].status == 200


async def test_an_orphan_of_a_connection_that_is_gone_is_ended_too(agent: FakeAgent) -> None:
    old, new = agent.gateway(), agent.gateway()
    old.invoke("orphan", flow=flow(1))
    await until(lambda: agent.driver.begun)
    (its_worker,) = agent.driver.live
    old.close()
    await settle()
    assert its_worker.alive
    new.invoke("successor", flow=flow(2))
    await until(lambda: len(agent.driver.begun) == 2)
    assert its_worker not in agent.driver.live
    assert old.results == {}


async def test_an_orphan_of_the_same_epoch_is_ended_when_its_connection_broke(agent: FakeAgent) -> None:
    old, new = agent.gateway(), agent.gateway()
    old.invoke("orphan", flow=flow(1))
    await until(lambda: agent.driver.begun)
    (its_worker,) = agent.driver.live
    old.close()
    await settle()
    new.invoke("again", flow=flow(1))
    await until(lambda: len(agent.driver.begun) == 2)
    assert its_worker not in agent.driver.live


async def test_neighbours_are_untouched(agent: FakeAgent) -> None:
    old, new = agent.gateway(), agent.gateway()
    neighbours = [
        old.invoke("other partition", flow=flow(1, partition=1)),
        old.invoke("other trigger", flow=flow(1, trigger="1/default/f/u")),
        old.invoke("api call"),
    ]
    orphan = old.invoke("orphan", flow=flow(1))
    await until(lambda: len(agent.driver.begun) == 4)
    new.flow(flow(2))
    await until(lambda: orphan in old.results)
    for worker in agent.driver.live:
        worker.finish()
    await until(lambda: len(old.results) == 4)
    assert [old.results[n].status for n in neighbours] == [200] * 3
    assert [w.killed for w in agent.driver.workers].count(True) == 1


async def test_queued_and_late_calls_of_an_older_epoch_never_begin(agent: FakeAgent) -> None:
    agent.driver.fork_gate.clear()
    old, new = agent.gateway(), agent.gateway()
    queued = old.invoke("queued", flow=flow(1))
    successor = new.invoke("successor", flow=flow(2))
    late = old.invoke("late", flow=flow(1))
    agent.driver.on_run = lambda worker: worker.finish()
    agent.driver.fork_gate.set()
    await until(lambda: successor in new.results)
    assert [old.results[c].status for c in (queued, late)] == [499, 499]
    assert [g.event for g in agent.driver.begun] == [b'"successor"']


async def test_a_third_owner_overtakes_the_second_while_that_waits_for_the_first_to_die(agent: FakeAgent) -> None:
    agent.driver.slow_death = True
    first, second, third = agent.gateway(), agent.gateway(), agent.gateway()
    first.invoke("first", flow=flow(1))
    await until(lambda: agent.driver.begun)
    held = second.invoke("second", flow=flow(2))
    last = third.invoke("third", flow=flow(3))
    assert second.results[held].status == 499
    agent.driver.on_run = lambda worker: worker.finish()
    agent.driver.live[0].die(WorkerExit("killed", -9, 1))
    await until(lambda: last in third.results)
    assert [g.event for g in agent.driver.begun] == [b'"first"', b'"third"']


async def test_held_calls_of_a_connection_that_goes_are_dropped_and_cancelled_ones_answered(agent: FakeAgent) -> None:
    agent.driver.slow_death = True
    old, new, newer = agent.gateway(), agent.gateway(), agent.gateway()
    old.invoke("orphan", flow=flow(1))
    await until(lambda: agent.driver.begun)
    new.invoke("dropped", flow=flow(2))
    cancelled = newer.invoke("cancelled", flow=flow(2))
    stays = newer.invoke("stays", flow=flow(2))
    new.close()
    newer.cancel(cancelled)
    assert newer.results[cancelled].status == 499
    agent.driver.on_run = lambda worker: worker.finish()
    agent.driver.live[0].die(WorkerExit("killed", -9, 1))
    await until(lambda: stays in newer.results)
    assert [g.event for g in agent.driver.begun] == [b'"orphan"', b'"stays"']


async def test_an_orphan_that_ends_by_itself_lets_the_successor_in(agent: FakeAgent) -> None:
    agent.driver.slow_death = True
    old, new = agent.gateway(), agent.gateway()
    orphan = old.invoke("orphan", flow=flow(1))
    await until(lambda: agent.driver.begun)
    (its_worker,) = agent.driver.live
    new.invoke("successor", flow=flow(2))
    its_worker.finish()
    await until(lambda: orphan in old.results)
    await until(lambda: len(agent.driver.begun) == 2)
    assert old.results[orphan].status == 200


async def test_the_same_epoch_on_a_new_connection_goes_on_beside_what_runs(agent: FakeAgent) -> None:
    old, again = agent.gateway(), agent.gateway()
    old.invoke("one", flow=flow(1))
    again.invoke("two", flow=flow(1))
    await until(lambda: len(agent.driver.begun) == 2)
    assert not any(w.killed for w in agent.driver.workers)


async def test_the_same_epoch_ends_what_a_broken_connection_left(agent: FakeAgent) -> None:
    agent.driver.slow_death = True
    old, again = agent.gateway(), agent.gateway()
    old.invoke("orphan", flow=flow(1))
    await until(lambda: agent.driver.begun)
    (its_worker,) = agent.driver.live
    old.close()
    again.invoke("same record again", flow=flow(1))
    await settle()
    assert len(agent.driver.begun) == 1
    its_worker.die(WorkerExit("killed", -9, 1))
    await until(lambda: len(agent.driver.begun) == 2)


async def test_the_memory_of_owners_is_bounded(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fences, "REMEMBERED", 10)
    for partition in range(50):
        agent.fences.declare("t", partition, 1, 0.0)
    assert len(agent.fences._owners) == 10
