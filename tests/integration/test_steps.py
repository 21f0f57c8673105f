"""The step loop on a real broker: answers, what can be tried again, what was done before, and a handler that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from zlib import crc32

import pytest

from infra import steps
from infra.broker import installation
from infra.broker.kafka import serving_broker
from infra.kafka.clients import Cluster
from infra.kafka.producer import Producer
from infra.steps import StepLoop
from schemas import avro
from schemas.errors import StoreUnavailable
from schemas.records import StatusReason, StepCommand, StepResult
from schemas.topics import CONTROL_PARTITIONS, STEP_RESULTS, STEPS_NETWORK
from tests.streams_process import Client, provision

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]
Handle = Callable[[StepCommand], Awaitable[tuple[StatusReason, ...]]]


@pytest.fixture(scope="module")
def broker(broker_installation: installation.Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_broker(tmp_path_factory.mktemp("steps-broker"), installation=broker_installation) as started:
        asyncio.run(provision(started.bootstrap_servers))
        yield started.bootstrap_servers


@pytest.fixture
async def client(broker: str) -> AsyncIterator[Client]:
    made = Client(broker)
    await made.start()
    yield made
    await made.close()


@asynccontextmanager
async def module(broker: str, handle: Handle) -> AsyncIterator[None]:
    producer = Producer(Cluster(broker), client_id="steps", linger_ms=0)
    await producer.start()
    loop = StepLoop(Cluster(broker), producer, module="network", instance_id="m1", handle=handle)
    running = asyncio.ensure_future(loop.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
        await producer.close()


def step(name: str, attempt: int = 1) -> StepCommand:
    return StepCommand(f"{name}/0", name, "network", "attach", f"1250000000/default/{name}", 0, None, attempt)


async def ask(client: Client, asked: StepCommand, claim: Callable[[StepResult], bool] = lambda _: True) -> StepResult:
    await client.send_raw(STEPS_NETWORK, asked.key, avro.encode(asked))
    found = await client.see(
        STEP_RESULTS, asked.key, lambda r: r is not None and r.attempt == asked.attempt and claim(r)
    )
    assert isinstance(found, StepResult)
    return found


async def test_what_can_be_tried_again_is_answered_so_and_holds_up_nothing(broker: str, client: Client) -> None:
    tried: list[str] = []

    async def handle(asked: StepCommand) -> tuple[StatusReason, ...]:
        tried.append(asked.saga_id)
        if asked.saga_id == "away" and asked.attempt == 1:
            raise StoreUnavailable("the store is away")
        return ()

    async with module(broker, handle):
        away = await ask(client, step("away"))
        assert (away.retryable, away.reasons[0].message) == (True, "the store is away")
        assert (await ask(client, step("other"))).reasons == ()
        again = await ask(client, step("away", attempt=2))
        assert (again.retryable, again.reasons) == (False, ())
    assert tried == ["away", "other", "away"]


async def test_a_step_that_was_done_is_answered_again_without_being_done_again(broker: str, client: Client) -> None:
    done: list[str] = []

    async def handle(asked: StepCommand) -> tuple[StatusReason, ...]:
        done.append(asked.step_id)
        return (StatusReason("FailedOperation", "no"),) if asked.saga_id == "bad" else ()

    async with module(broker, handle):
        for name in ("good", "bad"):
            first = await ask(client, step(name))
            second = await ask(client, step(name, attempt=2))
            assert second == replace(first, attempt=2, unix_ms=second.unix_ms)
    assert done == ["good/0", "bad/0"]


async def test_a_handler_that_hangs_or_breaks_is_answered_for(
    broker: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_STEP_S", 0.2)

    async def handle(asked: StepCommand) -> tuple[StatusReason, ...]:
        if asked.saga_id == "hangs":
            await asyncio.sleep(60)
        raise ZeroDivisionError

    async with module(broker, handle):
        hung, broke = await ask(client, step("hangs")), await ask(client, step("breaks"))
    assert (hung.retryable, hung.reasons[0].code) == (True, "ResourceUnavailable")
    assert (broke.retryable, broke.reasons[0].code) == (False, "InternalError")


async def test_a_slow_step_delays_its_own_key_only_and_nothing_is_committed_over_it(
    broker: str, client: Client
) -> None:
    go, order = asyncio.Event(), list[str]()

    async def handle(asked: StepCommand) -> tuple[StatusReason, ...]:
        order.append(asked.saga_id)
        if asked.saga_id == "slow":
            await go.wait()
        return ()

    partition_of_slow = crc32(b"1250000000/default/slow") % CONTROL_PARTITIONS
    beside = next(
        n for n in map("fast{}".format, range(99)) if crc32(f"1250000000/default/{n}".encode()) % 4 == partition_of_slow
    )
    async with module(broker, handle):
        slow = step("slow")
        await client.send_raw(STEPS_NETWORK, slow.key, avro.encode(slow))
        behind = replace(slow, step_id="behind/0", saga_id="behind")
        await client.send_raw(STEPS_NETWORK, slow.key, avro.encode(behind))
        assert (await ask(client, step(beside), lambda r: r.saga_id == beside)).reasons == ()
        assert {saga for saga in order if saga in ("slow", "behind", beside)} == {"slow", beside}
    order.clear()
    go.set()
    async with module(broker, handle):  # the slow one was under way: it and what is behind it come again
        found = await client.see(STEP_RESULTS, slow.key, lambda r: r is not None and r.saga_id == "behind")
        assert isinstance(found, StepResult)
    assert order.index("slow") < order.index("behind")
