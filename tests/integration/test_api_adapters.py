"""What stands behind the cloud API's ports, on a real broker and a real object store."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256

import pytest

from infra.clock import mono_s, unix_ms
from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from infra.kafka.producer import Producer
from infra.kafka.scan import Scanner
from infra.kafka.tables import TableReader
from infra.objectstore.rclone import RunningStore
from infra.objectstore.store import ObjectStore
from ingest.api.adapters import KafkaCommands, StoredCode
from ingest.api.kafka_logs import KafkaLogs
from ingest.api.kafka_sources import KafkaSources
from schemas import avro, topics
from schemas.errors import BadPackage, BrokerUnavailable, ObjectNotFound
from schemas.ids import FunctionKey
from schemas.package import CODE_BUCKET, package_object
from schemas.records import Command, LogBlock, LogLine, Outcome
from tests.kafka_client import make_topic, publish

SPECS = [spec for spec in topics.TOPICS if spec.name in (topics.COMMANDS, topics.OUTCOMES, topics.LOGS)]


@dataclass
class Kafka:
    cluster: Cluster
    admin: Admin
    producer: Producer
    sources: KafkaSources
    scanner: Scanner
    logs: KafkaLogs


@pytest.fixture
async def kafka(bootstrap: str) -> AsyncIterator[Kafka]:
    cluster = Cluster(bootstrap)
    admin, scanner = Admin(cluster), Scanner(cluster)
    await admin.provision(SPECS)
    producer = Producer(cluster, client_id="test")
    await producer.start()
    sources = KafkaSources(cluster)
    yield Kafka(cluster, admin, producer, sources, scanner, KafkaLogs(admin, scanner, mono_s))
    await producer.close()
    await scanner.close()
    sources.close()
    admin.close()


@pytest.mark.kafka
async def test_a_group_is_pinned_where_the_trigger_begins_and_positions_tell_it(kafka: Kafka, bootstrap: str) -> None:
    topic = make_topic(bootstrap, partitions=2)
    publish(bootstrap, topic, [b"x"] * 5, partition=0)
    middle = unix_ms() + 1
    await asyncio.sleep(0.01)
    publish(bootstrap, topic, [b"y"] * 3, partition=0)
    wanted = {"latest": (8, 0), "earliest": (0, 0), str(middle): (5, 0)}
    for start, (first, second) in wanted.items():
        group = f"g-{uuid.uuid4().hex}"
        await kafka.sources.pin_offsets(bootstrap, group, topic, start)
        found = await kafka.sources.positions(bootstrap, group, topic)
        assert {p: (at.committed, at.end) for p, at in found.items()} == {0: (first, 8), 1: (second, 0)}
        assert await kafka.sources.delete_group(bootstrap, group)


@pytest.mark.kafka
async def test_a_group_without_commits_stands_at_the_start(kafka: Kafka, bootstrap: str) -> None:
    topic = make_topic(bootstrap)
    publish(bootstrap, topic, [b"x"])
    found = await kafka.sources.positions(bootstrap, "never-" + topic, topic)
    assert (found[0].committed, found[0].end) == (0, 1)
    assert await kafka.sources.delete_group(bootstrap, "never-" + topic)


@pytest.mark.kafka
async def test_topics_are_found_or_not_and_dead_letters_get_theirs(kafka: Kafka, bootstrap: str) -> None:
    topic = make_topic(bootstrap, partitions=3)
    assert await kafka.sources.partitions(bootstrap, topic) == 3
    assert await kafka.sources.partitions(bootstrap, topic + "-not") is None
    for _ in range(2):
        await kafka.sources.make_dead_letter_topic(topic + ".dead", 2)
    assert await kafka.sources.partitions(bootstrap, topic + ".dead") == 2


async def test_brokers_that_are_not_there_are_known_within_five_seconds() -> None:
    sources, began = KafkaSources(Cluster("127.0.0.1:1")), mono_s()
    with pytest.raises(BrokerUnavailable):
        await sources.partitions("127.0.0.1:2", "orders")
    assert mono_s() - began < 5
    sources.close()


def command(command_id: str) -> Command:
    return Command(command_id, "delete-function", 1, "1", "2", "default", "f")


@pytest.mark.kafka
async def test_a_commands_outcome_finds_its_ticket(kafka: Kafka) -> None:
    spec = next(spec for spec in SPECS if spec.name == topics.OUTCOMES)
    reader = TableReader(kafka.cluster, [spec], from_end=frozenset({topics.OUTCOMES}))
    await reader.start()
    commands = KafkaCommands(kafka.producer, reader.view(topics.OUTCOMES))
    heard: list[Outcome] = []
    commands.subscribe(heard.append)
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    ticket = await commands.send("1/default/f", command(mine))
    assert ticket.offset >= 0
    assert await ticket.outcome(0.05) is None
    for command_id in (other, mine):
        outcome = Outcome(command_id, "1/default/f", "ResourceInUse.Trigger", "exists")
        await kafka.producer.send(topics.OUTCOMES, key=command_id.encode(), value=avro.encode(outcome))
    answer = await ticket.outcome(10)
    assert answer is not None
    assert (answer.command_id, answer.code) == (mine, "ResourceInUse.Trigger")
    assert {o.command_id for o in heard} >= {mine, other}
    assert dict(reader.view(topics.OUTCOMES).items()) == {}
    await reader.close()


async def send_block(kafka: Kafka, key: FunctionKey, *lines: LogLine) -> None:
    block = LogBlock(str(key), "$LATEST", "a1", lines)
    await kafka.producer.send(topics.LOGS, key=str(key).encode(), value=avro.encode(block))


def line(text: str, *, request_id: str = "r1", unix_ms: int = 1_000) -> LogLine:
    return LogLine(request_id, unix_ms, "stdout", text)


@pytest.fixture
def function() -> FunctionKey:
    return FunctionKey("1", "default", "f" + uuid.uuid4().hex[:12])


async def all_lines(
    kafka: Kafka, key: FunctionKey, *, limit: int, request_id: str = "", since: int | None = None
) -> list[str]:
    texts: list[str] = []
    cursor = ""
    async with asyncio.timeout(30):
        while True:
            page = await kafka.logs.read(
                key, cursor=cursor, since_unix_ms=since, limit=limit, request_id=request_id, wait_s=0
            )
            assert len(page.lines) <= limit
            texts += [found.line for found in page.lines]
            cursor = page.cursor
            if page.at_end:
                return texts


@pytest.mark.kafka
async def test_logs_come_whole_in_order_whatever_the_page_size(kafka: Kafka, function: FunctionKey) -> None:
    others = [FunctionKey("1", "default", f"other{i}") for i in range(8)]  # some share its partition
    wanted: list[str] = []
    for i in range(20):
        texts = [f"line {i}.{j}" for j in range(i % 4)]
        wanted += texts
        await send_block(kafka, function, *map(line, texts))
        await send_block(kafka, others[i % 8], line("not mine"))
    for limit in (1_000, 7, 1):
        assert await all_lines(kafka, function, limit=limit) == wanted


@pytest.mark.kafka
async def test_logs_of_every_key_are_found_where_the_producer_put_them(kafka: Kafka) -> None:
    for i in range(12):
        key = FunctionKey("1250000001", "default", f"fn{i}-{uuid.uuid4().hex[:8]}")
        await send_block(kafka, key, line(f"hello {i}"))
        assert await all_lines(kafka, key, limit=10) == [f"hello {i}"]


@pytest.mark.kafka
async def test_logs_of_one_request_and_since_a_time(kafka: Kafka, function: FunctionKey) -> None:
    now = unix_ms()
    await send_block(
        kafka, function, line("a", request_id="r1", unix_ms=now - 5_000), line("b", request_id="r2", unix_ms=now)
    )
    assert await all_lines(kafka, function, limit=10, request_id="r2") == ["b"]
    assert await all_lines(kafka, function, limit=10, since=now - 1_000) == ["b"]
    assert await all_lines(kafka, function, limit=10, since=now + 3_600_000) == []


@pytest.mark.kafka
async def test_following_a_log_waits_for_the_next_line(kafka: Kafka, function: FunctionKey) -> None:
    page = await kafka.logs.read(function, cursor="", since_unix_ms=None, limit=10, request_id="", wait_s=0)
    following = asyncio.ensure_future(
        kafka.logs.read(function, cursor=page.cursor, since_unix_ms=None, limit=10, request_id="", wait_s=5)
    )
    await asyncio.sleep(0.1)
    await send_block(kafka, function, line("there it is"))
    assert [found.line for found in (await following).lines] == ["there it is"]


@pytest.mark.kafka
@pytest.mark.parametrize("cursor", ["x", "1:2", "99:0:0", "1:2:3:4", "-1:0:0", "1:" + "9" * 30 + ":0"])
async def test_a_wrong_cursor_is_told_so(kafka: Kafka, function: FunctionKey, cursor: str) -> None:
    with pytest.raises(ValueError):
        await kafka.logs.read(function, cursor=cursor, since_unix_ms=None, limit=1, request_id="", wait_s=0)


async def test_logs_of_a_broker_that_is_away_are_a_broker_error() -> None:
    cluster = Cluster("127.0.0.1:1")
    scanner = Scanner(cluster)
    with pytest.raises(BrokerUnavailable):
        await scanner.scan(topics.LOGS, 0, 0, lambda _record: True, timeout_s=0.3)
    await scanner.close()


@pytest.mark.store
async def test_a_package_is_kept_under_its_hash_even_when_the_bucket_went_missing(store: RunningStore) -> None:
    client = ObjectStore(store.endpoint, store.store.access_key, store.store.secret_key)
    bucket = f"{CODE_BUCKET}-{uuid.uuid4().hex[:8]}"
    code, data = StoredCode(client, bucket=bucket), b"zip"
    digest = sha256(data).hexdigest()
    for _ in range(2):
        await code.put_package(digest, data)
    assert await client.get(bucket, package_object(digest), digest) == data
    await client.ensure_bucket("own")
    await client.put("own", "f.zip", data, digest)
    assert await code.read_object("own", "f.zip", limit_bytes=3) == data
    with pytest.raises(BadPackage):
        await code.read_object("own", "f.zip", limit_bytes=2)
    for where, name in (("own", "g.zip"), ("none", "f.zip"), (bucket, package_object(digest))):
        with pytest.raises(ObjectNotFound):
            await code.read_object(where, name, limit_bytes=10)
    await client.close()
