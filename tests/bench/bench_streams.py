"""The streams process beside its floor, in one run: command to record, whole sagas, windows taken in, restart after SIGKILL.

The floor is what any answer through Kafka costs with these clients: one record produced by the same producer and seen by the same table
reader. Prints one JSON object a line. Run: python -m tests.bench.bench_streams
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from infra.broker.kafka import running_broker
from infra.clock import unix_ms
from schemas import avro
from schemas.records import InvocationWindow, Outcome
from schemas.topics import ACTIVITY, INVOCATIONS, OUTCOMES
from tests.commands import command
from tests.streams_process import Client, Worker, provision, running

IDLE, BURST, SAGAS, WINDOWS, FUNCTIONS_RUNNING, RESTARTS = 200, 2_000, 500, 5_000, 100, 5


def say(what: str, **figures: Any) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


def spread(values: list[float]) -> dict[str, float]:
    """Without the first tenth."""
    kept = sorted(values[len(values) // 10 :])
    return {name: round(kept[int(len(kept) * part)], 1) for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def cpu_s(worker: Worker) -> float:
    assert worker.process is not None
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def floor(client: Client) -> dict[str, float]:
    took = []
    for i in range(IDLE):
        key = f"floor-{i}"
        started = time.perf_counter()
        await client.send_raw(OUTCOMES, key, avro.encode(Outcome(key, key)))
        await client.see(OUTCOMES, key, lambda o: o is not None)
        took.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.01)
    return spread(took)


async def idle(client: Client) -> dict[str, float]:
    took = []
    for i in range(IDLE):
        started = time.perf_counter()
        await client.send(command("create-function", f"idle{i}-1", function=f"idle{i}"))
        await client.function(f"idle{i}", "Creating")
        took.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.01)
    return spread(took)


async def burst(client: Client, worker: Worker) -> None:
    names = [f"burst{i}" for i in range(BURST)]
    before, started = cpu_s(worker), time.perf_counter()
    await asyncio.gather(*(client.send(command("create-function", f"{n}-1", function=n)) for n in names))
    for n in names:
        await client.function(n, "Creating")
    took = time.perf_counter() - started
    say("burst of creates", per_s=round(BURST / took), cpu_us_each=round((cpu_s(worker) - before) / BURST * 1e6))


async def sagas(client: Client, worker: Worker) -> None:
    """Create to Active with a module that answers at once, sixteen at a time."""
    took: list[float] = []
    slots = asyncio.Semaphore(16)
    before, started = cpu_s(worker), time.perf_counter()

    async def one(name: str) -> None:
        async with slots:
            began = time.perf_counter()
            await client.send(command("create-function", f"{name}-1", function=name))
            await client.complete(f"{name}-1", name)
            await client.function(name, "Active")
            took.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(one(f"saga{i}") for i in range(SAGAS)))
    wall = time.perf_counter() - started
    each = round((cpu_s(worker) - before) / SAGAS * 1e6)
    say("sagas of creates, 16 at a time", per_s=round(SAGAS / wall), ms=spread(took), cpu_us_each=each)


async def windows(client: Client, worker: Worker) -> None:
    keys = [f"1250000000/default/w{i}" for i in range(FUNCTIONS_RUNNING)]
    before, started = cpu_s(worker), time.perf_counter()
    sends = []
    for number in range(WINDOWS // FUNCTIONS_RUNNING):
        for key in keys:
            value = InvocationWindow(key, "g1", 1, number, unix_ms(), 200, 10, 9, 1, 0, 0, 0, 1, 0, 100, 10, 5)
            sends.append(client.send_raw(INVOCATIONS, key, avro.encode(value)))
    await asyncio.gather(*sends)
    want = WINDOWS // FUNCTIONS_RUNNING * 10
    for key in keys:
        await client.see(ACTIVITY, key, lambda a: a is not None and a.arrivals == want)
    took = time.perf_counter() - started
    each = round((cpu_s(worker) - before) / WINDOWS * 1e6)
    say("windows of invocations", per_s=round(WINDOWS / took), cpu_us_each=each)


async def restarts(client: Client, worker: Worker) -> None:
    took = []
    for i in range(RESTARTS):
        worker.end(signal.SIGKILL)
        started = time.perf_counter()
        worker.start()
        await client.send(command("create-function", f"again{i}-1", function=f"again{i}"))
        await client.function(f"again{i}", "Creating")
        took.append(round(time.perf_counter() - started, 2))
    started = time.perf_counter()
    worker.end(signal.SIGTERM)
    stopped = round(time.perf_counter() - started, 2)
    known = len(client.functions())
    say(
        "SIGKILL and start to a record",
        s=took,
        median_s=statistics.median(took),
        functions=known,
        sigterm_to_exit_s=stopped,
    )


async def idle_cost(worker: Worker) -> None:
    before = cpu_s(worker)
    await asyncio.sleep(5)
    assert worker.process is not None
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    rss = next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    say("idle", cpu_percent=round((cpu_s(worker) - before) / 5 * 100, 1), rss_mib=rss)


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch:
        folder = Path(scratch)
        async with running_broker(folder / "kafka") as broker:
            await provision(broker.bootstrap_servers)
            client = Client(broker.bootstrap_servers)
            await client.start()
            with running(Worker(folder, broker.bootstrap_servers)) as worker:
                await client.send(command("create-function", "first-1", function="first"))
                await client.function("first", "Creating")
                say("machine", load=os.getloadavg(), cores=os.cpu_count())
                one_hop, answered = await floor(client), await idle(client)
                ratio = round(answered["p50"] / one_hop["p50"], 2)
                say("command to its record, ms", floor_one_hop=one_hop, streams=answered, p50_ratio=ratio)
                await burst(client, worker)
                await sagas(client, worker)
                await idle_cost(worker)
                await windows(client, worker)
                await restarts(client, worker)
            await client.close()


if __name__ == "__main__":
    asyncio.run(main())
