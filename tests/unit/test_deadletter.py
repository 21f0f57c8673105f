"""Dead letters: what they carry, and how they are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from infra.kafka.consumer import Record
from infra.kafka.producer import Delivered
from infra.kafka.scan import ScanEnd
from ingest.deadletter import ERROR_BYTES, DeadIndex, DeadLetter, DeadLetterSink, headers_of, trigger_key
from schemas.errors import BrokerUnavailable, UserError
from schemas.runerror import error_body
from schemas.runstatus import RunStatus
from tests.lane_fakes import trigger
from tests.records import record

ERROR = error_body(RunStatus.TIMEOUT, "it took 3 s", bytes(range(16)))
LETTER = DeadLetter(
    trigger(topic="orders"),
    record(17, b"\xff", partition=3, value=b"\x00v", headers=(("trace", b"\xfe"), ("trace", None)), timestamp_ms=1_600_000_000_000),
    433,
    ERROR,
    4,
    1_700_000_000_123,
)  # fmt: skip


class Topic:
    """A dead-letter topic of one partition in memory: producer, admin and scanner in one."""

    def __init__(self, *, limit: int = 10**9) -> None:
        self.records: list[Record] = []
        self.start = 0
        self.sent: list[dict[str, Any]] = []
        self.limit = limit
        self.scanned = 0
        self.is_there = True

    async def send(self, topic: str, **sent: Any) -> Delivered:
        size = sum(len(name) + len(value or b"") for name, value in sent["headers"])
        if size > self.limit:
            raise UserError("Kafka refused the record: too large")
        self.sent.append({"topic": topic, **sent})
        headers = tuple(sent["headers"])
        self.records.append(Record(0, len(self.records), sent["key"], sent["value"], headers, sent["timestamp_ms"]))
        return Delivered(0, len(self.records) - 1)

    async def start_offsets(self, _topic: str) -> dict[int, int]:
        return {0: self.start} if self.is_there else {}

    async def end_offsets(self, _topic: str) -> dict[int, int]:
        return {0: len(self.records)} if self.is_there else {}

    async def scan(
        self, topic: str, partition: int, offset: int, visit: Callable[[Record], bool], *, timeout_s: float = 2.0
    ) -> ScanEnd:
        chunk = self.records[offset : offset + 2]
        for letter in chunk:
            visit(letter)
        self.scanned += len(chunk)
        return ScanEnd(offset + len(chunk), offset + len(chunk) == len(self.records))


def letter(offset: int, *, partition: int = 0, name: str = "t1", appid: str = "1250000000") -> DeadLetter:
    return replace(LETTER, trigger=replace(trigger(name), appid=appid), record=record(offset, partition=partition))


async def test_a_dead_letter_is_the_record_as_it_was_with_what_is_known_of_its_end() -> None:
    topic = Topic()
    await DeadLetterSink(topic).put(LETTER)
    (sent,) = topic.sent
    assert (sent["topic"], sent["key"], sent["value"]) == ("penstock.dead.default.echo.t1", b"\xff", b"\x00v")
    assert sent["headers"][:2] == [("trace", b"\xfe"), ("trace", None)]
    added = {name: value.decode() for name, value in sent["headers"][2:]}
    assert json.loads(added.pop("penstock-error")) == json.loads(ERROR)
    assert added == {
        "penstock-reason": "433",
        "penstock-attempts": "4",
        "penstock-source-topic": "orders",
        "penstock-source-partition": "3",
        "penstock-source-offset": "17",
        "penstock-source-timestamp": "1600000000000",
        "penstock-trigger": "1250000000/default/echo/t1",
        "penstock-function": "1250000000/default/echo",
        "penstock-request-id": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "penstock-dead-unix-ms": "1700000000123",
    }


async def test_retention_counts_from_the_death_not_from_when_the_record_was_written() -> None:
    topic = Topic()
    await DeadLetterSink(topic).put(LETTER)
    assert topic.sent[0]["timestamp_ms"] == LETTER.dead_unix_ms


def test_headers_of_an_earlier_death_are_left_out() -> None:
    again = replace(LETTER, record=LETTER.record._replace(headers=tuple(headers_of(LETTER))))
    assert headers_of(again) == headers_of(LETTER)


def test_the_error_is_cut_at_8_kb_and_may_be_anything() -> None:
    for error in (b"x" * 100_000, b"", b"\xff\x00", b"[1]", b'{"requestId": null}', b"[" * 5_000):
        headers = dict(headers_of(replace(LETTER, error=error)))
        assert headers["penstock-error"] == error[:ERROR_BYTES]


async def test_a_letter_that_is_refused_is_tried_with_a_short_error() -> None:
    topic = Topic(limit=1_000)
    await DeadLetterSink(topic).put(replace(LETTER, error=b"x" * 5_000))
    assert len(dict(topic.sent[0]["headers"])["penstock-error"]) == 256
    with pytest.raises(UserError):
        await DeadLetterSink(Topic(limit=10)).put(LETTER)


async def test_each_source_offset_counts_once_however_often_it_was_written() -> None:
    topic = Topic()
    sink, index = DeadLetterSink(topic), DeadIndex(topic, topic)
    for offset, partition in ((5, 0), (6, 0), (5, 0), (5, 1), (6, 0)):
        await sink.put(letter(offset, partition=partition))
    assert await index.dead(trigger_key(trigger("t1"))) == {0: 2, 1: 1}


async def test_another_tenants_letters_in_the_topic_of_the_same_name_are_not_counted() -> None:
    topic = Topic()
    await DeadLetterSink(topic).put(letter(5, appid="1250000009"))
    assert await DeadIndex(topic, topic).dead(trigger_key(trigger("t1"))) == {}


async def test_a_look_reads_only_what_came_since_the_last() -> None:
    topic = Topic()
    sink, index, key = DeadLetterSink(topic), DeadIndex(topic, topic), trigger_key(trigger("t1"))
    for offset in range(5):
        await sink.put(letter(offset))
    assert await index.dead(key) == {0: 5}
    await sink.put(letter(5))
    assert await index.dead(key) == {0: 6}
    assert topic.scanned == 6


async def test_a_purge_and_a_new_topic_lower_the_count() -> None:
    topic = Topic()
    sink, index, key = DeadLetterSink(topic), DeadIndex(topic, topic), trigger_key(trigger("t1"))
    for offset in range(5):
        await sink.put(letter(offset))
    assert await index.dead(key) == {0: 5}
    topic.start = 3
    assert await index.dead(key) == {0: 2}
    topic.start, topic.records = 0, []
    assert await index.dead(key) == {}
    topic.is_there = False
    assert await index.dead(key) == {}


async def test_a_broker_that_is_away_is_told_and_a_later_look_goes_on() -> None:
    topic = Topic()
    index, key = DeadIndex(topic, topic), trigger_key(trigger("t1"))
    await DeadLetterSink(topic).put(letter(1))
    works = topic.scan

    async def away(*_args: Any, **_more: Any) -> ScanEnd:
        raise BrokerUnavailable("away")

    topic.scan = away  # type: ignore[method-assign]
    with pytest.raises(BrokerUnavailable):
        await index.dead(key)
    topic.scan = works  # type: ignore[method-assign]
    assert await index.dead(key) == {0: 1}
