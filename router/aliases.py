"""Which version an alias leads to: by a share of the calls, or by a rule about headers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol

from schemas.ids import FunctionKey
from schemas.records import AliasRecord, VersionMatch

_RANGE: Final = re.compile(r"([(\[])\s*(-?[0-9]{1,18})\s*,\s*(-?[0-9]{1,18})\s*([)\]])\Z")
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}\Z")
_CLOSING: Final = {"(": ")", "[": "]"}


class AliasLookup(Protocol):
    """Where aliases are looked up by their key."""

    def get(self, key: str) -> AliasRecord | None:
        """The newest state, or None."""
        ...


def alias_named(aliases: AliasLookup, key: FunctionKey, qualifier: str) -> AliasRecord | None:
    """The alias that a qualifier names; None when it names none, as a version's number never does."""
    return None if qualifier.isdecimal() else aliases.get(f"{key}/{qualifier}")


@dataclass(frozen=True, slots=True)
class Split:
    """Calls divided between two versions; `weight` is the additional one's part, from 0 to 1."""

    main: str
    additional: str
    weight: float

    def version(self, share: float) -> str:
        """The version of a call that stands at `share` in [0, 1). When the weight moves, only shares between old and new change sides."""
        return self.additional if share < self.weight else self.main


def split_of(alias: AliasRecord) -> Split | None:
    """How an alias divides calls that carry no headers; None when all go to its main version."""
    if alias.matches or not alias.additional or alias.weight <= 0.0:
        return None
    return Split(alias.version, alias.additional, alias.weight)


def chosen(alias: AliasRecord, *, headers: Mapping[str, str] | None, share: float) -> str:
    """The version for one call: that of the first rule which fits its headers; without rules by `share` in [0, 1)."""
    for match in alias.matches:
        if headers and fits(match, headers):
            return match.version
    split = split_of(alias)
    return alias.version if split is None else split.version(share)


def fits(match: VersionMatch, headers: Mapping[str, str]) -> bool:
    """True when the rule's header is there and has a value that it names."""
    value = headers.get(match.header)
    if value is None:
        return False
    if match.method == "exact":
        return value == match.expression
    bounds = bounds_of(match.expression)
    return bounds is not None and _INTEGER.match(value) is not None and bounds[0] <= int(value) <= bounds[1]


def bounds_of(expression: str) -> tuple[int, int] | None:
    """First and last integer of `(a,b)` or `[a,b]`; None when it is neither."""
    found = _RANGE.match(expression)
    if found is None or _CLOSING[found[1]] != found[4]:
        return None
    low, high = int(found[2]), int(found[3])
    return (low, high) if found[1] == "[" else (low + 1, high - 1)


def record_share(key: bytes | None, partition: int, offset: int) -> float:
    """Where a record of a topic stands in [0, 1): by its key, and without one by its place. The same on every gateway, for ever."""
    source = key if key is not None else b"%d/%d" % (partition, offset)
    # 53 bits: what a float holds without rounding up to 1.
    return (int.from_bytes(blake2b(source, digest_size=8).digest()) >> 11) / 9007199254740992.0
