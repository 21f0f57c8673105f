"""The event of Kafka records: SCF's own samples, and what Penstock adds."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka.consumer import Record
from ingest.lanes.event import CkafkaEvents
from tests.records import record

SAMPLES = sorted((Path(__file__).parent.parent / "data" / "events").glob("ckafka_*.json"))


def entries(records: list[Record], *, topic: str = "t") -> list[dict[str, Any]]:
    event, count = CkafkaEvents(topic).build(records)
    assert count == len(records)
    (name, entries) = json.loads(event).popitem()
    assert name == "Records"
    return [entry["Ckafka"] for entry in entries]


def read_as_scf(entry: dict[str, Any]) -> tuple[bytes | None, bytes | None]:
    """Key and value as a function can read them back."""
    key, value = entry["msgKey"], entry["msgBody"]
    return (
        b64decode(key) if "msgKeyEncoding" in entry else key.encode(),
        None if value is None else b64decode(value) if "msgBodyEncoding" in entry else value.encode(),
    )


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_event_is_scfs_own_with_headers_and_timestamp_added(sample: Path) -> None:
    expected = json.loads(sample.read_text())
    ours = [r["Ckafka"] for r in expected["Records"]]
    records = [
        record(
            r["offset"],
            None if r["msgKey"] == "None" else r["msgKey"],
            partition=r["partition"],
            value=r["msgBody"].encode(),
        )
        for r in ours
    ]
    built = entries(records, topic=ours[0]["topic"])
    for entry in built:
        assert (entry.pop("headers"), entry.pop("timestamp")) == ([], 1_700_000_000_000)
    assert {"Records": [{"Ckafka": entry} for entry in built]} == expected
    assert [list(entry) for entry in built] == [list(entry) for entry in ours], "fields in SCF's order"


def test_there_are_samples() -> None:
    assert len(SAMPLES) == 4


def test_a_record_without_key_has_the_key_none_and_one_without_value_has_null() -> None:
    (entry,) = entries([record(0, None, value=None)])
    assert (entry["msgKey"], entry["msgBody"]) == ("None", None)


def test_bytes_that_are_no_text_come_as_base64() -> None:
    (entry,) = entries([record(0, b"\xff\x00", value=b"\x00\x00\x00\x00\x01\x80")])
    assert (entry["msgKeyEncoding"], entry["msgBodyEncoding"]) == ("base64", "base64")
    assert read_as_scf(entry) == (b"\xff\x00", b"\x00\x00\x00\x00\x01\x80")


def test_headers_keep_order_and_repetitions_and_say_when_they_are_base64() -> None:
    headers = (("a", b"1"), ("b", None), ("a", b"\xfe"), ('"', b'"'))
    (entry,) = entries([record(0, headers=headers)])
    assert entry["headers"] == [["a", "1"], ["b", None], ["a", "/g==", "base64"], ['"', '"']]


@given(
    topic=st.text(max_size=10),
    keys=st.lists(st.binary(max_size=20) | st.text(max_size=20).map(str.encode), min_size=1, max_size=4),
    value=st.none() | st.binary(max_size=50) | st.text(max_size=50).map(str.encode),
    headers=st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=2),
    timestamp_ms=st.integers(-1, 2**62),
)
def test_whatever_the_bytes_the_event_is_json_and_nothing_is_lost(
    topic: str,
    keys: list[bytes],
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    timestamp_ms: int,
) -> None:
    records = [
        record(i, key, value=value, headers=tuple(headers), timestamp_ms=timestamp_ms) for i, key in enumerate(keys)
    ]
    built = entries(records, topic=topic)
    assert [(e["topic"], e["offset"], e["timestamp"]) for e in built] == [
        (topic, i, timestamp_ms) for i in range(len(keys))
    ]
    assert [read_as_scf(entry) for entry in built] == [(key, value) for key in keys]
    assert [len(entry["headers"]) for entry in built] == [len(headers)] * len(keys)


def test_as_many_records_as_fit_make_an_event() -> None:
    records = [record(i, value=b"x" * 100) for i in range(10)]
    whole, _ = CkafkaEvents("t").build(records)
    count = 0
    for limit in range(len(CkafkaEvents("t").build(records[:1])[0]), len(whole) + 1):
        event, count = CkafkaEvents("t", limit_bytes=limit).build(records)
        assert len(event) <= limit
        assert len(json.loads(event)["Records"]) == count
        if count < 10:
            assert len(CkafkaEvents("t").build(records[: count + 1])[0]) > limit
    assert count == 10


def test_a_record_that_makes_too_large_an_event_does_not_fit_at_all() -> None:
    large = record(0, value=b"x" * 300)
    builder = CkafkaEvents("t", limit_bytes=300)
    assert builder.build([large]) == (b"", 0)
    assert builder.build([large, record(1)]) == (b"", 0)
    assert builder.build([record(1), large])[1] == 1
