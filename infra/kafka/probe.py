"""Ask a cluster who it is, and take the first-use delays out of it."""

from __future__ import annotations

import time
import uuid
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from schemas.errors import BrokerUnavailable


def _settings(bootstrap_servers: str, **more: Any) -> dict[str, Any]:
    # A cluster that starts refuses connections for a while: ask again soon, and keep librdkafka's complaints off
    # stderr; every call's own result says what matters.
    return {
        "bootstrap.servers": bootstrap_servers,
        "log_level": 0,
        "error_cb": lambda _: None,
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 200,
        **more,
    }


def cluster_id(bootstrap_servers: str, *, timeout_s: float) -> str:
    """The id of the cluster that answers a metadata call.

    Blocks up to `timeout_s`; call it from a thread. Raises BrokerUnavailable.
    """
    admin = AdminClient(_settings(bootstrap_servers))
    try:
        metadata = admin.list_topics(timeout=timeout_s)
    except KafkaException as exc:
        raise BrokerUnavailable(f"no Kafka broker answers at {bootstrap_servers} within {timeout_s:g} s") from exc
    found: str | None = metadata.cluster_id
    if found is None:
        raise BrokerUnavailable(f"the broker at {bootstrap_servers} did not say its cluster id")
    return found


def warm_up(bootstrap_servers: str, *, timeout_s: float) -> None:
    """Make a topic, produce, join a group, fetch, commit; leave no topic and no group. Idempotent; 0.3 s on a fresh broker.

    For the embedded broker only: it makes the offsets topic too. Without that the first join of a group on a fresh broker takes 1 to 3 s,
    for its client's first question makes the topic, and the client asks again only every half second.
    Blocks up to `timeout_s`; call it from a thread. Raises BrokerUnavailable.
    """
    deadline = _Deadline(timeout_s)
    name = f"penstock.warm-up.{uuid.uuid4().hex}"
    admin = AdminClient(_settings(bootstrap_servers))
    try:
        for made in admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)]).values():
            made.result(timeout=deadline.left_s())
        producer = Producer(_settings(bootstrap_servers, **{"linger.ms": 0}))
        producer.produce(name, b"value", key=b"key")
        _make_offsets_topic(admin, deadline)
        _await_topic(admin, name, deadline)
        _read_one(_settings(bootstrap_servers, **{"group.id": name, "auto.offset.reset": "earliest"}), name, deadline)
        for removed in (*admin.delete_topics([name]).values(), *admin.delete_consumer_groups([name]).values()):
            removed.result(timeout=deadline.left_s())
    except (KafkaException, TimeoutError) as exc:
        raise BrokerUnavailable(f"the broker at {bootstrap_servers} answers, but can't be used: {exc}") from exc


def warm_up_transactions(bootstrap_servers: str, *, timeout_s: float) -> None:
    """Let one transactional producer initialise: 1 s on a fresh broker, which the first real one is then spared.

    Blocks up to `timeout_s`; call it from a thread. Raises BrokerUnavailable.
    """
    producer = Producer(_settings(bootstrap_servers, **{"transactional.id": f"penstock.warm-up.{uuid.uuid4().hex}"}))
    try:
        producer.init_transactions(timeout_s)
    except KafkaException as exc:
        raise BrokerUnavailable(f"the transaction coordinator at {bootstrap_servers} does not answer: {exc}") from exc


def _make_offsets_topic(admin: AdminClient, deadline: _Deadline) -> None:
    """Of one partition, as the embedded broker's settings say. Not by asking for a coordinator with short time-outs until there is one:
    librdkafka 2.16 aborts the process when such a question times out in the wrong moment (`rd_kafka_enq_once_del_source_return`).
    """
    offsets = NewTopic("__consumer_offsets", 1, 1, config={"cleanup.policy": "compact", "compression.type": "producer"})
    for made in admin.create_topics([offsets]).values():
        try:
            made.result(timeout=deadline.left_s())
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def _await_topic(admin: AdminClient, name: str, deadline: _Deadline) -> None:
    """Until metadata shows it: a consumer that subscribes before waits for its next tick, one or two seconds."""
    while not getattr(admin.list_topics(timeout=deadline.left_s()).topics.get(name), "partitions", None):
        time.sleep(0.01)


def _read_one(settings: dict[str, Any], topic: str, deadline: _Deadline) -> Message:
    consumer = Consumer(settings)
    try:
        consumer.subscribe([topic])
        while True:
            message = consumer.poll(min(0.1, deadline.left_s()))
            if message is not None and message.error() is None:
                consumer.commit(message=message, asynchronous=False)
                return message
    finally:
        consumer.close()


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self._timeout_s, self._at = timeout_s, time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left, > 0; raises TimeoutError when none are."""
        left_s = self._at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"not done within {self._timeout_s:g} s")
        return left_s
