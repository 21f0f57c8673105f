"""`penstock demo`: the main job end to end on real Kafka, shown as it happens, in a data folder of its own.

It starts a fabric, makes a topic, deploys infra/app/demo_function, attaches a trigger, produces orders (some of them poison), and shows them
flow: per customer, in order, retried, dead-lettered. All it knows of the run it learns as a user would: from the function's log and
`trigger list`. Ends 0 when every order was priced in its customer's order or stands in the dead-letter topic.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.app.client import Client, connect
from infra.app.console import ExitStatus, say, say_json
from infra.app.demo_tally import Tally
from infra.app.demo_view import open_view
from infra.app.state import FabricFolder, running_state
from infra.clock import mono_s, unix_ms
from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from infra.kafka.producer import Producer
from schemas.errors import PlatformError, SetupError, UserError

TOPIC, FUNCTION = "orders", "price-orders"
PARTITIONS, CUSTOMERS, ORDERS, POISON_SHARE, PER_S = 4, 20, 1_500, 0.01, 300
START_S, FINISH_S = 90.0, 60.0


@dataclass(slots=True)
class Progress:
    """What is known so far. The names are of this run: in a folder that was kept, an earlier one has its own."""

    topic: str
    function: str
    produced: int = 0
    poison: int = 0
    dead: int = 0
    lag: int = -1
    began_mono_s: float = 0.0
    took_s: float = 0.0
    tally: Tally = field(default_factory=Tally)

    @property
    def retries(self) -> int:
        """Tries beyond the first of each order."""
        return max(0, self.tally.starts - self.tally.priced - self.dead)

    @property
    def is_done(self) -> bool:
        """Everything that was produced is accounted for, and committed."""
        return self.lag == 0 and self.tally.priced + self.dead >= ORDERS


def run(args: argparse.Namespace) -> ExitStatus:
    """The command."""
    own = args.data_dir is None
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-") if own else args.data_dir).absolute()
    if running_state(FabricFolder(folder)) is not None:
        raise UserError(
            f"a fabric runs in {folder}, and the demo starts its own: leave --data-dir out, or name a new folder"
        )
    up = _start_fabric(folder)
    try:
        progress = asyncio.run(_demo(folder, up, as_json=args.json))
    finally:
        _stop_fabric(up)
        if own:
            shutil.rmtree(folder, ignore_errors=True)
    good = _is_good(progress)
    if args.json:
        say_json(_summary(progress))
    else:
        _tell(progress)
    return ExitStatus.OK if good else ExitStatus.FAILED


def _start_fabric(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "demo-up.log").open("wb")
    command = [sys.executable, "-P", "-m", "infra.app.cli", "up", "--data-dir", str(folder), "--allow-weaker-isolation"]
    with log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _stop_fabric(up: subprocess.Popen[bytes]) -> None:
    if up.poll() is None:
        up.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            up.wait(20)
    if up.poll() is None:
        up.kill()
        up.wait()


async def _demo(folder: Path, up: subprocess.Popen[bytes], *, as_json: bool) -> Progress:
    def tell(text: str) -> None:
        if not as_json:
            say(text)

    tell("Starting a fabric of its own: Kafka, object store, gateway, streams, host agent.")
    status = await _ready(folder, up)
    kafka = status["endpoints"]["kafka"]
    for warning in status["warnings"]:
        tell(f"! {warning}")
    tell(f"Ready. Kafka listens on {kafka}; functions run in: {status['driver']}\n")
    cluster = Cluster(kafka)
    admin = Admin(cluster)
    progress = await _named(admin)
    await admin.create_topic(progress.topic, PARTITIONS)
    admin.close()
    code = Path(__file__).parent / "demo_function"
    for command in (
        ("deploy", str(code), "--name", progress.function, "--handler", "index.main_handler"),
        ("trigger", "create", progress.function, "--type", "ckafka", "--topic", progress.topic),
    ):
        tell(f"$ penstock {' '.join(command)}".replace(str(code), "demo_function"))
        tell(await _cli(folder, *command))
    progress.began_mono_s = mono_s()
    client = await asyncio.to_thread(connect, FabricFolder(folder))
    tell(f"Producing {ORDERS} orders of {CUSTOMERS} customers at {PER_S}/s, 1 in 100 of them unreadable (poison):\n")
    with open_view(quiet=as_json) as view:
        async with asyncio.TaskGroup() as group:
            producing = group.create_task(_produce(cluster, progress))
            group.create_task(_follow(client, progress, view, producing))
    progress.took_s = mono_s() - progress.began_mono_s
    return progress


async def _named(admin: Admin) -> Progress:
    """Progress of a run whose topic is new."""
    for run in itertools.count(1):
        end = f"-{run}" if run > 1 else ""
        if await admin.topic(TOPIC + end) is None:
            return Progress(TOPIC + end, FUNCTION + end)
    raise AssertionError("unreachable")


async def _ready(folder: Path, up: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = mono_s() + START_S
    while mono_s() < deadline:
        if up.poll() is not None:
            said = (folder / "demo-up.log").read_text(errors="replace").strip().splitlines()
            raise SetupError(f"the fabric did not start: {said[-1] if said else 'it said nothing'}")
        ran = await asyncio.create_subprocess_exec(
            *_command(folder, "status", "--json"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        out, _ = await ran.communicate()
        if ran.returncode == 0:
            found: dict[str, Any] = json.loads(out)
            return found
        await asyncio.sleep(0.2)
    raise PlatformError(f"the fabric was not ready within {START_S:g} s")


def _command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "infra.app.cli", *words, "--data-dir", str(folder)]


async def _cli(folder: Path, *words: str) -> str:
    ran = await asyncio.create_subprocess_exec(
        *_command(folder, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = await ran.communicate()
    if ran.returncode != 0:
        raise PlatformError(f"penstock {words[0]} failed: {out.decode().strip()}")
    return out.decode()


async def _produce(cluster: Cluster, progress: Progress) -> None:
    chooser = random.Random(2026)
    numbers = [0] * CUSTOMERS
    producer = Producer(cluster, client_id="demo-shop", linger_ms=1)
    await producer.start()
    began = mono_s()
    async with asyncio.TaskGroup() as group:
        for i in range(ORDERS):
            customer = i % CUSTOMERS if i < CUSTOMERS else chooser.randrange(CUSTOMERS)
            number, numbers[customer] = numbers[customer], numbers[customer] + 1
            value = _order(chooser, customer, number)
            progress.poison += value.startswith(b"\xff")
            progress.produced += 1
            group.create_task(_send(producer, progress.topic, customer, value))
            await asyncio.sleep(max(0.0, began + i / PER_S - mono_s()))
    await producer.close()


async def _send(producer: Producer, topic: str, customer: int, value: bytes) -> None:
    await producer.send(topic, key=b"customer-%02d" % customer, value=value, timeout_s=30)


def _order(chooser: random.Random, customer: int, number: int) -> bytes:
    if chooser.random() < POISON_SHARE:
        return b"\xff\xfeorder? %d of customer %d" % (number, customer)
    items = [{"price": chooser.randrange(100, 9_900) / 100, "count": chooser.randrange(1, 4)} for _ in range(3)]
    order = {"customer": f"customer-{customer:02}", "number": number, "sent_ms": unix_ms(), "items": items}
    return json.dumps(order).encode()


async def _follow(client: Client, progress: Progress, view: Any, producing: asyncio.Task[None]) -> None:
    """Fold the log and the trigger's state into `progress` until everything is accounted for."""
    cursor: str | None = None
    deadline = mono_s() + ORDERS / PER_S + FINISH_S
    while mono_s() < deadline:
        at_end = False
        while not at_end:
            page = await asyncio.to_thread(
                client.call,
                "GetFunctionLogLines",
                {"FunctionName": progress.function, "Cursor": cursor, "Limit": 5_000},
            )
            cursor, at_end = page["Cursor"], page["AtEnd"]
            progress.tally.take({"stream": x["Stream"], "line": x["Line"]} for x in page["Lines"])
        sources = await asyncio.to_thread(client.call, "ListEventSources", {"FunctionName": progress.function})
        parts = sources["Sources"][0]["Partitions"]
        progress.lag, progress.dead = sum(p["Lag"] or 0 for p in parts), sum(p["Dead"] or 0 for p in parts)
        view.show(progress)
        if producing.done() and progress.is_done:
            return
        await asyncio.sleep(0.3)


