"""Workers that are kept ready: how many, what becomes of them, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import unix_ms
from sandbox.agent import host as host_module
from sandbox.agent.host import HostLimits
from sandbox.agent.provisions import Provisions, part_of
from sandbox.driver import WorkerExit
from schemas import avro
from schemas.concurrency import ProvisionRecord, ProvisionStatus
from schemas.records import FunctionConfig, Member
from tests.agent_fakes import SPEC, FakeAgent, settle, until

LIMITS = HostLimits(budget_mib=10_000, keep_alive_s=0.0)
V1 = dataclasses.replace(SPEC, version="1")
KEY = f"{V1.key}/1"
CONFIG = FunctionConfig(
    "1", V1.code_sha256, 10, V1.handler, V1.runtime, V1.memory_mib, V1.timeout_s, V1.init_timeout_s,
    environment=V1.environment,
)  # fmt: skip


def record(target: int, applied: int = 1, config: FunctionConfig = CONFIG) -> ProvisionRecord:
    return ProvisionRecord(1, V1.appid, V1.uin, V1.namespace, V1.function, "1", target, config, 0, applied, "c")


class Said:
    """Takes statuses, unless it is full."""

    def __init__(self) -> None:
        self.rows: dict[str, ProvisionStatus] = {}
        self.full = False

    def send_nowait(self, _topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        if self.full:
            return False
        assert key is not None
        if value is None:
            self.rows.pop(key.decode(), None)
        else:
            self.rows[key.decode()] = avro.decode(ProvisionStatus, value)
        return True

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, timeout_s: float) -> None:
        raise AssertionError("statuses are not waited for")


class Kept:
    def __init__(self, agent: FakeAgent) -> None:
        self.agent, self.said = agent, Said()
        self.provisions = Provisions(agent.host, self.said, member_id="a", term=7, region=V1.region)

    def put(self, row: ProvisionRecord | None) -> None:
        self.provisions.provision_changed(KEY, row)
        self.provisions.look()

    @property
    def ready(self) -> int:
        self.provisions.look()
        return sum(pool.ready for pool in self.agent.host.pools.values())

    @property
    def status(self) -> tuple[int, int, str, bool]:
        self.provisions.look()
        row = self.said.rows[f"a/{KEY}"]
        assert (row.agent, row.term) == ("a", 7)
        return row.wanted, row.ready, row.reason, row.failed


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    agent = FakeAgent(tmp_path / "code", LIMITS)
    await agent.cache.start()
    yield Kept(agent)
    agent.driver.fork_gate.set()
    await agent.host.close(0)
    assert agent.driver.live == []


async def test_workers_are_started_ahead_and_a_call_meets_no_cold_start(kept: Kept) -> None:
    kept.put(record(2))
    assert kept.status == (2, 0, "", False)
    await until(lambda: kept.ready == 2)
    assert kept.status == (2, 2, "", False)
    gateway = kept.agent.gateway()
    kept.agent.driver.on_run = lambda played: played.finish()
    corrs = gateway.invoke_all([1, 2], spec=V1)
    await until(lambda: len(gateway.results) == 2)
    assert [gateway.results[corr].level for corr in corrs] == [0, 0]
    assert len(kept.agent.driver.workers) == 2


async def test_they_outlive_the_keep_alive_and_others_do_not(kept: Kept) -> None:
    kept.put(record(1))
    gateway = kept.agent.gateway()
    gateway.invoke_all([1, 2], spec=V1)
    await until(lambda: len(kept.agent.driver.begun) == 2)
    for worker in list(kept.agent.driver.live):
        worker.finish()
    await until(lambda: kept.ready == 2)
    kept.agent.host._keep_house()
    await until(lambda: kept.ready == 1)
    kept.agent.host._keep_house()
    await settle()
    assert kept.ready == 1
    kept.put(None)
    kept.agent.host._keep_house()
    await until(lambda: kept.ready == 0)
    assert kept.said.rows == {}


async def test_busy_workers_count_and_more_calls_start_more(kept: Kept) -> None:
    kept.put(record(2))
    await until(lambda: kept.ready == 2)
    gateway = kept.agent.gateway()
    gateway.invoke_all([1, 2, 3], spec=V1)
    await until(lambda: len(kept.agent.driver.begun) == 3)
    assert len(kept.agent.driver.live) == 3
    assert kept.status == (2, 2, "", False)


async def test_one_that_dies_is_replaced_after_a_while(kept: Kept) -> None:
    kept.put(record(1))
    await until(lambda: kept.ready == 1)
    kept.agent.driver.live[0].die(WorkerExit("exit", 3, 1))
    await until(lambda: kept.ready == 0)
    assert kept.status == (1, 0, "the function's process exited with code 3", True)
    (pool,) = kept.agent.host.pools.values()
    assert 0 < pool.kept_wait_s <= 1
    pool.kept_from = 0.0
    kept.agent.host._start_kept()
    await until(lambda: kept.ready == 1)
    assert kept.status == (1, 1, "", False)


async def test_code_that_does_not_load_is_said_and_tried_less_and_less_often(kept: Kept) -> None:
    kept.agent.driver.on_load = lambda worker: worker.ready(ok=False, message="no such module")
    kept.put(record(1))
    await until(lambda: kept.status[3])
    assert kept.status == (1, 0, "no such module", True)
    (pool,) = kept.agent.host.pools.values()
    waits = [pool.kept_wait_s]
    for _ in range(6):
        pool._kept_later("again", pool.kept_from)
        waits.append(pool.kept_wait_s)
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert len(kept.agent.driver.workers) == 1
    kept.agent.driver.on_load = lambda worker: worker.ready()
    pool.kept_from, pool.failure = 0.0, None
    kept.agent.host._start_kept()
    await until(lambda: kept.status == (1, 1, "", False))


async def test_less_means_fewer_and_another_configuration_means_others(kept: Kept) -> None:
    kept.put(record(3))
    await until(lambda: kept.ready == 3)
    kept.put(record(1, applied=2))
    assert kept.said.rows[f"a/{KEY}"].applied == 2
    kept.agent.host._keep_house()
    await until(lambda: kept.ready == 1)
    kept.put(record(1, applied=3, config=dataclasses.replace(CONFIG, memory_mib=256)))
    await until(lambda: kept.ready == 2)
    old = next(p for p in kept.agent.host.pools.values() if p.spec.memory_mib == 128)
    assert (old.kept, old.superseded) == (0, True)


async def test_they_leave_a_quarter_of_the_host_to_others_and_that_is_said(kept: Kept) -> None:
    kept.agent.host.limits = dataclasses.replace(LIMITS, budget_mib=512)
    kept.put(record(4))
    await until(lambda: kept.ready == 3)
    assert kept.status == (4, 3, "host a has 384 MB for workers that are kept ready, and that is taken", True)
    other = dataclasses.replace(V1, function="other")
    corr = (gateway := kept.agent.gateway()).invoke(spec=other)
    await until(lambda: len(kept.agent.driver.begun) == 1)
    kept.agent.driver.live[-1].finish()
    await until(lambda: corr in gateway.results)
    gateway.invoke(spec=dataclasses.replace(V1, function="third"))
    await until(lambda: len(kept.agent.driver.begun) == 2)
    assert kept.ready == 4, "the idle one made room, and none of those that are kept"


async def test_they_wait_for_memory_that_calls_use_and_say_so(kept: Kept) -> None:
    kept.agent.host.limits = dataclasses.replace(LIMITS, budget_mib=256)
    gateway = kept.agent.gateway()
    other = dataclasses.replace(V1, function="other")
    gateway.invoke_all([1, 2], spec=other)
    await until(lambda: len(kept.agent.driver.begun) == 2)
    kept.put(record(1))
    await settle()
    assert kept.status == (1, 0, "waiting for memory: on host a 256 of 256 MB for workers are in use", False)
    for worker in list(kept.agent.driver.live):
        worker.finish()
    await until(lambda: len(gateway.results) == 2)
    kept.agent.host._keep_house()
    await until(lambda: kept.status == (1, 1, "", False))


async def test_a_status_that_can_not_be_written_is_written_later(kept: Kept) -> None:
    kept.said.full = True
    kept.put(record(1))
    await until(lambda: kept.ready == 1)
    kept.said.full = False
    assert kept.status == (1, 1, "", False)
    kept.said.full = True
    kept.put(None)
    kept.said.full = False
    kept.provisions.look()
    assert kept.said.rows == {}


async def test_a_function_that_goes_takes_its_workers_along(kept: Kept) -> None:
    kept.put(record(1))
    await until(lambda: kept.ready == 1)
    kept.agent.host.release(V1.key)
    await until(lambda: kept.ready == 0)
    await settle()
    assert kept.agent.driver.live == []


async def test_agents_that_come_and_go_divide_anew(kept: Kept) -> None:
    kept.put(record(3))
    await until(lambda: kept.ready == 3)
    kept.provisions.member_changed("agent/b", Member("agent", "b", "h", "z", "x", 1, unix_ms()))
    assert kept.status == (2, 2, "", False)
    kept.provisions.member_changed("agent/0", Member("agent", "0", "h", "z", "x", 1, unix_ms()))
    assert kept.status[0] == 1
    kept.provisions.member_changed("agent/0", Member("agent", "0", "h", "z", "x", 1, unix_ms() - 60_000))
    kept.provisions.member_changed("agent/b", None)
    assert kept.status[0] == 3


@given(st.integers(0, 2_000), st.sets(st.text("abc", min_size=1), min_size=1, max_size=9))
def test_parts_add_up_and_differ_by_one_at_most(target: int, agents: set[str]) -> None:
    parts = [part_of(target, agents, me) for me in agents]
    assert sum(parts) == target
    assert max(parts) - min(parts) <= 1


def test_housekeeping_is_often_enough_for_what_is_tried_again() -> None:
    assert host_module.HOUSEKEEPING_S <= 1.0
