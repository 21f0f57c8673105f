"""From records to the event that a function gets: SCF's CKafka shape (SCF.md 4.1). Pure.

    {"Records":[{"Ckafka":{"topic","partition","offset","msgKey","msgBody","headers","timestamp"}}]}

`msgKey` is "None" when the record has none, as in SCF. A key, body or header that is not UTF-8 is base64, and `msgKeyEncoding`, `msgBodyEncoding`
or the header's own third item say so. A null body (a tombstone) is null. `headers` is a list of [name, value] pairs, in order;
`timestamp` is Unix milliseconds. Both are Penstock's additions, as are the encodings.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.kafka.consumer import Record


class EventBuilder:
    """Builds events of one topic."""

    __slots__ = ("_head",)

    def __init__(self, topic: str) -> None:
        self._head = '{"Ckafka":{"topic":' + encode_basestring(topic) + ',"partition":'

    def build(self, records: Iterable[Record]) -> bytes:
        """One event of these records, UTF-8 JSON."""
        return ('{"Records":[' + ",".join([self._one(r) for r in records]) + "]}").encode()

    def _one(self, record: Record) -> str:
        partition, offset, key, value, headers, timestamp_ms = record
        text = f'{self._head}{partition},"offset":{offset},"msgKey":{_key(key)},"msgBody":{_body(value)}'
        if headers:
            text += ',"headers":[' + ",".join([_header(n, v) for n, v in headers]) + "]"
        return f'{text},"timestamp":{timestamp_ms}}}}}'


def _key(key: bytes | None) -> str:
    if key is None:
        return '"None"'
    try:
        return encode_basestring(key.decode())
    except UnicodeDecodeError:
        return f'"{b64encode(key).decode()}","msgKeyEncoding":"base64"'


def _body(value: bytes | None) -> str:
    if value is None:
        return "null"
    try:
        return encode_basestring(value.decode())
    except UnicodeDecodeError:
        return f'"{b64encode(value).decode()}","msgBodyEncoding":"base64"'


def _header(name: str, value: bytes | None) -> str:
    if value is None:
        return f"[{encode_basestring(name)},null]"
    try:
        return f"[{encode_basestring(name)},{encode_basestring(value.decode())}]"
    except UnicodeDecodeError:
        return f'[{encode_basestring(name)},"{b64encode(value).decode()}","base64"]'
