"""From the registry's view to running engines: what starts, stops and fails, and what is said of it. Consumers are in memory, time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

import ingest.triggers as module
from infra.kafka.clients import Cluster
from infra.kafka.consumer import ConsumerEvents
from infra.metrics import MetricRegistry
from ingest.deadletter import DeadLetterSink
from ingest.triggers import TriggerManager
from router.counts import Counts
from schemas import avro
from schemas.errors import BrokerUnavailable, ConfigError
from schemas.records import LaneStatus, TriggerRecord
from schemas.runstatus import RunStatus
from tests.lane_fakes import FUNCTION, FakeDispatcher, FakeSource, View, result, trigger
from tests.records import keyed

pytestmark = pytest.mark.looptime(start=1_000)


class Rig:
    """A TriggerManager and its fakes."""

    def __init__(self) -> None:
        self.view, self.dispatcher, self.counts = View(), FakeDispatcher(), Counts()
        self.metrics = MetricRegistry()
        self.sources: dict[str, list[FakeSource]] = {}
        self.published: list[tuple[str, LaneStatus | None]] = []
        self.refuse: dict[str, Exception] = {}
        self.manager = TriggerManager(
            self.view,
            self.dispatcher.submit,
            DeadLetterSink(self),
            self,
            cluster=Cluster("fabric:9092"),
            slot="gateway-1",
            term=7,
            counts=self.counts,
            metrics=self.metrics,
            open_source=self._open,
        )

    def _open(self, record: TriggerRecord, events: ConsumerEvents) -> FakeSource:
        if record.name in self.refuse:
            raise self.refuse[record.name]
        source = FakeSource(events)
        self.sources.setdefault(record.name, []).append(source)
        asyncio.get_running_loop().call_soon(source.assign, 0)
        return source

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        assert topic == "penstock.lanes.status.v1" and key is not None
        self.published.append((key.decode(), None if value is None else avro.decode(LaneStatus, value)))
        return True

    async def send(self, *_args: Any, **_sent: Any) -> Any:
        return None

    def states(self) -> dict[str, str]:
        return {status.key.rpartition("/")[2]: status.state for status in self.manager.status()}


@asynccontextmanager
async def running() -> AsyncIterator[Rig]:
    rig = Rig()
    task = asyncio.ensure_future(rig.manager.run())
    await asyncio.sleep(0)
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_trigger_of_the_view_runs_and_is_closed_when_it_is_deleted() -> None:
    async with running() as rig:
        key = rig.view.put(trigger("a"))
        await asyncio.sleep(0.1)
        (source,) = rig.sources["a"]
        assert (source.started, rig.states()) == (True, {"a": "running"})
        rig.view.delete(key)
        await asyncio.sleep(0.1)
        assert (source.closed, rig.states(), len(rig.sources["a"])) == (True, {}, 1)


async def test_triggers_that_were_there_before_are_started_and_other_types_ignored() -> None:
    rig = Rig()
    rig.view.put(trigger("a"))
    rig.view.put(replace(trigger("timer"), kafka=None, type="timer"))
    task = asyncio.ensure_future(rig.manager.run())
    await asyncio.sleep(0.1)
    assert rig.states() == {"a": "running"}
    task.cancel()
    await asyncio.wait([task])
    assert rig.sources["a"][0].closed


async def test_a_changed_trigger_gets_a_new_engine_and_a_mere_description_does_not() -> None:
    async with running() as rig:
        rig.view.put(trigger("a"))
        await asyncio.sleep(0.1)
        rig.view.put(replace(trigger("a", seq=2), description="new words"))
        await asyncio.sleep(0.1)
        assert len(rig.sources["a"]) == 1
        rig.view.put(trigger("a", seq=3, concurrency=7))
        await asyncio.sleep(0.1)
        first, second = rig.sources["a"]
        assert (first.closed, second.closed) == (True, False)


async def test_a_paused_trigger_has_no_consumer_and_goes_on_when_it_is_resumed() -> None:
    async with running() as rig:
        rig.view.put(trigger("a", enabled=False))
        await asyncio.sleep(0.1)
        assert (rig.sources, rig.states()) == ({}, {"a": "paused"})
        rig.view.put(trigger("a"))
        await asyncio.sleep(0.1)
        assert rig.states() == {"a": "running"}
        rig.view.put(trigger("a", enabled=False))
        await asyncio.sleep(0.1)
        assert (rig.sources["a"][0].closed, rig.states()) == (True, {"a": "paused"})


async def test_a_trigger_that_was_deleted_and_made_again_while_it_closed_runs_as_the_new_one() -> None:
    async with running() as rig:
        key = rig.view.put(trigger("a"))
        await asyncio.sleep(0.1)
        rig.sources["a"][0].hand_over(keyed("x"))
        await asyncio.sleep(0.1)
        rig.view.delete(key)
        rig.view.put(trigger("a", group_id="penstock.a.2"))
        await asyncio.sleep(3)
        first, second = rig.sources["a"]
        assert (first.closed, second.closed, rig.states()) == (True, False, {"a": "running"})


async def test_a_trigger_that_cannot_start_says_why_and_is_tried_again_ever_later() -> None:
    async with running() as rig:
        rig.refuse["a"] = BrokerUnavailable("nobody there")
        rig.view.put(trigger("a"))
        rig.view.put(trigger("b"))
        await asyncio.sleep(0.1)
        assert rig.states() == {"a": "failed: nobody there", "b": "running"}
        await asyncio.sleep(1 + 2 + 4)
        del rig.refuse["a"]
        assert rig.sources.keys() == {"b"}
        await asyncio.sleep(8)
        assert rig.states() == {"a": "running", "b": "running"}


async def test_a_fault_of_ours_in_one_trigger_leaves_the_others_alone() -> None:
    async with running() as rig:
        rig.refuse["a"] = RuntimeError("bug")
        rig.view.put(trigger("a"))
        rig.view.put(trigger("b"))
        await asyncio.sleep(0.1)
        assert rig.states() == {"a": "failed: RuntimeError: bug", "b": "running"}


async def test_a_consumer_that_ended_is_closed_and_made_again_after_a_pause() -> None:
    async with running() as rig:
        rig.view.put(trigger("a"))
        await asyncio.sleep(0.1)
        rig.sources["a"][0].events.failed(ConfigError("two gateways run with one slot"))
        await asyncio.sleep(0.1)
        assert rig.states() == {"a": "failed: two gateways run with one slot"}
        assert rig.sources["a"][0].closed
        await asyncio.sleep(1)
        assert (len(rig.sources["a"]), rig.states()) == (2, {"a": "running"})


async def test_what_to_do_with_poison_that_is_not_built_yet_is_refused_not_done_otherwise() -> None:
    async with running() as rig:
        rig.view.put(trigger("a", on_poison="halt"))
        await asyncio.sleep(0.1)
        assert rig.sources == {}
        assert rig.states()["a"].startswith("failed: on_poison 'halt' is not available")


async def test_few_triggers_start_at_once() -> None:
    async with running() as rig:
        waiting: list[FakeSource] = []

        def silent(_record: TriggerRecord, events: ConsumerEvents) -> FakeSource:
            waiting.append(FakeSource(events))
            return waiting[-1]

        rig.manager._open = silent
        for number in range(30):
            rig.view.put(trigger(f"t{number}"))
        await asyncio.sleep(0.1)
        assert len(waiting) == module.STARTS_AT_ONCE
        assert set(rig.states().values()) == {"starting"}
        for source in [*waiting]:
            source.assign(0)
        await asyncio.sleep(0.1)
        assert len(waiting) == 2 * module.STARTS_AT_ONCE
        await asyncio.sleep(4 * module.JOIN_S)
        assert len(waiting) == 30


async def test_states_are_published_each_second_when_they_changed_and_taken_back_with_the_trigger() -> None:
    async with running() as rig:
        key = rig.view.put(trigger("a"))
        await asyncio.sleep(5.5)
        ((row, status),) = rig.published
        assert row == f"gateway-1/{key}"
        assert status is not None
        assert (status.state, status.term, len(status.partitions)) == ("running", 7, 1)
        rig.sources["a"][0].hand_over(keyed("x"))
        await asyncio.sleep(1)
        latest = rig.published[-1][1]
        assert latest is not None and latest.partitions[0].in_flight == 1
        rig.dispatcher.finish()
        rig.view.delete(key)
        await asyncio.sleep(1.5)
        assert rig.published[-1] == (row, None)


async def test_an_unchanged_state_is_repeated_so_that_its_reader_knows_that_it_is_alive() -> None:
    async with running() as rig:
        rig.view.put(trigger("a"))
        await asyncio.sleep(60)
        assert 6 <= len(rig.published) <= 8


async def test_retries_dead_letters_and_what_waits_are_counted_for_the_function() -> None:
    async with running() as rig:
        rig.view.put(trigger("a", retries=1, concurrency=1))
        rig.view.put(trigger("b", concurrency=1))
        await asyncio.sleep(0.1)
        rig.dispatcher.answer = lambda call: (
            result(RunStatus.USER_EXCEPTION) if call.flow and call.flow.trigger.endswith("a") else None
        )
        rig.sources["a"][0].hand_over(keyed("xy"))
        rig.sources["b"][0].hand_over(keyed("xyz"))
        await asyncio.sleep(3)
        count = rig.counts.of(FUNCTION)
        assert (count.retried, count.dead, count.queued) == (2, 2, 2)
        assert "penstock_ingest_queued_records 2.0" in rig.metrics.render()[0].decode()
        rig.dispatcher.answer = lambda _call: result()
        rig.dispatcher.finish()
        await asyncio.sleep(2)
        assert count.queued == 0
        shown = rig.metrics.render()[0].decode()
        for row in ("in_flight_records 0.0", "queued_records 0.0", 'records_total{outcome="done"} 3.0'):
            assert f"penstock_ingest_{row}" in shown
        for outcome in ("retried", "dead"):
            assert f'penstock_ingest_records_total{{outcome="{outcome}"}} 2.0' in shown
