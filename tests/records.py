"""Records for tests of what reads Kafka."""

from __future__ import annotations

from infra.kafka.consumer import Record


def record(
    offset: int,
    key: str | bytes | None = "k",
    *,
    partition: int = 0,
    value: bytes | None = b"v",
    headers: tuple[tuple[str, bytes | None], ...] = (),
    timestamp_ms: int = 1_700_000_000_000,
) -> Record:
    """One record; a text key is UTF-8."""
    return Record(partition, offset, key.encode() if isinstance(key, str) else key, value, headers, timestamp_ms)


def keyed(keys: str, *, first: int = 0, partition: int = 0) -> list[Record]:
    """One record per letter, in offset order: `keyed("aab")` are offsets 0, 1 of key a and 2 of key b; `-` has no key."""
    return [record(first + i, None if key == "-" else key, partition=partition) for i, key in enumerate(keys)]
