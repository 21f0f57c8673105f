"""Which records of a partition were handed out, which are finished, and which may be let go: in offset order, none passed over. Pure.

Faust commits by what was let go, and takes it on trust that this happens in order and that it delivered every record; neither holds here
(docs/adr/0002), so both are seen to by this.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Generic, TypeVar

T = TypeVar("T")


class Verdict(Enum):
    """What a delivered record is."""

    TAKE = auto()
    """The next one: work on it, then `finish` it."""
    UNDER_WAY = auto()
    """Taken before and not finished; it will be let go with that."""
    LET_GO = auto()
    """Taken and let go before."""
    MISSING = auto()
    """Some before it were not delivered."""


class Delivery(Generic[T]):
    """One partition since its records were last read from a known place. Tokens are what is given back when a record may be let go."""

    def __init__(self, next_offset: int) -> None:
        self.next_offset = next_offset
        """Offset of the record that must come next."""
        self._open: deque[tuple[int, T]] = deque()
        self._finished: set[int] = set()

    @property
    def is_idle(self) -> bool:
        """Nothing that was taken is unfinished."""
        return not self._open

    def take(self, offset: int, token: T) -> Verdict:
        """A record was delivered."""
        if offset > self.next_offset:
            return Verdict.MISSING
        if offset < self.next_offset:
            return Verdict.UNDER_WAY if self._open and offset >= self._open[0][0] else Verdict.LET_GO
        self._open.append((offset, token))
        self.next_offset = offset + 1
        return Verdict.TAKE

    def finish(self, offset: int) -> list[T]:
        """A record that was taken is finished; the tokens of all that may be let go by that, in order."""
        self._finished.add(offset)
        free: list[T] = []
        while self._open and self._open[0][0] in self._finished:
            first, token = self._open.popleft()
            self._finished.discard(first)
            free.append(token)
        return free

    def skip_to(self, offset: int) -> None:
        """There are no records before `offset` any more."""
        self.next_offset = max(self.next_offset, offset)
