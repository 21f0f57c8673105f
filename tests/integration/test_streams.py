"""The streams process on a real broker: what it answers, and that killing it, or the broker, loses and doubles nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from infra.broker import installation
from infra.broker.kafka import RunningBroker, serving_broker
from infra.clock import unix_ms
from schemas import avro
from schemas.errors import BrokerUnavailable, ConfigError
from schemas.records import (
    FunctionActivity,
    InvocationWindow,
    Member,
    Outcome,
    StepCommand,
    StepResult,
    TriggerRecord,
)
from schemas.topics import (
    ACTIVITY,
    COMMANDS,
    FUNCTIONS,
    INVOCATIONS,
    MEMBERS,
    STEP_RESULTS,
    STEPS_CODE,
    STEPS_TRIGGER,
    TRIGGERS,
)
from streams import worker as streams_worker
from streams.worker import StreamsConfig, check_topics, run_streams
from tests.commands import FAILURE, answer, command, other_config
from tests.kafka_client import make_topic
from tests.streams_process import Client, Worker, provision, running

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]
_NUMBERS = count()


@pytest.fixture(scope="module")
def broker(broker_installation: installation.Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker of this module's own: the control topics have fixed names."""
    with serving_broker(tmp_path_factory.mktemp("streams-broker"), installation=broker_installation) as started:
        asyncio.run(provision(started.bootstrap_servers))
        yield started.bootstrap_servers


