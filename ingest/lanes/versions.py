"""Records of a trigger whose alias divides them between two versions: each by its key, and never two versions in one batch. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from router.aliases import Split, record_share

if TYPE_CHECKING:
    from infra.kafka.consumer import Record

Division = Callable[[], Split | None]
"""How the trigger's records divide now; None while all of them go the same way."""


def one_version(split: Split, records: Sequence[Record], *, ordered: bool) -> tuple[str, list[Record], int]:
    """The version of the first record (there is one), and how many go with it.

    Returns:
        The version; all records; how many of the first of them are this version's. When order matters these are the ones up to the first
        that is not, else all of them are brought to the front, so that batches are not cut small.
    """
    first = _version(split, records[0])
    if not ordered:
        same = [_version(split, record) == first for record in records]
        front = [record for record, is_same in zip(records, same, strict=True) if is_same]
        rest = [record for record, is_same in zip(records, same, strict=True) if not is_same]
        return first, front + rest, len(front)
    count = 1
    while count < len(records) and _version(split, records[count]) == first:
        count += 1
    return first, list(records), count


def _version(split: Split, record: Record) -> str:
    return split.version(record_share(record.key, record.partition, record.offset))
