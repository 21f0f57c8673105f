"""The agent under any order of calls, ends, deaths, cancels, new owners and lost connections: its laws hold at every step."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.agent import functionpool
from sandbox.agent.host import HostLimits
from sandbox.driver import WorkerExit
from sandbox.pool import PoolLimits
from schemas.frames import Flow
from tests.agent_fakes import FakeAgent, FakeWorker, Gateway, Given, settle, until

PARTITIONS = 2
choice = st.integers(0, 1_000)
settles = st.sampled_from([True, True, True, False])
invoke = st.tuples(st.just("invoke"), st.sampled_from([None, 0, 1]), st.integers(1, 4), settles)
finish = st.tuples(st.just("finish"), choice, st.integers(1, 3), settles)
rare = st.one_of(
    st.tuples(st.just("die"), choice, st.sampled_from(["exit", "oom"]), settles),
    st.tuples(st.just("cancel"), choice, st.just(0), settles),
    st.tuples(st.just("own"), st.integers(0, PARTITIONS - 1), st.just(0), settles),
    st.tuples(st.just("close"), choice, st.just(0), settles),
)
operations = st.lists(
    st.sampled_from([invoke, invoke, finish, rare]).flatmap(lambda kind: kind), min_size=15, max_size=60
)


class Model:
    """What the agent must not do, checked as it goes."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.gateways = [agent.gateway(), agent.gateway()]
        self.epochs = [1] * PARTITIONS
        self.owner = [0] * PARTITIONS
        self.sent: dict[Gateway, list[int]] = {g: [] for g in self.gateways}
        self.flows: dict[bytes, tuple[int, int] | None] = {}
        self.begun: Counter[bytes] = Counter()
        self.numbers = 0
        self.violations: list[str] = []
        agent.driver.on_begin = self.begins
        agent.driver.holds_back = True
        agent.driver.death_turns = 10

    def begins(self, worker: FakeWorker, given: Given) -> None:
        self.begun[given.event] += 1
        flow = self.flows[given.event]
        if flow is None:
            if self.begun[given.event] > 1:
                self.violations.append("an API call ran twice")
            return
        for other in self.agent.driver.live:
            if other is not worker and other.given:
                theirs = self.flows[other.given[0].event]
                if theirs is not None and theirs[0] == flow[0] and theirs[1] != flow[1]:
                    self.violations.append("an orphan beside its successor")

    def do(self, what: str, a: Any, b: Any) -> None:
        busy = [w for w in self.agent.driver.live if w.given]
        if what == "invoke":
            self.invoke(a, b)
        elif what == "finish" and busy:
            worker = busy[a % len(busy)]
            for _ in range(min(b, len(worker.given))):
                worker.finish()
        elif what == "die" and busy:
            busy[a % len(busy)].die(WorkerExit(b, 1, 1))
        elif what == "cancel":
            gateway = self.gateways[a % 2]
            if pending := [corr for corr in self.sent[gateway] if corr not in gateway.results]:
                gateway.cancel(pending[a % len(pending)])
        elif what == "own":
            self.epochs[a] += 1
            self.owner[a] = 1 - self.owner[a]
        elif what == "close":
            old = self.gateways[a % 2]
            old.close()
            self.gateways[a % 2] = self.agent.gateway()
            self.sent[self.gateways[a % 2]] = []
            del self.sent[old]

    async def warm_up(self) -> None:
        """The package is here, and the pool knows that the handler is quick."""
        for _ in range(3):
            self.invoke(None, 1)
            await until(lambda: any(w.given for w in self.agent.driver.live))
            self.agent.driver.live[0].finish()
            await settle()

    def invoke(self, partition: int | None, count: int) -> None:
        events = []
        for _ in range(count):
            self.numbers += 1
            events.append(self.numbers)
            flow = None if partition is None else (partition, self.epochs[partition])
            self.flows[b"%d" % self.numbers] = flow
        gateway = self.gateways[0 if partition is None else self.owner[partition]]
        flow_frame = None if partition is None else Flow("t", partition, self.epochs[partition])
        self.sent[gateway] += gateway.invoke_all(events, flow=flow_frame)

    async def drain(self) -> None:
        """Let every worker finish what it has, until every call of a live connection is answered."""
        self.agent.driver.on_run = lambda worker: worker.finish()

        def answered() -> bool:
            for worker in self.agent.driver.live:
                while worker.given:
                    worker.finish()
            return all(corr in g.results for g, corrs in self.sent.items() for corr in corrs)

        await until(answered)
        for gateway, corrs in self.sent.items():
            assert sorted(gateway.results) == sorted(corrs)


async def run(steps: list[tuple[str, Any, Any, bool]], folder: Path) -> None:
    # Quick in the pool's eyes whatever happens here, so that calls are put behind others.
    pool = PoolLimits(blind_runs=2, quick_us=10**9, drain_us=10**10, stuck_us=10**9, pack_us=10**10, depth=5)
    limits = HostLimits(budget_mib=128 * 3, pool=pool)
    agent = FakeAgent(folder, limits)
    await agent.cache.start()
    model = Model(agent)
    await model.warm_up()
    for what, a, b, settles in steps:
        model.do(what, a, b)
        if settles:
            await settle()
        assert model.violations == []
    await model.drain()
    assert model.violations == []
    assert agent.host.facts()["queued"] == 0
    await until(lambda: agent.host.facts()["used_mib"] == 128 * len(agent.driver.live))
    await agent.host.close(0)
    assert agent.driver.live == []
    assert agent.host.facts()["used_mib"] == 0


@given(operations)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
def test_every_call_is_answered_once_orphans_never_run_beside_successors_and_api_calls_run_once(
    steps: list[tuple[str, Any, Any, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(functionpool, "TROUBLE_RUNS", 0):
        asyncio.run(run(steps, Path(folder)))