def _is_good(progress: Progress) -> bool:
    tally = progress.tally
    return progress.is_done and tally.out_of_order == 0 and progress.dead == progress.poison


def _summary(progress: Progress) -> dict[str, Any]:
    tally = progress.tally
    return {
        "ok": _is_good(progress),
        "produced": progress.produced,
        "priced": tally.priced,
        "dead_letters": progress.dead,
        "poison": progress.poison,
        "retries": progress.retries,
        "ran_twice": tally.again,
        "out_of_order": tally.out_of_order,
        "lag": progress.lag,
        "seconds": round(progress.took_s, 1),
        "latency_p50_ms": tally.latency_ms(0.5),
        "latency_p99_ms": tally.latency_ms(0.99),
    }


def _tell(progress: Progress) -> None:
    found = _summary(progress)
    say(
        f"\n{found['produced']} orders in {found['seconds']} s: {found['priced']} priced, {found['dead_letters']} in the"
        f" dead-letter topic ({found['poison']} were poison), {found['retries']} tries again, {found['lag']} left."
    )
    say(
        f"Order per customer: {'kept' if not found['out_of_order'] else str(found['out_of_order']) + ' BROKEN'} for all"
        f" {len(progress.tally.customers)} customers. From produce to handler: p50 {found['latency_p50_ms']:.1f} ms,"
        f" p99 {found['latency_p99_ms']:.1f} ms."
    )
    if not found["ok"]:
        say("Something is missing: this is a fault of Penstock; `make test` should show it too.")
    else:
        say("Next: `penstock up`, then your own topic and function; README.md has the five commands.")
