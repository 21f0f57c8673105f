"""Commits that the broker refuses, as a whole or for one partition (infra.kafka.consumer); the Consumer is a stand-in that answers as told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, TopicPartition

from infra.kafka.clients import Cluster
from infra.kafka.commits import Mark
from infra.kafka.consumer import ConsumerEvents, GroupConsumer
from schemas.errors import PenstockError

LOADING = KafkaError(KafkaError.COORDINATOR_LOAD_IN_PROGRESS)


class Broker:
    """Stands where the Consumer does: keeps what was sent, and refuses partitions as told."""

    def __init__(self) -> None:
        self.sent: list[dict[int, int]] = []
        self.refusals: list[dict[int, KafkaError]] = []

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[Any]:
        self.sent.append({tp.partition: tp.offset for tp in offsets})
        refused = self.refusals.pop(0) if self.refusals else {}
        return answer({tp.partition: tp.offset for tp in offsets}, refused)


def answer(offsets: dict[int, int], refused: dict[int, KafkaError]) -> list[Any]:
    return [SimpleNamespace(partition=p, offset=o, error=refused.get(p)) for p, o in offsets.items()]


class Told:
    """What the loop's side is told of."""

    def __init__(self) -> None:
        self.errors: list[PenstockError] = []

    def failed(self, error: PenstockError) -> None:
        self.errors.append(error)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def member(loop: asyncio.AbstractEventLoop) -> tuple[GroupConsumer, Told]:
    told = Told()

    async def make() -> GroupConsumer:
        return GroupConsumer(
            Cluster("127.0.0.1:1"),
            topic="t",
            group_id="g",
            instance_id="i",
            events=cast(ConsumerEvents, told),
            loop=loop,
            parse_epoch=lambda _metadata: 0,
        )

    made = loop.run_until_complete(make())
    made._commits.hold(0, 7, 0)
    made._commits.hold(1, 7, 0)
    return made, told


def commit_due(consumer: GroupConsumer, broker: Broker) -> None:
    consumer._committed_mono_s = -60.0
    consumer._commit_if_due(cast(Any, broker))


def test_a_partition_that_was_refused_alone_is_committed_again(loop: asyncio.AbstractEventLoop) -> None:
    consumer, told = member(loop)
    broker = Broker()
    consumer._commits.merge({0: Mark(7, 10, "a"), 1: Mark(7, 20, "b")})
    commit_due(consumer, broker)
    consumer._on_commit(None, answer({0: 10, 1: 20}, {0: LOADING}))
    commit_due(consumer, broker)
    assert broker.sent == [{0: 10, 1: 20}, {0: 10}]
    loop.run_until_complete(asyncio.sleep(0))
    assert [error.retryable for error in told.errors] == [True]


@pytest.mark.parametrize("partitions", [None, [], answer({0: 10, 1: 20}, {})])
def test_a_commit_that_failed_as_a_whole_is_sent_again_whole(
    loop: asyncio.AbstractEventLoop, partitions: list[Any] | None
) -> None:
    consumer, _ = member(loop)
    broker = Broker()
    consumer._commits.merge({0: Mark(7, 10, "a"), 1: Mark(7, 20, "b")})
    commit_due(consumer, broker)
    consumer._on_commit(LOADING, partitions)
    commit_due(consumer, broker)
    assert broker.sent == [{0: 10, 1: 20}, {0: 10, 1: 20}]


def test_a_newer_mark_is_sent_in_place_of_a_refused_one(loop: asyncio.AbstractEventLoop) -> None:
    consumer, _ = member(loop)
    broker = Broker()
    consumer._commits.merge({0: Mark(7, 10, "a")})
    commit_due(consumer, broker)
    consumer._commits.merge({0: Mark(7, 12, "b")})
    consumer._on_commit(None, answer({0: 10}, {0: LOADING}))
    commit_due(consumer, broker)
    assert broker.sent == [{0: 10}, {0: 12}]


def test_a_commit_that_the_broker_carries_out_after_a_newer_one_is_made_good(loop: asyncio.AbstractEventLoop) -> None:
    """librdkafka sends again what was out when the broker went away, in any order."""
    consumer, _ = member(loop)
    broker = Broker()
    for offset in (10, 12):
        consumer._commits.merge({0: Mark(7, offset, "")})
        commit_due(consumer, broker)
    consumer._on_commit(None, answer({0: 12}, {}))
    consumer._on_commit(None, answer({0: 10}, {}))
    commit_due(consumer, broker)
    consumer._on_commit(None, answer({0: 12}, {}))
    commit_due(consumer, broker)
    assert broker.sent == [{0: 10}, {0: 12}, {0: 12}]


def test_an_older_commit_that_is_answered_first_as_it_should_be_causes_nothing(
    loop: asyncio.AbstractEventLoop,
) -> None:
    consumer, _ = member(loop)
    broker = Broker()
    for offset in (10, 12):
        consumer._commits.merge({0: Mark(7, offset, "")})
        commit_due(consumer, broker)
    consumer._on_commit(None, answer({0: 10}, {}))
    consumer._on_commit(None, answer({0: 12}, {}))
    commit_due(consumer, broker)
    assert broker.sent == [{0: 10}, {0: 12}]


def test_commits_go_on_without_answers_though_seldom_when_many_are_out(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = 0
    monkeypatch.setattr("infra.kafka.consumer.time.monotonic", lambda: 100.0 + now_ms / 1000)
    consumer, _ = member(loop)
    broker = Broker()
    sent_at = []
    for now_ms in range(0, 10_000, 10):
        consumer._commits.merge({0: Mark(7, now_ms, "")})
        before = len(broker.sent)
        consumer._commit_if_due(cast(Any, broker))
        sent_at += [now_ms] * (len(broker.sent) - before)
    gaps = [later - earlier for earlier, later in pairwise(sent_at)]
    assert len(sent_at) > 128
    assert {50, 60} >= set(gaps[:127])
    assert {1000, 1010} >= set(gaps[127:])


def test_a_refused_mark_of_an_ended_epoch_is_not_sent_again(loop: asyncio.AbstractEventLoop) -> None:
    consumer, _ = member(loop)
    broker = Broker()
    consumer._commits.merge({0: Mark(7, 10, "a")})
    commit_due(consumer, broker)
    consumer._commits.hold(0, 8, 10)
    consumer._on_commit(None, answer({0: 10}, {0: LOADING}))
    commit_due(consumer, broker)
    assert broker.sent == [{0: 10}]


def test_what_was_committed_is_not_sent_again_when_a_later_commit_fails(loop: asyncio.AbstractEventLoop) -> None:
    consumer, _ = member(loop)
    broker = Broker()
    consumer._commits.merge({0: Mark(7, 10, "a")})
    commit_due(consumer, broker)
    consumer._on_commit(None, answer({0: 10}, {}))
    consumer._commits.merge({1: Mark(7, 20, "b")})
    commit_due(consumer, broker)
    consumer._on_commit(LOADING, None)
    commit_due(consumer, broker)
    assert broker.sent == [{0: 10}, {1: 20}, {1: 20}]


def test_the_last_commit_is_tried_again_where_it_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    consumer, _ = member(loop)
    broker = Broker()
    broker.refusals = [{1: LOADING}, {1: LOADING}]
    consumer._commits.merge({0: Mark(7, 10, "a"), 1: Mark(7, 20, "b")})
    consumer._commit_now(cast(Any, broker))
    assert broker.sent == [{0: 10, 1: 20}, {1: 20}, {1: 20}]
