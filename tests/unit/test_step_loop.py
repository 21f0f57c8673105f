"""The step loop with a consumer in memory: what is committed, what is dropped, and when it ends (infra.steps)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from infra import steps
from infra.kafka.clients import Cluster
from infra.kafka.commits import Mark
from infra.kafka.consumer import Assigned, Record
from infra.kafka.producer import Producer
from infra.steps import StepLoop
from schemas import avro
from schemas.errors import BrokerUnavailable, ConfigError
from schemas.records import StatusReason, StepCommand, StepResult


class FakeConsumer:
    """A GroupConsumer in memory."""

    made: FakeConsumer

    def __init__(self, _cluster: Cluster, **given: Any) -> None:
        self.events: StepLoop = given["events"]
        self.commits: list[int] = []
        self.closed = False
        FakeConsumer.made = self

    def start(self) -> None:
        self.events.assigned({0: Assigned(1, 0, "")})

    def commit(self, marks: Mapping[int, Mark]) -> None:
        self.commits += [mark.offset for mark in marks.values()]

    async def close(self) -> None:
        self.closed = True


class FakeProducer:
    def __init__(self) -> None:
        self.answered: list[StepResult] = []

    async def send(self, _topic: str, *, key: bytes, value: bytes) -> None:
        self.answered.append(avro.decode(StepResult, value))


class Module:
    """A handler whose steps end when told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def handle(self, step: StepCommand) -> tuple[StatusReason, ...]:
        self.begun.append(step.step_id)
        await self.gates.setdefault(step.step_id, asyncio.Event()).wait()
        return ()

    async def end(self, step_id: str) -> None:
        self.gates.setdefault(step_id, asyncio.Event()).set()
        await turns()


def record(offset: int, key: str, step_id: str) -> Record:
    step = StepCommand(step_id, step_id, "network", "attach", key, 0)
    return Record(0, offset, key.encode(), avro.encode(step), (), 0)


async def turns() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(module: Module) -> AsyncIterator[tuple[asyncio.Future[None], FakeProducer]]:
    producer = FakeProducer()
    loop = StepLoop(Cluster("x:1"), cast(Producer, producer), module="network", instance_id="m", handle=module.handle)
    work = asyncio.ensure_future(loop.run())
    await turns()
    yield work, producer
    work.cancel()
    await asyncio.wait([work])
    assert FakeConsumer.made.closed


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "GroupConsumer", FakeConsumer)


async def test_steps_of_several_resources_go_on_at_once_and_of_one_in_order() -> None:
    module = Module()
    async with running(module):
        FakeConsumer.made.events.records([record(0, "a", "a0"), record(1, "a", "a1"), record(2, "b", "b0")])
        await turns()
        assert module.begun == ["a0", "b0"]
        await module.end("a0")
        assert module.begun == ["a0", "b0", "a1"]


async def test_nothing_is_committed_over_a_step_that_is_under_way() -> None:
    module = Module()
    async with running(module) as (_, producer):
        consumer = FakeConsumer.made
        consumer.events.records([record(n, key, f"{key}0") for n, key in enumerate("abc")])
        await turns()
        await module.end("c0")
        await module.end("b0")
        assert (consumer.commits, len(producer.answered)) == ([], 2)
        await module.end("a0")
        assert consumer.commits == [3]


async def test_a_step_whose_partition_has_left_is_not_committed() -> None:
    module = Module()
    async with running(module):
        consumer = FakeConsumer.made
        consumer.events.records([record(0, "a", "a0")])
        await turns()
        consumer.events.revoking(frozenset([0]), lambda: None)
        consumer.events.assigned({0: Assigned(2, 0, "")})
        await module.end("a0")
        assert consumer.commits == []


async def test_a_consumer_that_has_ended_ends_the_loop() -> None:
    async with running(Module()) as (work, _):
        FakeConsumer.made.events.failed(BrokerUnavailable("a while"))
        await turns()
        assert not work.done()
        FakeConsumer.made.events.failed(ConfigError("two of one name"))
        with pytest.raises(BrokerUnavailable, match="two of one name"):
            await work
