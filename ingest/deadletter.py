"""Dead letters: records that were given up, written whole, and counted.

A dead letter keeps the record's key, value and headers as they were; what is known of its end is added as headers:

    penstock-reason            run status of the last try, e.g. 430
    penstock-error             its error JSON (SCF.md 4.4), at most 8 KB
    penstock-attempts          how often the function failed it; 0 when it never ran
    penstock-source-topic, -source-partition, -source-offset, -source-timestamp
    penstock-trigger           appid/namespace/function/name
    penstock-function          appid/namespace/name
    penstock-request-id        of the last run; empty when it never ran
    penstock-dead-unix-ms      when it was given up

Its own timestamp is the time of its death: retention counts from there, not from when the record was written.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from infra.clock import mono_s
from infra.kafka.consumer import Record
from infra.kafka.producer import Delivered, Headers
from infra.kafka.scan import ScanEnd
from infra.telemetry import get_logger
from schemas.errors import UserError
from schemas.ids import FunctionKey, TriggerKey, dead_letter_topic
from schemas.records import TriggerRecord

_LOG = get_logger("ingest.deadletter")
ERROR_BYTES: Final = 8 * 1024
SHORT_ERROR_BYTES: Final = 256
_PREFIX: Final = "penstock-"
_NO_REQUEST: Final = "00000000-0000-0000-0000-000000000000"
_SCAN_S: Final = 2.0
_COUNT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that is given up. `status` is the last RunStatus, `error` its JSON, `attempts` how often the function failed it."""

    trigger: TriggerRecord
    record: Record
    status: int
    error: bytes
    attempts: int
    dead_unix_ms: int


def trigger_key(record: TriggerRecord) -> TriggerKey:
    """The key of a trigger's record."""
    return TriggerKey(FunctionKey(record.appid, record.namespace, record.function), record.name)


def headers_of(letter: DeadLetter, *, error_bytes: int = ERROR_BYTES) -> list[tuple[str, bytes | None]]:
    """The letter's headers: the record's own (those of an earlier death left out), then what is known of its end."""
    trigger, record = letter.trigger, letter.record
    key = trigger_key(trigger)
    known = {
        "reason": str(letter.status),
        "attempts": str(letter.attempts),
        "source-topic": trigger.kafka.topic if trigger.kafka is not None else "",
        "source-partition": str(record.partition),
        "source-offset": str(record.offset),
        "source-timestamp": str(record.timestamp_ms),
        "trigger": str(key),
        "function": str(key.function),
        "request-id": _request_id(letter.error),
        "dead-unix-ms": str(letter.dead_unix_ms),
    }
    kept = [(name, value) for name, value in record.headers if not name.startswith(_PREFIX)]
    added: list[tuple[str, bytes | None]] = [(_PREFIX + name, text.encode()) for name, text in known.items()]
    return [*kept, *added, (_PREFIX + "error", letter.error[:error_bytes])]


