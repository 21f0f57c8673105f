"""The event that a function gets for Kafka records: SCF's CKafka shape (SCF.md 4.1), one entry of `Records` for each.

    {"Records":[{"Ckafka":{"topic":"orders","partition":0,"offset":17,"msgKey":"k","msgBody":"text","headers":[["h","v"]],"timestamp":1700000000000}}]}

msgKey     the key as text; `"None"` for a record without one, which is SCF's way.
msgBody    the value as text; null for a record without one.
msgKeyEncoding, msgBodyEncoding
           `"base64"`, only there when the key or the value is not UTF-8; the field beside it is then base64.
headers    pairs [name, value] in the record's order, names may repeat; a value that is not UTF-8 makes a triple [name, base64, "base64"]; null
           without a value. Penstock's addition.
timestamp  Unix milliseconds, -1 when the record has none. Penstock's addition.

Texts are joined, not trees encoded: 2.0 µs for a record of 1 KB against 4.7 by json.dumps of nested dicts (tests/bench/bench_ckafka_event.py). Pure.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from json.encoder import encode_basestring as quote
from typing import TYPE_CHECKING

from schemas.limits import SYNC_EVENT_BYTES

if TYPE_CHECKING:
    from infra.kafka.consumer import Record

_HEAD = '{"Records":['
_TAIL = "]}"
_OVERHEAD = len(_HEAD) + len(_TAIL)


class CkafkaEvents:
    """Builds the events of one topic.

    Args:
        topic: its name, as the function sees it.
        limit_bytes: the largest event.
    """

    def __init__(self, topic: str, *, limit_bytes: int = SYNC_EVENT_BYTES) -> None:
        self._entry = '{"Ckafka":{"topic":' + quote(topic) + ',"partition":'
        self._limit = limit_bytes

    def build(self, records: Sequence[Record]) -> tuple[bytes, int]:
        """The event of as many of the first records as fit.

        Args:
            records: one or more.

        Returns:
            The event, UTF-8, and how many records it holds; (b"", 0) when not even the first fits.
        """
        if len(records) == 1:
            event = f"{_HEAD}{self._text(records[0])}{_TAIL}".encode()
            return (event, 1) if len(event) <= self._limit else (b"", 0)
        entries: list[bytes] = []
        size = _OVERHEAD - 1
        for record in records:
            entry = self._text(record).encode()
            size += len(entry) + 1
            if size > self._limit:
                break
            entries.append(entry)
        if not entries:
            return b"", 0
        return b"".join((_HEAD.encode(), b",".join(entries), _TAIL.encode())), len(entries)

    def _text(self, record: Record) -> str:
        partition, offset, key, value, headers, timestamp_ms = record
        if key is None:
            key_text = '"None","msgBody":'
        else:
            try:
                key_text = quote(key.decode()) + ',"msgBody":'
            except UnicodeDecodeError:
                key_text = f'"{b64encode(key).decode()}","msgKeyEncoding":"base64","msgBody":'
        if value is None:
            body_text = "null"
        else:
            try:
                body_text = quote(value.decode())
            except UnicodeDecodeError:
                body_text = f'"{b64encode(value).decode()}","msgBodyEncoding":"base64"'
        headers_text = ",".join(map(_header, headers)) if headers else ""
        return (
            f'{self._entry}{partition},"offset":{offset},"msgKey":{key_text}{body_text}'
            f',"headers":[{headers_text}],"timestamp":{timestamp_ms}}}}}'
        )


def _header(header: tuple[str, bytes | None]) -> str:
    name, value = header
    if value is None:
        return f"[{quote(name)},null]"
    try:
        return f"[{quote(name)},{quote(value.decode())}]"
    except UnicodeDecodeError:
        return f'[{quote(name)},"{b64encode(value).decode()}","base64"]'
