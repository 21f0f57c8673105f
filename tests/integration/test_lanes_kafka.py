"""Lanes on the real broker: order, commits, concurrency, poison, restarts and rebalances under load."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from infra.broker.installation import Installation
from infra.broker.kafka import running_broker
from infra.clock import mono_s
from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from infra.kafka.producer import Producer
from infra.kafka.scan import Scanner
from ingest.deadletter import DeadIndex, DeadLetterSink, trigger_key
from ingest.lanes import marks
from ingest.triggers import TriggerManager
from router.counts import Counts
from schemas.ids import dead_letter_topic
from schemas.runstatus import RunStatus
from tests.kafka_client import make_topic as new_topic
from tests.kafka_client import read_all
from tests.lane_fakes import View, result
from tests.lane_load import Engine, Function, eventually, fill, new_trigger, spread

pytestmark = pytest.mark.kafka


@pytest.fixture
async def admin(bootstrap: str) -> AsyncIterator[Admin]:
    admin = Admin(Cluster(bootstrap))
    yield admin
    admin.close()


@pytest.fixture
async def producer(bootstrap: str) -> AsyncIterator[Producer]:
    producer = Producer(Cluster(bootstrap), client_id="test", linger_ms=1)
    await producer.start()
    yield producer
    await producer.close()


async def test_20000_records_of_200_keys_run_once_in_key_order_and_no_commit_passes_an_unfinished_one(
    bootstrap: str, admin: Admin, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=4)
    fill(bootstrap, topic, spread(20_000, keys=200, partitions=4))
    trigger = new_trigger(topic, concurrency=32)
    function = Function(lambda: random.random() * 0.003)
    engine = Engine(bootstrap, trigger, function)
    assert trigger.kafka is not None
    group, looks = trigger.kafka.group_id, 0
    while function.count < 20_000:  # what the broker has is checked too, while the work goes on
        for partition, committed in (await admin.committed(group, topic)).items():
            assert set(range(committed.offset)) <= function.finished[partition]
            claimed = marks.decode(committed.offset, committed.metadata).finished
            assert {o for first, end in claimed for o in range(first, end)} <= function.finished[partition]
            looks += 1
        await asyncio.sleep(0.02)
    await engine.close()
    function.assert_in_order()
    assert set(function.starts.values()) == {1}
    assert function.most_at_once == 32
    assert looks > 10
    ends = await admin.end_offsets(topic)
    assert {p: c.offset for p, c in (await admin.committed(group, topic)).items()} == ends


async def test_one_partition_with_32_lanes_is_20_times_as_fast_as_one_after_another(bootstrap: str, topic: str) -> None:
    records, handler_s = 2_000, 0.05
    fill(bootstrap, topic, spread(records, keys=200, partitions=1))
    function = Function(lambda: handler_s)
    engine = Engine(bootstrap, new_trigger(topic), function)
    await eventually(lambda: function.count, "first record")
    began = mono_s()
    await eventually(lambda: function.count == records, "all records", within_s=60)
    took_s = mono_s() - began
    await engine.close()
    function.assert_in_order()
    assert records * handler_s / took_s >= 20


async def test_poison_records_are_all_in_the_dead_letter_topic_with_their_bytes_and_the_others_unharmed(
    bootstrap: str, admin: Admin, producer: Producer, make_topic: Callable[..., str]
) -> None:
    source = make_topic(partitions=4)
    trigger = new_trigger(source, retries=1)
    letters_topic = dead_letter_topic(trigger_key(trigger))
    make_topic(name=letters_topic, partitions=4)
    made = [
        (b"key-%d\xff" % (i % 101), (b"POISON \x00\xfe%d" if i % 100 == 7 else b"fine %d") % i, i % 4)
        for i in range(5_000)
    ]
    fill(bootstrap, source, made)
    poison = {value for _, value, _ in made if value.startswith(b"POISON")}

    def verdict(body: str, _attempt: int) -> object:
        return result() if body.startswith("fine") else result(RunStatus.USER_EXCEPTION)

    function = Function(lambda: 0.001, verdict)  # type: ignore[arg-type]
    engine = Engine(bootstrap, trigger, function, bury=DeadLetterSink(producer).put)
    await eventually(lambda: function.count + len(engine.letters) == 5_000, "all done or dead")
    await engine.close()
    function.assert_in_order()
    assert function.count == 4_950

    letters = read_all(bootstrap, letters_topic, 50)
    assert {letter.value() for letter in letters} == poison
    by_value = {value: (key, partition) for key, value, partition in made}
    for letter in letters:
        headers: dict[str, Any] = dict(letter.headers() or ())
        key, partition = by_value[letter.value() or b""]
        assert letter.key() == key
        assert headers["penstock-source-topic"] == source.encode()
        assert headers["penstock-source-partition"] == b"%d" % partition
        assert (headers["penstock-reason"], headers["penstock-attempts"]) == (b"430", b"2")
        assert b"UserCodeException: boom" in headers["penstock-error"]
    scanner = Scanner(Cluster(bootstrap))
    counts = await DeadIndex(admin, scanner).dead(trigger_key(trigger))
    await scanner.close()
    assert sum(counts.values()) == 50


async def test_work_goes_on_by_itself_after_the_broker_was_killed(
    broker_installation: Installation, tmp_path: Path
) -> None:
    function = Function(lambda: 0.002 + random.random() * 0.004)
    async with running_broker(tmp_path, installation=broker_installation) as first:
        bootstrap = first.bootstrap_servers
        topic = await asyncio.to_thread(new_topic, bootstrap, partitions=2)
        await asyncio.to_thread(fill, bootstrap, topic, spread(10_000, keys=100, partitions=2))
        trigger = new_trigger(topic)
        engine = Engine(bootstrap, trigger, function)
        await eventually(lambda: function.count > 2_000, "some work done")
        assert function.at_once > 0
        first.kill()
    port = int(bootstrap.rpartition(":")[2])
    async with running_broker(tmp_path, port=port, installation=broker_installation):
        await eventually(lambda: function.count == 10_000, "all records", within_s=40)
        await engine.close()
        function.assert_in_order()
        assert max(function.starts.values()) <= 2, "a record may run again when its commit was lost, not more"
        admin = Admin(Cluster(bootstrap))
        assert trigger.kafka is not None
        committed = await admin.committed(trigger.kafka.group_id, topic)
        assert {p: c.offset for p, c in committed.items()} == await admin.end_offsets(topic)
        admin.close()


async def test_a_second_gateway_joins_mid_load_and_nothing_runs_twice(
    bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=4)
    fill(bootstrap, topic, spread(12_000, keys=200, partitions=4))
    trigger = new_trigger(topic, concurrency=16)
    function = Function(lambda: 0.005 + random.random() * 0.015)
    first = Engine(bootstrap, trigger, function, slot="gateway-1")
    await eventually(lambda: function.count > 1_000, "first gateway works")
    second = Engine(bootstrap, trigger, function, slot="gateway-2")
    await eventually(lambda: len(first.partitions) == len(second.partitions) == 2, "partitions shared")
    assert function.at_once > 0
    assert not set(first.partitions) & set(second.partitions)
    at_share = function.count
    await eventually(lambda: function.count > at_share + 2_000, "both work")
    await eventually(lambda: function.count == 12_000, "all records", within_s=50)
    await asyncio.gather(first.close(), second.close())
    function.assert_in_order()
    assert set(function.starts.values()) == {1}
    assert function.most_at_once > 16


async def test_an_engine_that_is_stopped_and_started_again_runs_nothing_twice(
    bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=4)
    fill(bootstrap, topic, spread(8_000, keys=200, partitions=4))
    trigger = new_trigger(topic)
    function = Function(lambda: random.random() * 0.01)
    for stop_at in (2_000, 4_000, 6_000, 8_000):
        engine = Engine(bootstrap, trigger, function)
        await eventually(partial(lambda at: function.count >= at, stop_at), f"{stop_at} records")
        await engine.close()
    function.assert_in_order()
    assert function.count == 8_000
    assert set(function.starts.values()) == {1}


async def test_after_a_kill_only_what_was_in_flight_or_finished_just_before_runs_again(
    bootstrap: str, topic: str
) -> None:
    """One record never ends, so the committed offset stays at the start: what is finished beyond it is known by the metadata alone."""
    records = [(b"stuck", b"stuck", 0), *spread(6_000, keys=100, partitions=1)]
    fill(bootstrap, topic, records)
    trigger = new_trigger(topic)
    assert trigger.kafka is not None
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.lane_victim", bootstrap, topic, trigger.kafka.group_id, "gateway-1",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert victim.stdout is not None
    started: set[int] = set()
    done: dict[int, int] = {}

    def heard(line: bytes) -> None:
        word, _partition, offset, *at_ms = line.decode().split()
        if word == "start":
            started.add(int(offset))
        else:
            done[int(offset)] = int(at_ms[0])

    try:
        async with asyncio.timeout(30):
            while len(done) < 3_000:
                heard(await victim.stdout.readline())
    finally:
        victim.kill()
    async for line in victim.stdout:  # what it said before it died
        if line.endswith(b"\n"):
            heard(line)
    await victim.wait()
    in_flight = started - done.keys()
    assert len(in_flight) > 1, "nothing was in flight at the kill"

    function = Function(lambda: 0.001)
    function.finished[0] |= done.keys()
    engine = Engine(bootstrap, trigger, function)
    await eventually(lambda: function.count == 6_001 and not function.at_once, "the rest", within_s=40)
    await engine.close()
    function.assert_in_order()
    ran = {offset for _, offset in function.starts}
    assert in_flight <= ran
    again = ran & done.keys()
    died_ms = max(done.values())
    assert all(done[offset] > died_ms - 300 for offset in again), "finished long before the kill, and run again"
    assert len(again) < 1_000
    for places in function.order.values():  # order holds over the kill: nothing new before what the victim had done
        offsets = [offset for _, offset in places]
        fresh = [offset for offset in offsets if offset not in again]
        assert not fresh or max(set(offsets) & again, default=-1) < min(fresh)


# ------------------------------------------------------------------------------------------------- triggers as a whole


class Unheard:
    """Takes published states and forgets them."""

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        return True


@asynccontextmanager
async def managing(bootstrap: str, view: View, function: Function, producer: Producer) -> AsyncIterator[TriggerManager]:
    """A TriggerManager at work on `view`."""
    manager = TriggerManager(
        view, function.submit, DeadLetterSink(producer), Unheard(),
        cluster=Cluster(bootstrap), slot="gateway-1", term=1, counts=Counts(),
    )  # fmt: skip
    task = asyncio.ensure_future(manager.run())
    await asyncio.sleep(0)
    try:
        yield manager
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@pytest.mark.long
async def test_an_unknown_topic_and_a_dead_broker_hold_nobody_up_and_a_topic_made_later_is_read(
    bootstrap: str, producer: Producer, make_topic: Callable[..., str]
) -> None:
    good, late = make_topic(), f"late-{uuid4().hex[:8]}"
    fill(bootstrap, good, spread(100, keys=10, partitions=1))
    function, view = Function(lambda: 0.001), View()
    async with managing(bootstrap, view, function, producer) as manager:
        view.put(new_trigger("orders", name="dead", bootstrap_servers="127.0.0.1:1"))
        view.put(new_trigger(late, name="late"))
        view.put(new_trigger(good, name="good"))
        await eventually(lambda: function.count == 100, "the good trigger's records")
        states = {status.key.rpartition("/")[2]: status for status in manager.status()}
        assert (states["good"].state, len(states["good"].partitions)) == ("running", 1)
        assert not states["late"].partitions
        assert not states["dead"].partitions
        make_topic(name=late)
        fill(bootstrap, late, spread(50, keys=10, partitions=1))
        await eventually(lambda: function.starts.total() == 150, "the late topic's records")


@pytest.mark.long
async def test_the_group_of_a_deleted_trigger_can_be_deleted_and_stays_deleted(
    bootstrap: str, producer: Producer, admin: Admin, topic: str
) -> None:
    fill(bootstrap, topic, spread(200, keys=10, partitions=1))
    function, view = Function(lambda: 0.001), View()
    record = new_trigger(topic, name="gone")
    assert record.kafka is not None
    group = record.kafka.group_id
    async with managing(bootstrap, view, function, producer) as manager:
        key = view.put(record)
        await eventually(lambda: function.count == 200, "all records")
        view.delete(key)
        await eventually(lambda: not manager.status(), "the trigger is gone")
        deadline = mono_s() + 20  # the member's place is kept for its session
        while not await admin.delete_group(group):
            assert mono_s() < deadline
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.5)
        assert await admin.committed(group, topic) == {}
