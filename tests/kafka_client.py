"""What a test does to Kafka as any user of it would: topics, records in, records out. Every wait has an end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

_TIMEOUT_S = 20.0


def make_topic(
    bootstrap: str, *, name: str | None = None, partitions: int = 1, config: Mapping[str, str] | None = None
) -> str:
    """A new topic, visible to clients when this returns."""
    topic = name or f"t-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
    admin.create_topics([new])[topic].result(timeout=_TIMEOUT_S)
    deadline = time.monotonic() + _TIMEOUT_S
    while True:  # a broker may answer about it a moment later
        found = admin.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
        if found.error is None and len(found.partitions) == partitions:
            return topic
        assert time.monotonic() < deadline, f"topic {topic} did not appear"
        time.sleep(0.01)


def publish(
    bootstrap: str, topic: str, values: Iterable[bytes], *, key: bytes | None = None, partition: int | None = None
) -> None:
    """Produce, and wait until every record is acknowledged."""
    failures: list[object] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "acks": "all"})
    anywhere = -1  # librdkafka's word for: by the key
    for value in values:
        producer.produce(
            topic, value, key=key, partition=anywhere if partition is None else partition, on_delivery=delivered
        )
    assert producer.flush(_TIMEOUT_S) == 0, "records were not acknowledged in time"
    assert not failures, failures


def read_all(bootstrap: str, topic: str, count: int, *, timeout_s: float = _TIMEOUT_S) -> list[Message]:
    """The first `count` records of the topic, partition by partition order kept, without a group."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=timeout_s).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        records: list[Message] = []
        deadline = time.monotonic() + timeout_s
        while len(records) < count:
            assert time.monotonic() < deadline, f"{len(records)} of {count} records of {topic} came in time"
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                records.append(message)
        return records
    finally:
        consumer.close()


def join_and_read(bootstrap: str, topic: str, *, group: str | None = None, protocol: str = "classic") -> float:
    """Join a group and read one record; the seconds that took."""
    started = time.monotonic()
    settings = {"group.id": group or f"g-{uuid.uuid4().hex[:12]}", "auto.offset.reset": "earliest"}
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.protocol": protocol, **settings})
    try:
        consumer.subscribe([topic])
        while (message := consumer.poll(0.05)) is None or message.error() is not None:
            assert time.monotonic() < started + _TIMEOUT_S, "no record came in time"
        return time.monotonic() - started
    finally:
        consumer.close()