def _request_id(error: bytes) -> str:
    try:
        found = str(json.loads(error)["requestId"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return "" if found == _NO_REQUEST else found


class Send(Protocol):
    """infra.kafka.producer.Producer, as far as it is needed."""

    async def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> Delivered:
        """Returns when all replicas have it; BrokerUnavailable or UserError when not."""
        ...


class DeadLetterSink:
    """Writes dead letters to the fabric's own cluster; letters of one key stay in order."""

    def __init__(self, producer: Send) -> None:
        self._producer = producer

    async def put(self, letter: DeadLetter) -> None:
        """Returns when the letter stands in its topic.

        A letter that is refused, as a rule because the record fills the topic's limit already, is tried once more with the error cut short.

        Raises:
            BrokerUnavailable: not acknowledged; it may still arrive, so a letter can stand twice (`DeadIndex` counts it once).
            UserError: Kafka will not take it: too large even so, or the topic is gone.
        """
        try:
            await self._send(letter, headers_of(letter))
        except UserError:
            await self._send(letter, headers_of(letter, error_bytes=SHORT_ERROR_BYTES))

    async def _send(self, letter: DeadLetter, headers: Headers) -> None:
        record = letter.record
        await self._producer.send(
            dead_letter_topic(trigger_key(letter.trigger)),
            key=record.key,
            value=record.value,
            headers=headers,
            timestamp_ms=letter.dead_unix_ms,
        )


class Offsets(Protocol):
    """infra.kafka.admin.Admin, as far as it is needed."""

    async def start_offsets(self, topic: str) -> dict[int, int]:
        """First kept offset by partition; empty when there is no such topic."""
        ...

    async def end_offsets(self, topic: str) -> dict[int, int]:
        """Offset of the next record by partition; empty when there is no such topic."""
        ...


class Scan(Protocol):
    """infra.kafka.scan.Scanner, as far as it is needed."""

    async def scan(
        self, topic: str, partition: int, offset: int, visit: Callable[[Record], bool], *, timeout_s: float = 2.0
    ) -> ScanEnd:
        """Visit records from `offset` on; how far it came. Raises BrokerUnavailable."""
        ...


class DeadIndex:
    """Distinct source offsets that stand in a trigger's dead-letter topic now, by source partition.

    Each look reads on from where the last one stopped. A topic that was purged or made again is read from its start.
    """

    def __init__(self, admin: Offsets, scanner: Scan) -> None:
        self._admin, self._scanner = admin, scanner
        self._seen: dict[TriggerKey, _Seen] = {}

    async def dead(self, key: TriggerKey) -> Mapping[int, int]:
        """Counts as of now; empty when the trigger has no dead-letter topic.

        A topic with so many letters that they can't be read within 10 s is counted as far as that went, and further by the next look.

        Raises:
            BrokerUnavailable: the fabric's cluster does not answer.
        """
        topic = dead_letter_topic(key)
        seen = self._seen.setdefault(key, _Seen(str(key)))
        async with seen.lock:
            ends = await self._admin.end_offsets(topic)
            starts = await self._admin.start_offsets(topic)
            seen.begin(starts, ends)
            deadline = mono_s() + _COUNT_S
            for partition, end in ends.items():
                while seen.positions[partition] < end:
                    if mono_s() > deadline:
                        _LOG.warning("dead letters are still being counted", trigger=str(key), partition=partition)
                        break
                    found = await self._read(topic, partition, seen)
                    if found.at_end:
                        break
            if not ends:
                self._seen.pop(key, None)
            return seen.counts()

    async def _read(self, topic: str, partition: int, seen: _Seen) -> ScanEnd:
        at = seen.positions[partition]
        found = await self._scanner.scan(topic, partition, at, seen.take, timeout_s=_SCAN_S)
        seen.positions[partition] = found.next_offset
        return found


class _Seen:
    """What was read of one trigger's dead letters. Another tenant's trigger of the same names shares the topic; its letters are not ours."""

    def __init__(self, trigger: str) -> None:
        self.lock = asyncio.Lock()
        self.positions: dict[int, int] = {}
        self._trigger = trigger.encode()
        self._starts: dict[int, int] = {}
        self._offsets: dict[int, set[int]] = {}

    def begin(self, starts: Mapping[int, int], ends: Mapping[int, int]) -> None:
        """Go on from the last look, or anew when letters were taken away since."""
        same = self._starts == starts and all(at <= ends.get(p, 0) for p, at in self.positions.items())
        if not same:
            self._starts, self.positions, self._offsets = dict(starts), {}, {}
        for partition in ends:
            self.positions.setdefault(partition, starts.get(partition, 0))

    def take(self, record: Record) -> bool:
        """Count one letter; runs in the scanner's thread, while the lock keeps others away."""
        headers = dict(record.headers)
        partition, offset = headers.get("penstock-source-partition"), headers.get("penstock-source-offset")
        is_ours = headers.get("penstock-trigger") == self._trigger
        if is_ours and partition and offset and partition.isdigit() and offset.isdigit():
            self._offsets.setdefault(int(partition), set()).add(int(offset))
        return True

    def counts(self) -> dict[int, int]:
        """Distinct offsets by source partition."""
        return {partition: len(offsets) for partition, offsets in sorted(self._offsets.items())}
