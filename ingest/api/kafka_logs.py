"""`LogReader` over the log topic: a bounded scan of the function's partition, its cursor `partition:offset:line`."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from infra.kafka.admin import Admin
from infra.kafka.consumer import Record
from infra.kafka.scan import ScanEnd, Scanner
from infra.telemetry import get_logger
from ingest.api.ports import LogPage
from schemas import avro, topics
from schemas.errors import BrokerUnavailable, WireError
from schemas.ids import FunctionKey
from schemas.records import LogBlock, LogLine

PAGE_BYTES: Final = 4 * 1024 * 1024
SCAN_S: Final = 2.0
LOOK_AGAIN_S: Final = 0.2
_CURSOR: Final = re.compile(r"([0-9]{1,6}):([0-9]{1,18}):([0-9]{1,9})\Z")

log = get_logger("ingest.api.logs")


class Cursor(NamedTuple):
    """Where to go on: line number `line` of the block at `offset`."""

    partition: int
    offset: int
    line: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}:{self.line}"

    @staticmethod
    def parse(text: str) -> Cursor:
        """Inverse of `str()`; raises ValueError."""
        match = _CURSOR.match(text)
        if match is None:
            raise ValueError(f"{text[:40]!r} is not of the form partition:offset:line")
        return Cursor(*map(int, match.groups()))


def partition_of(key: bytes, partitions: int) -> int:
    """Where librdkafka's default partitioner puts a key: its CRC-32, modulo."""
    return zlib.crc32(key) % partitions


@dataclass(slots=True)
class Collector:
    """Gathers one page from the blocks that it is shown, in offset order. Used in the scanner's thread."""

    key: bytes
    cursor: Cursor
    limit: int
    request_id: str
    since_unix_ms: int | None
    lines: list[LogLine] = field(default_factory=list)
    size: int = 0

    def visit(self, record: Record) -> bool:
        """Take a block in; False when the page is full before it, or inside it."""
        if record.key != self.key or record.value is None:
            return True
        try:
            block = avro.decode(LogBlock, record.value)
        except WireError as exc:
            log.warning("log block skipped", offset=record.offset, error=str(exc))
            return True
        first = self.cursor.line if record.offset == self.cursor.offset else 0
        for index in range(first, len(block.lines)):
            if len(self.lines) >= self.limit or self.size >= PAGE_BYTES:
                self.cursor = self.cursor._replace(offset=record.offset, line=index)
                return False
            self._take(block.lines[index])
        return True

    def _take(self, line: LogLine) -> None:
        if self.request_id and line.request_id != self.request_id:
            return
        if self.since_unix_ms is not None and line.unix_ms < self.since_unix_ms:
            return
        self.lines.append(line)
        self.size += len(line.line) + 100

    def move(self, end: ScanEnd) -> None:
        """Note how far the scan came."""
        if end.next_offset != self.cursor.offset:
            self.cursor = self.cursor._replace(offset=end.next_offset, line=0)


class KafkaLogs:
    """Reads topics.LOGS."""

    def __init__(self, admin: Admin, scanner: Scanner, mono_s: Callable[[], float]) -> None:
        self._admin, self._scanner, self._mono_s = admin, scanner, mono_s
        self._partitions: int | None = None

    async def read(
        self, key: FunctionKey, *, cursor: str, since_unix_ms: int | None, limit: int, request_id: str, wait_s: float
    ) -> LogPage:
        """One page; see the port. Raises ValueError for a wrong cursor, BrokerUnavailable."""
        at = Cursor.parse(cursor) if cursor else None
        topic_key = str(key).encode()
        partition = partition_of(topic_key, await self._count())
        if at is None:
            at = Cursor(partition, await self._first(partition, since_unix_ms), 0)
        if at.partition != partition:
            raise ValueError("it belongs to another function")
        page = Collector(topic_key, at, limit, request_id, since_unix_ms)
        deadline = self._mono_s() + wait_s
        while True:
            end = await self._scanner.scan(
                topics.LOGS, partition, page.cursor.offset, page.visit, max_bytes=2 * PAGE_BYTES, timeout_s=SCAN_S
            )
            page.move(end)
            if page.lines or not end.at_end or self._mono_s() >= deadline:
                return LogPage(page.lines, str(page.cursor), end.at_end)
            await asyncio.sleep(min(LOOK_AGAIN_S, max(0.0, deadline - self._mono_s())))

    async def _count(self) -> int:
        if self._partitions is None:
            facts = await self._admin.topic(topics.LOGS)
            if facts is None:
                raise BrokerUnavailable(f"Kafka: topic {topics.LOGS} does not exist yet")
            self._partitions = facts.partitions
        return self._partitions

    async def _first(self, partition: int, since_unix_ms: int | None) -> int:
        # A block's timestamp is that of its sending: never before that of its lines.
        if since_unix_ms is None:
            return (await self._admin.start_offsets(topics.LOGS)).get(partition, 0)
        return (await self._admin.offsets_at(topics.LOGS, since_unix_ms)).get(partition, 0)
