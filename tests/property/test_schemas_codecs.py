"""Everything that Penstock writes to a topic or a socket comes back equal, however it is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import avro, frames
from schemas.errors import WireError
from schemas.topics import TOPICS

INT64 = st.integers(-(2**63), 2**63 - 1)
RECORDS = [spec.record for spec in TOPICS]


def instances(record: type) -> st.SearchStrategy[Any]:
    """Any value of a record class that Avro can hold."""
    with_int64 = {int: INT64, float: st.floats(allow_nan=False), str: st.text(max_size=20)}

    def of(hint: Any) -> st.SearchStrategy[Any]:
        if hint in with_int64:
            return with_int64[hint]
        if hasattr(hint, "__dataclass_fields__"):
            return st.builds(hint, **{name: of(h) for name, h in avro._hints(hint).items()})
        args: tuple[Any, ...] = getattr(hint, "__args__", ())
        if type(None) in args:
            return st.none() | of(args[0])
        if getattr(hint, "__origin__", None) is tuple:
            return st.lists(of(args[0]), max_size=3).map(tuple)
        if getattr(hint, "__origin__", None) is dict:
            return st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
        return st.from_type(hint)

    return of(record)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
@given(data=st.data())
def test_a_record_decodes_to_what_was_encoded(record: type, data: st.DataObject) -> None:
    value: Any = data.draw(instances(record))
    assert avro.decode(record, avro.encode(value)) == value


@given(garbage=st.binary(max_size=80))
def test_bytes_that_are_no_record_raise_a_wire_error(garbage: bytes) -> None:
    for record in RECORDS:
        with pytest.raises(WireError):
            avro.decode(record, garbage)


@given(body=st.binary(max_size=60))
def test_a_damaged_body_raises_a_wire_error_or_decodes_to_the_class(body: bytes) -> None:
    for record in RECORDS:
        try:
            value: object = avro.decode(record, avro._shape(record).header + body)
        except WireError:
            continue
        assert isinstance(value, record)


@given(payloads=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=20), data=st.data())
def test_frames_come_out_the_same_however_the_stream_is_cut(
    payloads: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(frames.frame(kind, payload) for kind, payload in payloads)
    splitter, out = frames.Splitter(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        out += splitter.feed(stream[:cut])
        stream = stream[cut:]
    assert out == payloads


def test_an_oversize_frame_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(WireError):
        frames.Splitter(limit=1000).feed(b"\x00\x00\x10\x00\x01")


@given(st.binary(max_size=64))
def test_payloads_that_are_too_short_raise_a_wire_error(payload: bytes) -> None:
    for decode, fixed in (
        (frames.decode_invoke, frames.INVOKE_FIXED),
        (frames.decode_result, frames.RESULT_FIXED),
        (frames.decode_run, frames.RUN_FIXED),
        (frames.decode_done, frames.DONE_FIXED),
    ):
        if len(payload) < fixed:
            with pytest.raises(WireError):
                decode(payload)


U32, U16, U8 = st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1), st.integers(0, 255)
BYTES = st.binary(max_size=300)


@given(st.builds(frames.Invoke, U32, U32, U32, U16, U8, st.binary(min_size=16, max_size=16), BYTES))
def test_invoke_round_trip(call: frames.Invoke) -> None:
    ((kind, payload),) = frames.Splitter().feed(frames.encode_invoke(call))
    assert (kind, frames.decode_invoke(payload)) == (frames.Kind.INVOKE, call)


@given(st.builds(frames.Result, U32, U16, U8, U8, U32, U32, U32, BYTES, BYTES))
def test_result_round_trip(result: frames.Result) -> None:
    ((kind, payload),) = frames.Splitter().feed(frames.encode_result(result))
    assert (kind, frames.decode_result(payload)) == (frames.Kind.RESULT, result)


@given(st.builds(frames.Done, U32, U8, U32, BYTES))
def test_done_round_trip(done: frames.Done) -> None:
    ((kind, payload),) = frames.Splitter().feed(frames.encode_done(done))
    assert (kind, frames.decode_done(payload)) == (frames.Kind.DONE, done)
