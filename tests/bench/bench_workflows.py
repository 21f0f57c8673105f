"""Workflows with modules that do nothing, through Kafka and Faust: how long one takes, and how many steps a worker does in a second.

A delete has 3 steps, a create 5. Every step is durable before it goes out: state to a changelog, step and history to topics, answer and commit by
its module, each acknowledged. With `--restate ADDRESS` of a Restate ingress that serves the handlers of tests/bench/restate/service.mjs the same is
asked of it, in turns with ours. Prints JSON. Run: python -m tests.bench.bench_workflows
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from infra.broker.kafka import running_broker
from infra.kafka.clients import Cluster
from infra.kafka.producer import Producer
from infra.steps import StepLoop
from schemas.records import StatusReason, StepCommand
from schemas.topics import STEP_TOPICS
from streams.sagas import WORKFLOWS
from tests.commands import command
from tests.streams_process import Client, Worker, provision, running

ROUNDS, EACH, AT_ONCE, MANY = 5, 20, 16, 320
DELETE_STEPS, CREATE_STEPS = (len(WORKFLOWS[f"{verb}-function"].steps) for verb in ("delete", "create"))
One = Callable[[str], Awaitable[None]]


async def nothing(_step: StepCommand) -> tuple[StatusReason, ...]:
    return ()


class Ours:
    """Creates and deletes, from command to outcome."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, name: str) -> None:
        await self._client.send(command("create-function", f"{name}-1", function=name))
        assert (await self._client.outcome(f"{name}-1")).code == ""

    async def delete(self, name: str) -> None:
        await self._client.send(command("delete-function", f"{name}-2", function=name))
        assert (await self._client.outcome(f"{name}-2")).code == ""


async def spread(one: One, names: list[str]) -> list[float]:
    """Milliseconds of each, one after another."""
    took = []
    for name in names:
        began = time.perf_counter()
        await one(name)
        took.append((time.perf_counter() - began) * 1000)
    return took


async def rate(one: One, names: list[str]) -> float:
    """Workflows per second, `AT_ONCE` at a time."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def work(name: str) -> None:
        async with slots:
            await one(name)

    began = time.perf_counter()
    await asyncio.gather(*(work(name) for name in names))
    return len(names) / (time.perf_counter() - began)


def p50(values: list[float]) -> float:
    return round(sorted(values)[len(values) // 2], 2)


async def measure(ours: Ours, restate: Callable[[int], One] | None) -> dict[str, Any]:
    creates, deletes, theirs = [], [], []
    for number in range(ROUNDS):
        names = [f"r{number}x{i}" for i in range(EACH)]
        creates += await spread(ours.create, names)
        deletes += await spread(ours.delete, names)
        if restate is not None:
            theirs += await spread(restate(3), names)
    many = [f"m{i}" for i in range(MANY)]
    created, deleted = await rate(ours.create, many), await rate(ours.delete, many)
    found: dict[str, Any] = {
        "3 steps p50 ms": p50(deletes),
        "5 steps p50 ms": p50(creates),
        "steps/s, 16 workflows of 3": round(deleted * DELETE_STEPS),
        "steps/s, 16 workflows of 5": round(created * CREATE_STEPS),
    }
    if restate is not None:
        found["restate 3 steps p50 ms"] = p50(theirs)
        found["restate steps/s, 16 workflows of 3"] = round(await rate(restate(3), many) * 3)
        found["3 steps / restate"] = round(p50(deletes) / p50(theirs), 2)
    return found


async def main(restate: str | None) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = await stack.enter_async_context(running_broker(folder / "kafka"))
        cluster = Cluster(broker.bootstrap_servers)
        await provision(broker.bootstrap_servers)
        stack.enter_context(running(Worker(folder, broker.bootstrap_servers)))
        producer = Producer(cluster, client_id="modules", linger_ms=0)
        await producer.start()
        stack.push_async_callback(producer.close)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        loops = [
            tasks.create_task(StepLoop(cluster, producer, module=m, instance_id="bench", handle=nothing).run())
            for m in STEP_TOPICS
        ]
        client = Client(broker.bootstrap_servers)
        await client.start()
        stack.push_async_callback(client.close)
        ours, session = Ours(client), await stack.enter_async_context(aiohttp.ClientSession())

        def theirs(steps: int) -> One:
            async def one(name: str) -> None:
                async with session.post(f"{restate}/bench/steps{steps}", json=name) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()

            return one

        await spread(ours.create, ["warm"])
        await spread(ours.delete, ["warm"])
        figures = await measure(ours, theirs if restate else None)
        print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], **figures}, indent=1))
        for loop in loops:
            loop.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--restate", help="http://HOST:PORT of an ingress")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the processes that the modules live in
        runner.run(main(parser.parse_args().restate))
