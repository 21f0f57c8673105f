"""The Kafka door on a real broker: producer, admin, tables, and the thread that owns a group's consumer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

import infra.kafka.consumer as door
from infra.clock import mono_s
from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from infra.kafka.commits import Mark
from infra.kafka.consumer import Assigned, GroupConsumer, Record
from infra.kafka.producer import Producer
from infra.kafka.tables import TableReader
from schemas import avro
from schemas.errors import BrokerUnavailable, PenstockError
from schemas.records import Member
from schemas.topics import TopicSpec

pytestmark = pytest.mark.kafka


@pytest.fixture
def cluster(bootstrap: str) -> Cluster:
    return Cluster(bootstrap)


@pytest.fixture
async def admin(cluster: Cluster) -> AsyncIterator[Admin]:
    admin = Admin(cluster)
    yield admin
    admin.close()


@pytest.fixture
async def producer(cluster: Cluster) -> AsyncIterator[Producer]:
    producer = Producer(cluster, client_id="test", linger_ms=0)
    await producer.start()
    yield producer
    await producer.close()


async def eventually(claim: Callable[[], Any], what: str, *, within_s: float = 15) -> Any:
    deadline = mono_s() + within_s
    while not (value := claim()):
        assert mono_s() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.01)
    return value


class Owner:
    """Collects what a GroupConsumer tells; commits nothing by itself."""

    def __init__(self) -> None:
        self.owned: dict[int, Assigned] = {}
        self.got: list[Record] = []
        self.errors: list[PenstockError] = []
        self.revoked: list[int] = []

    def assigned(self, partitions: dict[int, Assigned]) -> None:
        self.owned |= partitions

    def records(self, batch: list[Record]) -> None:
        self.got += batch

    def revoking(self, partitions: frozenset[int], done: Callable[[], None]) -> None:
        self.revoked += partitions
        for p in partitions:
            self.owned.pop(p)
        done()

    def lost(self, partitions: frozenset[int]) -> None:
        for p in partitions:
            self.owned.pop(p)

    def failed(self, error: PenstockError) -> None:
        self.errors.append(error)


def member(cluster: Cluster, topic: str, group: str, owner: Owner, instance: str = "slot-1") -> GroupConsumer:
    consumer = GroupConsumer(
        cluster,
        topic=topic,
        group_id=group,
        instance_id=instance,
        events=owner,
        loop=asyncio.get_running_loop(),
        parse_epoch=lambda metadata: int(metadata or 0),
    )
    consumer.start()
    return consumer


async def topic_with(admin: Admin, producer: Producer, partitions: int, per_partition: int) -> str:
    topic = f"t-{uuid4().hex}"
    await admin.create_topic(topic, partitions)
    for p in range(partitions):
        for i in range(per_partition):
            await producer.send(topic, key=b"k", value=b"%d" % i, headers=[("h", b"v")], partition=p)
    return topic


async def test_offsets_of_a_topic_and_of_a_group_without_members(admin: Admin, producer: Producer) -> None:
    topic = await topic_with(admin, producer, 2, 3)
    assert await admin.end_offsets(topic) == {0: 3, 1: 3}
    assert await admin.start_offsets(topic) == {0: 0, 1: 0}
    assert await admin.offsets_at(topic, 2**42) == {0: 3, 1: 3}
    assert await admin.offsets_at(topic, 0) == {0: 0, 1: 0}
    assert await admin.committed("g-" + topic, topic) == {}
    await admin.commit_offsets("g-" + topic, topic, {0: 2, 1: 3})
    assert {p: c.offset for p, c in (await admin.committed("g-" + topic, topic)).items()} == {0: 2, 1: 3}
    assert await admin.delete_group("g-" + topic)
    assert await admin.committed("g-" + topic, topic) == {}


async def test_a_topic_that_is_not_there_is_none_and_creating_twice_says_so(admin: Admin) -> None:
    name = f"t-{uuid4().hex}"
    assert await admin.topic(name) is None
    assert await admin.create_topic(name, 3)
    assert not await admin.create_topic(name, 3)
    assert await admin.topic(name) == (name, 3)


async def test_an_unreachable_cluster_is_a_typed_error_within_its_time() -> None:
    began = mono_s()
    with pytest.raises(BrokerUnavailable):
        await Admin(Cluster("127.0.0.1:1"), timeout_s=1).topic("x")
    assert mono_s() - began < 8


async def test_a_view_holds_the_newest_value_of_each_key_and_follows(
    cluster: Cluster, admin: Admin, producer: Producer
) -> None:
    spec = TopicSpec(f"t-{uuid4().hex}", Member, 2, True, None, "test", "test")
    await admin.provision([spec])
    for term in range(5):
        await producer.send(spec.name, key=b"a", value=avro.encode(Member("agent", "a", "h", "z", "x", term, 0)))
    await producer.send(spec.name, key=b"gone", value=avro.encode(Member("agent", "b", "h", "z", "x", 1, 0)))
    await producer.send(spec.name, key=b"gone", value=None)
    await producer.send(spec.name, key=b"bad", value=b"not avro")
    reader = TableReader(cluster, [spec])
    await reader.start()
    view = reader.view(spec.name)
    changes: list[tuple[str, Any]] = []
    view.subscribe(lambda key, value: changes.append((key, value)))
    assert {k: v.term for k, v in view.items().items()} == {"a": 4}
    await producer.send(spec.name, key=b"a", value=avro.encode(Member("agent", "a", "h", "z", "x", 9, 0)))
    assert await view.wait("a", lambda m: m is not None and m.term == 9, 5) is not None
    await producer.send(spec.name, key=b"a", value=None)
    await view.wait("a", lambda m: m is None, 5)
    assert [(k, v and v.term) for k, v in changes] == [("a", 9), ("a", None)]
    await reader.close()


async def test_a_group_consumer_hands_over_each_partition_in_order_and_keeps_its_commit(
    cluster: Cluster, admin: Admin, producer: Producer
) -> None:
    topic = await topic_with(admin, producer, 2, 20)
    owner = Owner()
    consumer = member(cluster, topic, topic, owner)
    await eventually(lambda: len(owner.got) == 40, "40 records")
    for p in range(2):
        assert [r.offset for r in owner.got if r.partition == p] == list(range(20))
    assert owner.got[0].headers == (("h", b"v"),)
    epoch = owner.owned[0].epoch
    consumer.commit({0: Mark(epoch, 12, str(epoch))})
    await consumer.close()
    assert (await admin.committed(topic, topic))[0] == (12, str(epoch))
    again = Owner()
    consumer = member(cluster, topic, topic, again)
    await eventually(lambda: len(again.got) == 28, "what was not committed")
    assert (again.owned[0].offset, again.owned[0].metadata) == (12, str(epoch))
    assert again.owned[0].epoch > epoch
    await consumer.close()


async def test_a_mark_of_an_older_epoch_is_dropped_and_a_lower_offset_too(
    cluster: Cluster, admin: Admin, producer: Producer
) -> None:
    topic = await topic_with(admin, producer, 1, 10)
    owner = Owner()
    consumer = member(cluster, topic, topic, owner)
    await eventually(lambda: len(owner.got) == 10, "records")
    epoch = owner.owned[0].epoch
    consumer.commit({0: Mark(epoch, 8, "8")})
    await asyncio.sleep(0.2)
    consumer.commit({0: Mark(epoch, 5, "5")})
    consumer.commit({0: Mark(epoch - 1, 10, "10")})
    await consumer.close()
    assert (await admin.committed(topic, topic))[0] == (8, "8")
    assert consumer.stale_marks == 1


async def test_a_second_member_takes_half_and_the_kept_partitions_are_not_revoked(
    cluster: Cluster, admin: Admin, producer: Producer
) -> None:
    topic = await topic_with(admin, producer, 4, 1)
    first, second = Owner(), Owner()
    one = member(cluster, topic, topic, first, "slot-1")
    await eventually(lambda: len(first.owned) == 4, "all four at the first")
    two = member(cluster, topic, topic, second, "slot-2")
    await eventually(lambda: len(second.owned) == 2 and len(first.owned) == 2, "two each", within_s=25)
    assert sorted([*first.owned, *second.owned]) == [0, 1, 2, 3]
    assert len(first.revoked) == 2
    await asyncio.gather(one.close(), two.close())


async def test_two_owners_of_one_slot_fail_loudly(cluster: Cluster, admin: Admin, producer: Producer) -> None:
    topic = await topic_with(admin, producer, 1, 1)
    first, second = Owner(), Owner()
    one = member(cluster, topic, topic, first, "slot-1")
    await eventually(lambda: first.owned, "the first joined")
    two = member(cluster, topic, topic, second, "slot-1")
    await eventually(lambda: any("one slot" in str(e) for e in first.errors), "the first is told", within_s=25)
    assert not any(e.retryable for e in first.errors if "one slot" in str(e))
    await asyncio.gather(one.close(), two.close())


async def test_holding_stops_the_hand_over_and_releasing_goes_on_without_a_gap(
    cluster: Cluster, admin: Admin, producer: Producer
) -> None:
    topic = await topic_with(admin, producer, 1, 5)
    owner = Owner()
    consumer = member(cluster, topic, topic, owner)
    await eventually(lambda: len(owner.got) == 5, "records")
    consumer.hold()
    await asyncio.sleep(0.1)
    for i in range(5):
        await producer.send(topic, key=b"k", value=b"%d" % i)
    await asyncio.sleep(0.3)
    assert len(owner.got) == 5
    consumer.release()
    await eventually(lambda: [r.offset for r in owner.got] == list(range(10)), "the rest")
    await consumer.close()


async def test_every_call_on_the_consumer_comes_from_its_thread(
    cluster: Cluster, admin: Admin, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: set[str] = set()

    class Watched(door.Consumer):  # type: ignore[misc, name-defined]
        def __getattribute__(self, name: str) -> Any:
            callers.add(threading.current_thread().name)
            return super().__getattribute__(name)

    monkeypatch.setattr(door, "Consumer", Watched)
    topic = await topic_with(admin, producer, 1, 3)
    owner = Owner()
    consumer = member(cluster, topic, topic, owner)
    await eventually(lambda: len(owner.got) == 3, "records")
    consumer.commit({0: Mark(owner.owned[0].epoch, 3, "")})
    consumer.pause(frozenset([0]))
    consumer.resume(frozenset([0]))
    await consumer.close()
    assert callers == {f"kafka-{topic}"}
