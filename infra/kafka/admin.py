"""Administration of a Kafka cluster: topics, offsets, groups. Blocking calls run in threads; every one is bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

from infra.kafka.clients import CALL_TIMEOUT_S, TIMED_OUT, Cluster, unavailable
from schemas.topics import TopicSpec

T = TypeVar("T")
_NOTHING_COMMITTED = -1001
# What a broker answers for a moment after it was started again, while it and the client disagree on who leads what.
_PASSING = frozenset(
    {
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)
_THREADS = 4
_PAUSES_S = (0.05, 0.1, 0.2, 0.4)


class TopicFacts(NamedTuple):
    """A topic that exists."""

    name: str
    partitions: int


class Committed(NamedTuple):
    """A group's position in one partition: the next offset to read, and the metadata committed with it."""

    offset: int
    metadata: str


class Admin:
    """One admin client; raises BrokerUnavailable from every call when the cluster does not answer."""

    def __init__(self, cluster: Cluster, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._cluster, self._timeout_s = cluster, timeout_s
        self._admin: AdminClient | None = None
        # Of its own: what a cluster that is away keeps waiting is its own callers only.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kafka-admin")

    def close(self) -> None:
        """Let the client go; its threads end when nobody has this object any more."""
        self._admin = None

    async def cluster_id(self) -> str:
        """Id of the cluster that answers."""
        return await self._call("cluster id", lambda a: str(a.list_topics(timeout=self._timeout_s).cluster_id))

    async def topic(self, name: str) -> TopicFacts | None:
        """Facts of a topic, None when there is none."""

        def look(admin: AdminClient) -> TopicFacts | None:
            found = admin.list_topics(name, timeout=self._timeout_s).topics.get(name)
            if found is None or found.error is not None:
                if (
                    found is not None
                    and found.error is not None
                    and found.error.code()
                    not in (
                        KafkaError.UNKNOWN_TOPIC_OR_PART,
                        KafkaError.TOPIC_EXCEPTION,
                    )
                ):
                    raise KafkaException(found.error)
                return None
            return TopicFacts(name, len(found.partitions))

        return await self._call(f"look at topic {name}", look)

    async def provision(
        self, specs: Sequence[TopicSpec], *, replication: int | None = None, timeout_s: float = 30.0
    ) -> None:
        """Create the topics that are missing and wait until metadata shows all."""
        wanted = {spec.name: spec for spec in specs}

        def make(admin: AdminClient) -> None:
            there = set(admin.list_topics(timeout=self._timeout_s).topics)
            missing = [
                NewTopic(s.name, s.partitions, replication or -1, config=s.config())
                for s in specs
                if s.name not in there
            ]
            if missing:
                _created(admin.create_topics(missing, operation_timeout=self._timeout_s), self._timeout_s)
            deadline = time.monotonic() + timeout_s
            while set(wanted) - {
                n for n, t in admin.list_topics(timeout=self._timeout_s).topics.items() if t.partitions
            }:
                if time.monotonic() > deadline:
                    raise KafkaException(KafkaError(TIMED_OUT, "new topics don't show in metadata"))
                time.sleep(0.02)

        await self._call("provision topics", make)

    async def create_topic(self, name: str, partitions: int, config: Mapping[str, str] | None = None) -> bool:
        """True when this call created it, False when it was there."""

        def make(admin: AdminClient) -> bool:
            new = NewTopic(name, partitions, -1, config=dict(config or {}))
            created = _created(admin.create_topics([new], operation_timeout=self._timeout_s), self._timeout_s)
            deadline = time.monotonic() + self._timeout_s
            while not getattr(admin.list_topics(timeout=self._timeout_s).topics.get(name), "partitions", None):
                if time.monotonic() > deadline:
                    raise KafkaException(KafkaError(TIMED_OUT, f"{name} does not show in metadata"))
                time.sleep(0.02)
            return created

        return await self._call(f"create topic {name}", make)

    async def delete_topic(self, name: str) -> None:
        """Delete it; no error when there is none."""

        def drop(admin: AdminClient) -> None:
            try:
                admin.delete_topics([name])[name].result(self._timeout_s)
            except KafkaException as exc:
                if exc.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise

        await self._call(f"delete topic {name}", drop)

    async def start_offsets(self, topic: str) -> dict[int, int]:
        """First kept offset by partition; empty when there is no such topic."""
        return await self._offsets(topic, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    async def end_offsets(self, topic: str) -> dict[int, int]:
        """Offset that the next record will get, by partition; empty when there is no such topic."""
        return await self._offsets(topic, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    async def offsets_at(self, topic: str, unix_ms: int) -> dict[int, int]:
        """First offset at or after a time, by partition; the end where there is none."""
        found = await self._offsets(topic, OffsetSpec.for_timestamp(unix_ms))
        if any(offset < 0 for offset in found.values()):
            ends = await self.end_offsets(topic)
            found = {p: ends[p] if offset < 0 else offset for p, offset in found.items()}
        return found

    async def committed(self, group: str, topic: str) -> dict[int, Committed]:
        """What a group has committed, by partition; partitions without a commit are left out."""
        facts = await self.topic(topic)
        if facts is None:
            return {}
        wanted = [TopicPartition(topic, p) for p in range(facts.partitions)]

        # Not AdminClient.list_consumer_group_offsets: librdkafka 2.16 aborts the process when the broker goes away under it
        # (ADR-0007). A consumer that subscribes to nothing asks the same, joins nothing, and costs 5 ms.
        def read(_admin: AdminClient) -> dict[int, Committed]:
            consumer = Consumer(self._cluster.config(group_id=group, enable_auto_commit=False))
            try:
                found = consumer.committed(wanted, timeout=self._timeout_s)
            finally:
                consumer.close()
            for tp in found:
                if tp.error is not None:
                    raise KafkaException(tp.error)
            return {tp.partition: Committed(tp.offset, tp.metadata or "") for tp in found if tp.offset >= 0}

        return await self._call(f"committed offsets of {group}", read)

    async def commit_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Set a group's offsets; the group must have no live member."""

        def write(_admin: AdminClient) -> None:
            consumer = Consumer(self._cluster.config(group_id=group, enable_auto_commit=False))
            try:
                done = consumer.commit(
                    offsets=[TopicPartition(topic, p, o) for p, o in offsets.items()], asynchronous=False
                )
                for tp in done or []:
                    if tp.error is not None:
                        raise KafkaException(tp.error)
            finally:
                consumer.close()

        await self._call(f"commit offsets of {group}", write)

    async def delete_group(self, group: str) -> bool:
        """True when the group is gone (or never was), False while it has members."""

        def drop(admin: AdminClient) -> bool:
            try:
                admin.delete_consumer_groups([group], request_timeout=self._timeout_s)[group].result(self._timeout_s)
            except KafkaException as exc:
                code = exc.args[0].code()
                if code == KafkaError.NON_EMPTY_GROUP:
                    return False
                if code != KafkaError.GROUP_ID_NOT_FOUND:
                    raise
            return True

        return await self._call(f"delete group {group}", drop)

    async def _offsets(self, topic: str, spec: OffsetSpec) -> dict[int, int]:
        facts = await self.topic(topic)
        if facts is None:
            return {}
        request = {TopicPartition(topic, p): spec for p in range(facts.partitions)}

        def read(admin: AdminClient) -> dict[int, int]:
            futures = admin.list_offsets(request, request_timeout=self._timeout_s)
            return {tp.partition: int(f.result(self._timeout_s).offset) for tp, f in futures.items()}

        return await self._call(f"offsets of {topic}", read)

    async def _call(self, what: str, work: Callable[[AdminClient], T]) -> T:
        def run() -> T:
            if self._admin is None:
                self._admin = AdminClient(self._cluster.config())
            for pause_s in _PAUSES_S:
                try:
                    return work(self._admin)
                except KafkaException as exc:
                    if exc.args[0].code() not in _PASSING:
                        raise
                time.sleep(pause_s)
            return work(self._admin)

        try:
            async with asyncio.timeout(self._timeout_s * 3):
                return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except (KafkaException, TimeoutError) as exc:
            raise unavailable(what, exc) from exc


def _created(futures: Mapping[str, Any], timeout_s: float) -> bool:
    made = False
    for future in futures.values():
        try:
            future.result(timeout_s)
            made = True
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    return made