@pytest.fixture(scope="module")
def worker(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """The worker that most tests share; those that kill it start it again."""
    with running(Worker(tmp_path_factory.mktemp("streams"), broker)) as started:
        yield started


@pytest.fixture
async def client(broker: str) -> AsyncIterator[Client]:
    made = Client(broker)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def name() -> str:
    """A function of this test's own; its commands are `NAME-1`, `NAME-2`, …"""
    return f"fn{next(_NUMBERS)}"


async def test_a_create_becomes_creating_with_a_step_and_active_with_its_answer(
    worker: Worker, client: Client, name: str
) -> None:
    offset = await client.send(command("create-function", f"{name}-1", function=name))
    creating = await client.function(name, "Creating")
    assert (creating.applied, creating.command_id) == (offset, f"{name}-1")
    step = await client.see(STEPS_CODE, f"1250000000/default/{name}", lambda s: s is not None)
    assert isinstance(step, StepCommand)
    assert (step.module, step.saga_id, step.config) == ("code", f"{name}-1", creating.proposed)
    assert step.step_id == answer(f"{name}-1", function=name).step_id
    await client.complete(f"{name}-1", name)
    active = await client.function(name, "Active")
    assert active.serving == creating.proposed
    assert await client.outcome(f"{name}-1") == Outcome(f"{name}-1", f"1250000000/default/{name}")


async def test_a_failed_step_says_why_and_a_refused_command_has_its_code(
    worker: Worker, client: Client, name: str
) -> None:
    await client.send(command("create-function", f"{name}-1", function=name))
    await client.send(command("create-function", f"{name}-2", function=name))
    assert (await client.outcome(f"{name}-2")).code == "ResourceInUse.FunctionName"
    await client.send(answer(f"{name}-1", function=name, reasons=FAILURE))
    assert (await client.function(name, "CreateFailed")).reasons == FAILURE
    assert (await client.outcome(f"{name}-1")).code == "FailedOperation.CreateFunction"


async def test_triggers_and_functions_come_and_go(worker: Worker, client: Client, name: str) -> None:
    key = f"1250000000/default/{name}"
    await client.send(command("create-trigger", f"{name}-1", function=name, trigger="t"))
    step = await client.see(STEPS_TRIGGER, f"{key}/t", lambda s: s is not None)
    assert isinstance(step, StepCommand)
    assert (step.operation, step.trigger and step.trigger.name) == ("bind", "t")
    await client.send(StepResult(step.step_id, step.saga_id, "trigger", f"{key}/t", unix_ms()))
    assert (await client.outcome(f"{name}-1")).code == ""
    made = await client.see(TRIGGERS, f"{key}/t", lambda r: r is not None)
    assert isinstance(made, TriggerRecord)
    await client.send(command("delete-trigger", f"{name}-2", function=name, trigger="t"))
    assert (await client.outcome(f"{name}-2")).code == ""
    await client.see(TRIGGERS, f"{key}/t", lambda r: r is None)
    await client.see(STEPS_TRIGGER, f"{key}/t", lambda s: s is not None and s.operation == "unbind")
    await client.send(command("create-function", f"{name}-3", function=name))
    await client.function(name, "Creating")
    await client.send(command("delete-function", f"{name}-4", function=name))
    await client.complete(f"{name}-4", name, "delete-function")
    await client.see(FUNCTIONS, key, lambda r: r is None)


async def test_windows_become_activity_that_decays_to_rest(worker: Worker, client: Client, name: str) -> None:
    key = f"1250000000/default/{name}"
    window = InvocationWindow(key, "g1", 1, 1, unix_ms(), 200, 40, 30, 1, 0, 0, 0, 9, 2, 3_100, 500, 0)
    for _ in range(2):
        await client.send_raw(INVOCATIONS, key, avro.encode(window))
    shown = await client.see(ACTIVITY, key, lambda a: a is not None)
    assert isinstance(shown, FunctionActivity)
    assert (shown.arrivals, shown.completed, shown.in_flight, shown.queued) == (40, 30, 9, 2)
    assert 0 < shown.arrivals_per_s <= 4.0
    assert (shown.duration_mean_us, shown.duration_max_us) == (100, 500)
    rest = await client.see(ACTIVITY, key, lambda a: a is not None and a.in_flight == 0 and a.arrivals_per_s == 0)
    assert rest.arrivals == 40


async def test_unreadable_records_are_skipped_and_the_worker_goes_on(worker: Worker, client: Client, name: str) -> None:
    assert worker.process is not None
    pid = worker.process.pid
    good = avro.encode(command("create-function", f"{name}-1", function=name))
    for topic in (COMMANDS, STEP_RESULTS, INVOCATIONS):
        for key, value in (
            (None, None),
            ("k", b""),
            ("k", b"{}"),
            ("k", good[:20]),
            ("k", os.urandom(2_000)),
            ("k", good),
        ):
            for _ in range(4):
                await client.send_raw(topic, key, value)
    await client.send(command("create-function", f"{name}-1", function=name))
    await client.function(name, "Creating")
    assert worker.alive
    assert worker.process.pid == pid


async def test_a_worker_says_that_it_lives(worker: Worker, client: Client) -> None:
    first = await client.see(MEMBERS, "streams/streams-1", lambda m: m is not None)
    assert isinstance(first, Member)
    again = await client.see(MEMBERS, "streams/streams-1", lambda m: m.unix_ms > first.unix_ms)
    assert (again.kind, again.term >= first.term) == ("streams", True)


async def test_killed_at_work_it_comes_back_and_no_command_is_lost_or_done_twice(
    worker: Worker, client: Client, name: str
) -> None:
    functions = [f"{name}x{i}" for i in range(150)]
    for function in functions:
        await client.send(command("create-function", f"{function}-1", function=function))
    for function in functions:
        await client.function(function, "Creating")

    async def activate_and_update(function: str) -> None:
        await client.complete(f"{function}-1", function)
        await client.function(function, "Active")
        for i in range(2, 6):
            wish = command("update-function", f"{function}-{i}", function=function, config=other_config(f"i.h{i}"))
            await client.send(wish)

    sending = [asyncio.ensure_future(activate_and_update(function)) for function in functions]

    def done() -> int:
        records = client.functions()
        return sum(records[f"1250000000/default/{f}"].command_id.endswith("-5") for f in functions)

    seen: list[int] = []
    for _ in range(2):
        await _until(lambda: done() > 10 * (1 + len(seen)))
        seen.append(done())
        worker.end(signal.SIGKILL)
        worker.start()
    assert seen[-1] < len(functions), "all work was over before the kill"
    await asyncio.gather(*sending)
    for function in functions:
        key = f"1250000000/default/{function}"
        record = await client.see(FUNCTIONS, key, lambda r: r.command_id.endswith("-5"))
        assert (record.status, record.serving.handler, record.proposed.handler) == (
            "Updating",
            "index.main_handler",
            "i.h5",
        )
        for i in range(1, 5):
            code = (await client.outcome(f"{function}-{i}")).code
            assert code == ("" if i == 1 else "FailedOperation"), (
                "each update but the last was given up, once and for all"
            )
    print(f"\nkilled with {seen} of {len(functions)} done")


async def _until(claim: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not claim():
            await asyncio.sleep(0.005)


async def test_what_it_writes_for_a_key_is_numbered_without_a_gap_or_a_repeat_over_kills(
    worker: Worker, client: Client, name: str
) -> None:
    """`seq` of a description change is one more than before: a command done twice would show."""
    await client.send(command("create-function", f"{name}-0", function=name))
    created = await client.function(name, "Creating")
    last = 0
    for i in range(1, 200):
        last = await client.send(command("update-function", f"{name}-{i}", function=name, description=f"d{i}"))
        if i in (60, 130):
            worker.end(signal.SIGKILL)
            worker.start()
    record = await client.see(FUNCTIONS, f"1250000000/default/{name}", lambda r: r.description == "d199")
    assert record.applied == last
    assert record.seq == max(created.seq, last) + 1 == created.seq + (last - created.applied)
    for i in range(1, 200):
        assert (await client.outcome(f"{name}-{i}")).code == ""


async def test_from_sigkill_to_work_takes_seconds_and_sigterm_ends_it_at_once(
    worker: Worker, client: Client, name: str
) -> None:
    took_s = []
    for i in range(3):
        worker.end(signal.SIGKILL)
        started = time.monotonic()
        worker.start()
        await client.send(command("create-function", f"{name}x{i}-1", function=f"{name}x{i}"))
        await client.function(f"{name}x{i}", "Creating")
        took_s.append(round(time.monotonic() - started, 2))
    started = time.monotonic()
    status = worker.end(signal.SIGTERM)
    stop_s = time.monotonic() - started
    worker.start()
    await client.send(command("create-function", f"{name}-1", function=name))
    await client.function(name, "Creating")
    print(f"\nfrom SIGKILL and start to a command's record {took_s} s; SIGTERM to exit {stop_s:.2f} s")
    assert status == 0
    assert stop_s < 3
    assert statistics.median(took_s) < 10


async def test_a_command_shows_soon(worker: Worker, client: Client, name: str) -> None:
    took_ms = []
    for i in range(60):
        started = time.monotonic()
        await client.send(command("create-function", f"{name}x{i}-1", function=f"{name}x{i}"))
        await client.function(f"{name}x{i}", "Creating")
        took_ms.append((time.monotonic() - started) * 1000)
        await asyncio.sleep(0.005)
    print(f"\ncommand to record, p50 {statistics.median(took_ms):.1f} ms, max {max(took_ms):.1f} ms")
    assert statistics.median(took_ms) < 200, "something waits for a timer"


async def test_a_second_worker_of_the_same_instance_is_refused(
    worker: Worker, broker: str, client: Client, name: str
) -> None:
    await client.send(command("create-function", f"{name}-1", function=name))
    await client.function(name, "Creating")
    twin = Worker(worker.log.parent, broker).start()
    assert twin.process is not None
    assert twin.process.wait(20) == 78
    assert worker.alive
    assert "runs already" in worker.log.read_text()


async def test_topics_with_other_partition_counts_are_refused(broker: str, tmp_path: Path) -> None:
    make_topic(broker, name="odd-registry-changelog", partitions=3)
    config = StreamsConfig(broker, "streams-1", tmp_path, app_id="odd")
    with pytest.raises(ConfigError, match="odd-registry-changelog has 3 partitions"):
        await check_topics(config)


@pytest.mark.long
async def test_a_second_worker_takes_half_and_all_when_the_first_dies(
    worker: Worker, broker: str, client: Client, name: str, tmp_path: Path
) -> None:
    functions = [f"{name}x{i}" for i in range(24)]
    for function in functions:
        await client.send(command("create-function", f"{function}-1", function=function))
    for function in functions:
        await client.function(function, "Creating")
    since_ms = unix_ms()
    alone = await client.see(MEMBERS, "streams/streams-1", lambda m: m.unix_ms > since_ms)
    with running(Worker(tmp_path, broker, "streams-2")):
        second = await client.see(MEMBERS, "streams/streams-2", lambda m: m is not None and len(_partitions(m)) == 2)
        first = await client.see(MEMBERS, "streams/streams-1", lambda m: len(_partitions(m)) == 2)
        assert _partitions(first) | _partitions(second) == {0, 1, 2, 3}
        assert _keys(first) + _keys(second) == _keys(alone), "a worker holds state that is not its own"
        for function in functions:
            await client.complete(f"{function}-1", function)
        for function in functions:
            await client.function(function, "Active")
        worker.end(signal.SIGKILL)
        started = time.monotonic()
        for function in functions:
            await client.send(command("delete-function", f"{function}-2", function=function))
        for function in functions:
            await client.complete(f"{function}-2", function, "delete-function")
            assert (await client.outcome(f"{function}-2")).code == ""
        print(f"\nthe other worker took over {time.monotonic() - started:.1f} s after a SIGKILL")
    worker.start()
    await client.send(command("create-function", f"{name}-1", function=name))
    await client.function(name, "Creating")


def _partitions(member: Member) -> set[int]:
    return set(json.loads(member.detail)["partitions"])


def _keys(member: Member) -> int:
    return int(json.loads(member.detail)["keys"])


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_workers_that_come_and_go_under_load_lose_nothing(
    worker: Worker, broker: str, client: Client, name: str, tmp_path: Path
) -> None:
    """Each rebalance makes Faust drop some of what it has fetched."""
    ending = asyncio.Event()

    async def create_and_activate(function: str) -> None:
        await client.send(command("create-function", f"{function}-1", function=function))
        await client.function(function, "Creating", 90)
        await client.complete(f"{function}-1", function)
        await client.function(function, "Active", 90)

    async def load() -> int:
        async with asyncio.TaskGroup() as tasks:
            for i in count():
                if ending.is_set():
                    return i
                tasks.create_task(create_and_activate(f"{name}x{i}"))
                await asyncio.sleep(0.015)
        raise AssertionError

    loading = asyncio.ensure_future(load())
    for i in range(2, 5):
        with running(Worker(tmp_path, broker, f"streams-{i}")):
            key = f"streams/streams-{i}"
            await client.see(MEMBERS, key, lambda m: m is not None and len(_partitions(m)) in {1, 2})
    ending.set()
    print(f"\n{await loading} functions, all Active")


@pytest.mark.long
@pytest.mark.parametrize("away_s", [0.0, 2.0])
async def test_it_goes_on_by_itself_when_the_broker_comes_back(
    broker_installation: installation.Installation, tmp_path: Path, away_s: float
) -> None:
    with serving_broker(tmp_path / "broker", installation=broker_installation) as started:
        bootstrap = started.bootstrap_servers
        await provision(bootstrap)
        with running(Worker(tmp_path, bootstrap)) as process:
            client = Client(bootstrap)
            await client.start()
            await client.send(command("create-function", "first-1", function="first"))
            await client.function("first", "Creating")
            load = (client.send(command("create-function", f"fn{i}-1", function=f"fn{i}")) for i in range(1_000))
            await asyncio.gather(*load)
            await _until(lambda: len(client.functions()) > 100)
            in_flight = 1_001 - len(client.functions())
            started.kill()
            assert in_flight > 0, "all was done before the kill"
            await asyncio.sleep(away_s)
            began = time.monotonic()
            with _again(started) as bootstrap_again:
                assert bootstrap_again == bootstrap
                for i in range(1_000):
                    await client.function(f"fn{i}", "Creating", 60)
                print(
                    f"\n{in_flight} commands in flight; all done {time.monotonic() - began:.1f} s after the broker's start"
                )
                assert process.alive
                await client.close()


@contextmanager
def _again(broker: RunningBroker) -> Iterator[str]:
    port = int(broker.bootstrap_servers.rsplit(":", 1)[1])
    with serving_broker(
        broker.broker.data_dir, port=port, warm=False, installation=broker.broker.installation
    ) as started:
        yield started.bootstrap_servers


async def test_without_a_broker_it_ends_with_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.worker.ADMIN_S", 1.0)
    with pytest.raises(BrokerUnavailable):
        await run_streams(StreamsConfig("127.0.0.1:9", "streams-1", tmp_path))


async def test_a_first_record_that_comes_while_faust_stands_still_is_not_lost(
    broker_installation: installation.Installation, tmp_path: Path
) -> None:
    """Faust drops what it fetched during a rebalance and seeks back, by itself only to committed offsets above 0."""
    with serving_broker(tmp_path / "broker", installation=broker_installation) as started:
        await provision(started.bootstrap_servers)
        config = StreamsConfig(started.bootstrap_servers, "streams-1", tmp_path)
        await check_topics(config)
        worker = streams_worker._Worker(config)
        client = Client(started.bootstrap_servers)
        await client.start()
        async with worker.started():
            ready = asyncio.Event()
            works = [asyncio.ensure_future(work) for work in worker.works(ready.set)]
            await ready.wait()
            consumer = worker._app.consumer
            consumer.stop_flow()
            await client.send(command("create-function", "c1", function="first"))
            await _until(lambda: any(consumer.highwater(tp) for tp in consumer.assignment() if tp.topic == COMMANDS))
            consumer.resume_flow()
            await client.function("first", "Creating", 5)
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
        await client.close()
