"""The thread that owns one Consumer of a trigger (DESIGN.md section 8: Threads, Ownership, Rebalance, Memory).

Every call on the Consumer is made by this thread. The loop sends it commands by a queue that is emptied between polls; it sends
the loop batches of records and the events of `ConsumerEvents`, in order. Each (partition, assignment) gets an epoch, and a commit is
built only from marks of the current one; a committed offset never goes down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from infra.clock import unix_ms
from infra.kafka.clients import FATAL, PARTITION_EOF, Cluster, reason
from infra.kafka.commits import Answer, Commits, Mark
from schemas.errors import BrokerUnavailable, ConfigError, PenstockError

_LOG = logging.getLogger("infra.kafka.consumer")
_T = TypeVar("_T")
_BATCH = 500
_IDLE_POLL_S = 0.02
_HELD_POLL_S = 0.02
_WAITED_S = 0.0005
"""A poll that took longer found nothing ready."""
_AHEAD = 2
"""Batches handed over that the loop has not taken: a loop that is late bounds what it gets, before it can say `hold`."""
_COMMIT_EVERY_S = 0.05
_COMMITS_OUT = 128
"""So many commits unanswered make the next one wait longer. An answer comes behind the prefetched records: late, while the loop holds."""
_COMMIT_SELDOM_S = 1.0
_REVOKE_DEADLINE_S = 2.0
_LAST_COMMIT_S = 0.5
_LONG_HOLD_S = 5.0
"""A rebalance waits for the next poll, so for a hold; a longer one pauses (which throws the prefetch away) and polls on."""
_COMMITTED_TIMEOUT_S = 10.0
_ASK_AGAIN_S = 0.2


class Record(NamedTuple):
    """One record as it was read. `timestamp_ms` is the broker's or producer's, -1 when it has none."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


class Assigned(NamedTuple):
    """A partition that is now ours: its epoch, the offset it starts at, and what was committed with that offset."""

    epoch: int
    offset: int
    metadata: str


class ConsumerEvents(Protocol):
    """What the owner of the records is told; all on the event loop, in order."""

    def assigned(self, partitions: dict[int, Assigned]) -> None:
        """These are ours from now on; their records follow."""
        ...

    def records(self, batch: list[Record]) -> None:
        """Some records, each partition's in offset order."""
        ...

    def revoking(self, partitions: frozenset[int], done: Callable[[], None]) -> None:
        """These go to another owner: stop them, commit what is finished, then call `done`; after 2 s they go anyway."""
        ...

    def lost(self, partitions: frozenset[int]) -> None:
        """These are already gone; nothing of them can be committed."""
        ...

    def failed(self, error: PenstockError) -> None:
        """Something is wrong. Retryable: it goes on by itself. Otherwise the consumer has ended."""
        ...


