"""Offset metadata: what a commit says beside the offset. The one place that writes or reads it.

    v1 e=<epoch> d=<runs>

`epoch` is the ownership that committed, decimal. `runs` are the offsets beyond the committed one that are finished already, each run as
`<gap>.<length>,` in hexadecimal: how many unfinished offsets lie before it (counted from the committed offset or from the run before), and how
many are finished. A 1 is left out, so that the worst pattern, every second offset, costs one character a run: `,,,` is three such runs.

The broker takes at most 4,095 characters (GROUND.md B); this module stays at `LIMIT_CHARS`. Whatever it did not write reads as
"nothing known": epoch 0, no runs. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LIMIT_CHARS: Final = 3_000
_LARGEST: Final = 2**63 - 1
_TEXT: Final = re.compile(r"v1 e=([0-9]{1,19}) d=((?:[0-9a-f]{0,16}(?:\.[0-9a-f]{1,16})?,)*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Marks:
    """What the metadata of a committed offset says.

    `finished` are half-open ranges (first, end) of offsets, ascending, disjoint, all above the committed offset.
    """

    epoch: int = 0
    finished: tuple[tuple[int, int], ...] = ()


UNKNOWN: Final = Marks()


def encode(epoch: int, offset: int, finished: Iterable[tuple[int, int]]) -> tuple[str, bool]:
    """The metadata for a commit of `offset`.

    Args:
        epoch: >= 0, below 2**63.
        offset: the committed offset, that is the first unfinished one.
        finished: half-open ranges, ascending, not touching one another, all above `offset`. Read only as far as there is room.

    Returns:
        The text, at most `LIMIT_CHARS` ASCII characters, and whether it holds every run; if not, it holds the lowest ones.
    """
    parts = [f"v1 e={epoch} d="]
    room = LIMIT_CHARS - len(parts[0])
    at = offset
    for first, end in finished:
        gap, length = first - at, end - first
        if length == 1:
            part = "," if gap == 1 else f"{gap:x},"
        else:
            part = f".{length:x}," if gap == 1 else f"{gap:x}.{length:x},"
        room -= len(part)
        if room < 0:
            return "".join(parts), False
        parts.append(part)
        at = end
    return "".join(parts), True


def decode(offset: int, metadata: str | None) -> Marks:
    """Inverse of `encode`; never raises: foreign, damaged or missing metadata is `UNKNOWN`.

    Args:
        offset: the committed offset that the metadata belongs to.
        metadata: as the broker returned it.
    """
    match = _TEXT.fullmatch(metadata) if metadata else None
    if match is None:
        return UNKNOWN
    finished: list[tuple[int, int]] = []
    at = offset
    for part in match[2].split(",")[:-1]:
        gap, _, length = part.partition(".")
        first = at + (int(gap, 16) if gap else 1)
        at_end = first + (int(length, 16) if length else 1)
        if not at < first < at_end <= _LARGEST:
            return UNKNOWN
        finished.append((first, at_end))
        at = at_end
    return Marks(int(match[1]), tuple(finished))


def parse_epoch(metadata: str | None) -> int:
    """The epoch alone; 0 when unknown. For the consumer's thread, which mints the next one."""
    match = _TEXT.fullmatch(metadata) if metadata else None
    return int(match[1]) if match else 0
