"""Records of a trigger whose alias divides them between two versions: each by its key, and never two versions in one batch. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from router.aliases import Split, record_share

if TYPE_CHECKING:
    from infra.kafka.consumer import Record

Division = Callable[[], Split | None]
"""How the trigger's records divide now; None while all of them go the same way."""


def one_version(split: Split, records: Sequence[Record]) -> tuple[str, int]:
    """The version of the first record (there is one), and how many from there on share it."""
    version = _version(split, records[0])
    count = 1
    while count < len(records) and _version(split, records[count]) == version:
        count += 1
    return version, count


def _version(split: Split, record: Record) -> str:
    return split.version(record_share(record.key, record.partition, record.offset))
