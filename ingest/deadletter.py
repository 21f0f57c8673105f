"""Dead letters: writing them whole, and counting what stands in a dead-letter topic.

A dead letter keeps the record's key, value and headers as they were; what is known of its end is added as `penstock-*` headers.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from infra.clock import unix_ms
from infra.kafka.admin import Admin
from infra.kafka.consumer import Record
from infra.kafka.producer import Producer
from infra.kafka.scan import Scanner
from schemas.ids import FunctionKey, TriggerKey, dead_letter_topic
from schemas.records import TriggerRecord

ERROR_BYTES = 8 * 1024
_PREFIX = "penstock-"
_SCAN_S = 2.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record given up. `status` is the last RunStatus, `error` its JSON, `attempts` the runs it had."""

    trigger: TriggerRecord
    record: Record
    status: int
    error: bytes
    attempts: int


def headers_of(letter: DeadLetter, *, now_unix_ms: int) -> list[tuple[str, bytes | None]]:
    """The letter's headers: the record's own (an earlier death's marks replaced), then what is known of its end."""
    trigger, record = letter.trigger, letter.record
    source = trigger.kafka
    known = {
        "reason": str(letter.status),
        "attempts": str(letter.attempts),
        "source-topic": source.topic if source is not None else "",
        "source-partition": str(record.partition),
        "source-offset": str(record.offset),
        "source-timestamp": str(record.timestamp_ms),
        "trigger": trigger.name,
        "function": f"{trigger.namespace}/{trigger.function}",
        "request-id": _request_id(letter.error),
        "dead-unix-ms": str(now_unix_ms),
    }
    kept = [(name, value) for name, value in record.headers if not name.startswith(_PREFIX)]
    added: list[tuple[str, bytes | None]] = [(_PREFIX + name, text.encode()) for name, text in known.items()]
    return [*kept, *added, (_PREFIX + "error", letter.error[:ERROR_BYTES])]


def _request_id(error: bytes) -> str:
    try:
        return str(json.loads(error)["requestId"])
    except (ValueError, KeyError, TypeError):
        return ""


def trigger_key(record: TriggerRecord) -> TriggerKey:
    """The key of a trigger's record."""
    return TriggerKey(FunctionKey(record.appid, record.namespace, record.function), record.name)


class DeadLetterSink:
    """Writes dead letters to the fabric's cluster, acknowledged."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def put(self, letter: DeadLetter) -> None:
        """Returns when the letter stands in its topic; BrokerUnavailable or UserError when it does not."""
        record = letter.record
        await self._producer.send(
            dead_letter_topic(trigger_key(letter.trigger)),
            key=record.key,
            value=record.value,
            headers=headers_of(letter, now_unix_ms=unix_ms()),
            timestamp_ms=record.timestamp_ms if record.timestamp_ms > 0 else None,
        )


class DeadIndex:
    """Distinct source offsets that stand in a dead-letter topic, by source partition. Reads on from where it was.

    A topic that was purged or made again (its start passed what was read, or its end fell below it) is read from its start.
    """

    def __init__(self, admin: Admin, scanner: Scanner) -> None:
        self._admin, self._scanner = admin, scanner
        self._seen: dict[str, _Seen] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def dead(self, key: TriggerKey) -> dict[int, int]:
        """Counts as of now; empty when the trigger has no dead-letter topic."""
        topic = dead_letter_topic(key)
        async with self._locks.setdefault(topic, asyncio.Lock()):
            ends, starts = await self._admin.end_offsets(topic), await self._admin.start_offsets(topic)
            seen = self._seen.get(topic)
            if seen is None or any(not starts.get(p, 0) <= at <= ends.get(p, 0) for p, at in seen.read.items()):
                seen = self._seen[topic] = _Seen(dict(starts))
            for partition, end in ends.items():
                while seen.read.get(partition, 0) < end:
                    found = await self._scanner.scan(
                        topic, partition, seen.read.get(partition, 0), seen.take, timeout_s=_SCAN_S
                    )
                    if found.next_offset == seen.read.get(partition, 0):
                        break
                    seen.read[partition] = found.next_offset
            return {partition: len(offsets) for partition, offsets in seen.offsets.items()}


class _Seen:
    """What was read of one topic."""

    def __init__(self, read: dict[int, int]) -> None:
        self.read = read
        self.offsets: dict[int, set[int]] = {}

    def take(self, record: Record) -> bool:
        """Count one letter; runs in the scanner's thread while nobody else looks."""
        headers = dict(record.headers)
        partition, offset = headers.get("penstock-source-partition"), headers.get("penstock-source-offset")
        if partition and offset and partition.isdigit() and offset.isdigit():
            self.offsets.setdefault(int(partition), set()).add(int(offset))
        return True