class GroupConsumer:
    """One member of a consumer group, reading one topic.

    Args:
        cluster: where.
        topic: what.
        group_id: the group; its offsets are where records begin (else the partition's start).
        instance_id: static membership; one live owner per id.
        events: who is told.
        loop: where `events` is called.
        parse_epoch: the epoch that an offset's metadata carries, 0 for none.
        queued_kib: what librdkafka may prefetch.
        session_ms: how long a silent member keeps its partitions.
        protocol: `classic` (cooperative) or `consumer` (KIP-848).
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        topic: str,
        group_id: str,
        instance_id: str,
        events: ConsumerEvents,
        loop: asyncio.AbstractEventLoop,
        parse_epoch: Callable[[str], int],
        queued_kib: int = 2048,
        session_ms: int = 10_000,
        protocol: str = "classic",
    ) -> None:
        self._config = cluster.config(
            group_id=group_id,
            group_instance_id=instance_id,
            client_id=instance_id,
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="earliest",
            fetch_wait_max_ms=100,
            fetch_error_backoff_ms=50,
            fetch_queue_backoff_ms=5,
            queued_min_messages=10_000,
            queued_max_messages_kbytes=queued_kib,
            fetch_message_max_bytes=max(1_048_576, queued_kib * 1024 // 2),
            max_poll_interval_ms=300_000,
            topic_metadata_refresh_interval_ms=10_000,
            isolation_level="read_committed",
        )
        self._config["on_commit"] = self._on_commit
        if protocol == "classic":
            self._config |= {
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": 1000,
            }
        else:
            self._config["group.protocol"] = "consumer"
        self._topic, self._events, self._loop, self._parse_epoch = topic, events, loop, parse_epoch
        self._commands: queue.SimpleQueue[Callable[[Consumer], None]] = queue.SimpleQueue()
        self._commits = Commits()
        self._handed_over = 0  # by the thread
        self._taken = 0  # by the loop
        self._took = threading.Event()
        self._held_since: float | None = None
        self._paused_by_hold = False
        self._user_paused: set[int] = set()
        self._stopping = threading.Event()
        self._committed_mono_s = -_COMMIT_SELDOM_S
        self._commits_out = 0
        self._thread = threading.Thread(target=self._run, name=f"kafka-{group_id}", daemon=True)

    @property
    def stale_marks(self) -> int:
        """Marks dropped because their epoch was over."""
        return self._commits.stale_marks

    # from the loop

    def start(self) -> None:
        """Join the group."""
        self._thread.start()

    def commit(self, marks: Mapping[int, Mark]) -> None:
        """Commit these positions soon (at most each 50 ms); a newer mark of a partition replaces an older one."""
        self._commands.put(lambda _consumer: self._commits.merge(marks))

    def hold(self) -> None:
        """Hand over no more records until `release`; membership stays."""
        self._commands.put(lambda _consumer: self._set_hold(True))

    def release(self) -> None:
        """Hand over records again."""
        self._commands.put(lambda _consumer: self._set_hold(False))

    def pause(self, partitions: frozenset[int]) -> None:
        """Stop fetching these partitions, throwing away what was prefetched: for long stops."""
        self._commands.put(lambda consumer: self._pause(consumer, partitions))

    def resume(self, partitions: frozenset[int]) -> None:
        """Fetch paused partitions again."""
        self._commands.put(lambda consumer: self._resume(consumer, partitions))

    async def close(self, timeout_s: float = 5.0) -> None:
        """Commit what is marked and end, without leaving the group (a static member's partitions wait for its return)."""
        self._stopping.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_s)

    # in the thread

    def _run(self) -> None:
        try:
            consumer = Consumer(self._config)
        except KafkaException as exc:
            self._post(self._events.failed, ConfigError(f"Kafka consumer: {reason(exc)}"))
            return
        try:
            consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._stopping.is_set():
                self._step(consumer)
        except KafkaException as exc:
            self._post(self._events.failed, _fatal(exc))
        finally:
            self._drain_commands(consumer)
            self._commit_now(consumer)
            self._commits.forget(self._commits.partitions)
            consumer.close()

    def _step(self, consumer: Consumer) -> None:
        self._drain_commands(consumer)
        self._commit_if_due(consumer)
        if self._held_since is not None:
            self._poll_held(consumer)
            return
        self._took.clear()
        if self._handed_over - self._taken >= _AHEAD:
            self._took.wait(_IDLE_POLL_S)
            return
        began = time.monotonic()
        message = consumer.poll(_IDLE_POLL_S)
        if message is None:
            return
        has_waited = time.monotonic() - began > _WAITED_S  # it is alone: a look for more would only delay it
        batch = [message] if has_waited else [message, *consumer.consume(_BATCH - 1, 0)]
        records = [r for m in batch if (r := self._record(m)) is not None]
        if records:
            self._hand_over(records)

    def _hand_over(self, records: list[Record]) -> None:
        self._handed_over += 1
        self._post(self._take, records)

    def _take(self, records: list[Record]) -> None:
        self._taken += 1
        self._took.set()
        self._events.records(records)

    def _poll_held(self, consumer: Consumer) -> None:
        """Waiting for the loop: librdkafka goes on heartbeating; only a long hold needs polls, and those need a pause, else each poll
        would hand a record over.
        """
        if not self._paused_by_hold and time.monotonic() - (self._held_since or 0) > _LONG_HOLD_S:
            consumer.pause(self._assignment())
            self._paused_by_hold = True
        if not self._paused_by_hold:
            with contextlib.suppress(queue.Empty):
                self._commands.get(timeout=_HELD_POLL_S)(consumer)
            return
        message = consumer.poll(_HELD_POLL_S)
        if message is not None and (record := self._record(message)) is not None:
            self._hand_over([record])  # was under way when the pause came

    def _record(self, message: Any) -> Record | None:
        error = message.error()
        if error is not None:
            if error.fatal() or error.code() == FATAL:
                raise KafkaException(error)
            if error.code() != PARTITION_EOF:
                self._post(self._events.failed, BrokerUnavailable(f"Kafka: {error.str()}"))
            return None
        headers = message.headers()
        return Record(
            message.partition(),
            message.offset(),
            message.key(),
            message.value(),
            tuple(headers) if headers else (),
            message.timestamp()[1],
        )

    def _drain_commands(self, consumer: Consumer) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command(consumer)

    def _commit_if_due(self, consumer: Consumer) -> None:
        if not self._commits.waiting:
            return
        since_s = time.monotonic() - self._committed_mono_s
        if since_s >= (_COMMIT_EVERY_S if self._commits_out < _COMMITS_OUT else _COMMIT_SELDOM_S):
            self._committed_mono_s = time.monotonic()
            self._commits_out += 1
            consumer.commit(offsets=self._marked(), asynchronous=True)

    def _marked(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic, p, m.offset, m.metadata) for p, m in self._commits.take().items()]

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition] | None) -> None:
        """Result of an asynchronous commit, called by a later poll.

        The broker answers for each partition; librdkafka makes that the commit's own error only when all of them failed.
        """
        self._commits_out -= 1
        refused = [tp.error for tp in partitions or () if tp.error is not None]
        if partitions:
            self._commits.answered(_answers(partitions, all_refused=error is not None))
        elif error is not None:
            self._commits.failed()
        if error is not None or refused:
            self._post(self._events.failed, BrokerUnavailable(f"commit: {(error or refused[0]).str()}"))

    def _commit_now(self, consumer: Consumer) -> None:
        """The last commit before partitions leave: tried again for a moment where the broker refuses a partition for now."""
        deadline = time.monotonic() + _LAST_COMMIT_S
        while self._commits.waiting:
            try:
                answered = consumer.commit(offsets=self._marked(), asynchronous=False)
            except KafkaException as exc:
                _LOG.warning("last commit of %s failed: %s", self._topic, reason(exc))
                return
            self._commits.answered(_answers(answered, all_refused=False))
            if self._commits.waiting:
                if time.monotonic() >= deadline:
                    refused = [f"{tp.partition}: {tp.error.str()}" for tp in answered if tp.error is not None]
                    _LOG.warning("last commit of %s was refused: %s", self._topic, refused)
                    return
                time.sleep(0.05)

    def _set_hold(self, on: bool) -> None:
        self._held_since = time.monotonic() if on else None
        if not on and self._paused_by_hold:
            self._paused_by_hold = False
            self._commands.put(lambda consumer: consumer.resume(self._assignment(without=self._user_paused)))

    def _assignment(self, without: set[int] | None = None) -> list[TopicPartition]:
        return [TopicPartition(self._topic, p) for p in self._commits.partitions - (without or set())]

    def _pause(self, consumer: Consumer, partitions: frozenset[int]) -> None:
        self._user_paused |= partitions
        consumer.pause([TopicPartition(self._topic, p) for p in partitions & self._commits.partitions])

    def _resume(self, consumer: Consumer, partitions: frozenset[int]) -> None:
        self._user_paused -= partitions
        consumer.resume([TopicPartition(self._topic, p) for p in partitions & self._commits.partitions])

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        found = self._read_committed(consumer, [TopicPartition(self._topic, tp.partition) for tp in partitions])
        told: dict[int, Assigned] = {}
        for tp in found:
            metadata = tp.metadata or ""
            epoch = max(unix_ms(), self._parse_epoch(metadata) + 1)
            start = tp.offset if tp.offset >= 0 else self._first_offset(consumer, tp.partition)
            if start is None:
                return
            self._commits.hold(tp.partition, epoch, start)
            told[tp.partition] = Assigned(epoch, start, metadata if tp.offset >= 0 else "")
        consumer.incremental_assign([TopicPartition(self._topic, p, a.offset) for p, a in told.items()])
        if told:
            self._post(self._events.assigned, told)

    def _read_committed(self, consumer: Consumer, wanted: list[TopicPartition]) -> list[TopicPartition]:
        """Committed offsets; nothing when it stops first. A transaction may hide them for a while."""

        def ask() -> list[TopicPartition]:
            found = consumer.committed(wanted, timeout=_COMMITTED_TIMEOUT_S) if wanted else []
            if refused := [tp.error for tp in found if tp.error is not None]:
                raise KafkaException(refused[0])
            return list(found)

        return self._until_answered(ask, "committed offsets") or []

    def _first_offset(self, consumer: Consumer, partition: int) -> int | None:
        """Where a partition begins; None when it stops first. A partition just made, or moving, has no leader for a while."""

        def ask() -> int:
            low, _high = consumer.get_watermark_offsets(
                TopicPartition(self._topic, partition), timeout=_COMMITTED_TIMEOUT_S
            )
            return int(low)

        return self._until_answered(ask, f"first offset of partition {partition}")

    def _until_answered(self, ask: Callable[[], _T], what: str) -> _T | None:
        """What the broker says, asked again while it can't say: an offset is never guessed."""
        while not self._stopping.is_set():
            try:
                return ask()
            except KafkaException as exc:
                self._post(self._events.failed, BrokerUnavailable(f"{what}: {reason(exc)}"))
                self._stopping.wait(_ASK_AGAIN_S)
        return None

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        going = frozenset(tp.partition for tp in partitions)
        done = threading.Event()
        if not self._stopping.is_set():
            self._post(self._events.revoking, going, done.set)
            deadline = time.monotonic() + _REVOKE_DEADLINE_S
            while not done.wait(0.005) and time.monotonic() < deadline:
                self._drain_commands(consumer)
        self._drain_commands(consumer)
        self._commit_now(consumer)
        self._forget(going)
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        going = frozenset(tp.partition for tp in partitions)
        self._forget(going)
        self._post(self._events.lost, going)

    def _forget(self, partitions: frozenset[int]) -> None:
        self._commits.forget(partitions)
        self._user_paused -= partitions

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)


def _answers(partitions: list[TopicPartition], *, all_refused: bool) -> list[Answer]:
    return [Answer(tp.partition, tp.offset, all_refused or tp.error is not None) for tp in partitions]


def _fatal(exc: KafkaException) -> PenstockError:
    error = exc.args[0]
    fenced = isinstance(error, KafkaError) and error.code() == KafkaError.FENCED_INSTANCE_ID
    if fenced or "Static consumer fenced" in str(exc):  # librdkafka wraps it in its own fatal error
        return ConfigError("two gateways run with one slot: another member with this instance id has joined the group")
    return ConfigError(f"Kafka consumer ended: {reason(exc)}")
