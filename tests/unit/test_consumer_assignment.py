"""Where a consumer begins on a partition it is given, while the broker can't say (infra.kafka.consumer); the Consumer is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from infra.kafka import consumer as module
from infra.kafka.clients import Cluster
from infra.kafka.consumer import Assigned, ConsumerEvents, GroupConsumer
from schemas.errors import PenstockError

NOT_LEADER = KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)


class Broker:
    """Stands where the Consumer does: answers as told, one answer a question, the last one for ever."""

    def __init__(self, *, committed: list[Any], first: list[Any]) -> None:
        self._committed, self._first = committed, first
        self.assigned: list[tuple[int, int]] = []

    def committed(self, wanted: list[TopicPartition], *, timeout: float) -> list[Any]:
        assert timeout > 0
        offset, error = said(self._committed)
        return [SimpleNamespace(partition=tp.partition, offset=offset, metadata="", error=error) for tp in wanted]

    def get_watermark_offsets(self, _at: TopicPartition, *, timeout: float) -> tuple[int, int]:
        assert timeout > 0
        return said(self._first), 100

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned += [(tp.partition, tp.offset) for tp in partitions]


def said(answers: list[Any]) -> Any:
    answer = answers.pop(0) if len(answers) > 1 else answers[0]
    if isinstance(answer, KafkaError):
        raise KafkaException(answer)
    return answer


class Told:
    """What the loop's side is told of."""

    def __init__(self) -> None:
        self.begins: dict[int, Assigned] = {}
        self.errors: list[PenstockError] = []

    def assigned(self, partitions: dict[int, Assigned]) -> None:
        self.begins |= partitions

    def failed(self, error: PenstockError) -> None:
        self.errors.append(error)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.AbstractEventLoop]:
    monkeypatch.setattr(module, "_ASK_AGAIN_S", 0.001)
    made = asyncio.new_event_loop()
    yield made
    made.close()


def assign(loop: asyncio.AbstractEventLoop, broker: Broker, *, stopping: bool = False) -> Told:
    told = Told()

    async def work() -> None:
        member = GroupConsumer(
            Cluster("127.0.0.1:1"),
            topic="t",
            group_id="g",
            instance_id="i",
            events=cast(ConsumerEvents, told),
            loop=asyncio.get_running_loop(),
            parse_epoch=lambda _metadata: 0,
        )
        if stopping:
            member._stopping.set()
        member._on_assign(cast(Any, broker), [TopicPartition("t", 3)])
        await asyncio.sleep(0)

    loop.run_until_complete(work())
    return told


def test_a_partition_without_a_leader_is_asked_again_until_it_says_where_it_begins(
    loop: asyncio.AbstractEventLoop,
) -> None:
    broker = Broker(committed=[(-1001, None)], first=[NOT_LEADER, NOT_LEADER, 7])
    told = assign(loop, broker)
    assert broker.assigned == [(3, 7)]
    assert told.begins[3].offset == 7
    assert len(told.errors) == 2
    assert all(error.retryable for error in told.errors)


def test_a_committed_offset_that_can_not_be_read_now_is_not_taken_for_none(loop: asyncio.AbstractEventLoop) -> None:
    broker = Broker(committed=[NOT_LEADER, (-1001, NOT_LEADER), (42, None)], first=[0])
    told = assign(loop, broker)
    assert broker.assigned == [(3, 42)]
    assert len(told.errors) == 2


def test_a_consumer_that_is_stopping_does_not_wait_for_an_answer(loop: asyncio.AbstractEventLoop) -> None:
    broker = Broker(committed=[NOT_LEADER], first=[NOT_LEADER])
    assert assign(loop, broker, stopping=True).begins == {}
    assert broker.assigned == []
