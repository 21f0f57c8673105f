"""Which positions of a consumer are to be committed: its holdings, the marks that wait, those that are out. Pure; the consumer's thread owns it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Mark(NamedTuple):
    """A position to commit: valid only in its epoch."""

    epoch: int
    offset: int
    metadata: str


class Answer(NamedTuple):
    """What the broker said of one partition of a commit."""

    partition: int
    offset: int
    refused: bool


class _Holding:
    """One partition of the current assignment: the newest mark that was sent, and whether that is what the broker has."""

    __slots__ = ("committed", "epoch", "is_acknowledged", "newest")

    def __init__(self, epoch: int, committed: int) -> None:
        self.epoch, self.committed = epoch, committed
        self.newest: Mark | None = None
        self.is_acknowledged = False


class Commits:
    """Marks come by `merge`, leave by `take`, and come back when a commit of them is refused, unless a newer one is there by then.

    A mark counts only in the epoch of its partition's present holding, and a committed offset never goes down: commits that were sent
    while the broker was away reach it in any order, so when an older one is answered after the newest, the newest is sent once more.
    """

    def __init__(self) -> None:
        self.stale_marks = 0
        """Marks dropped because their epoch was over."""
        self._holdings: dict[int, _Holding] = {}
        self._waiting: dict[int, Mark] = {}

    @property
    def partitions(self) -> frozenset[int]:
        """What is held."""
        return frozenset(self._holdings)

    @property
    def waiting(self) -> bool:
        """True when there is something to commit."""
        return bool(self._waiting)

    def hold(self, partition: int, epoch: int, committed: int) -> None:
        """A partition is assigned, its committed offset known."""
        self._holdings[partition] = _Holding(epoch, committed)

    def forget(self, partitions: Iterable[int]) -> None:
        """Partitions are gone, and what was to be committed for them."""
        for partition in partitions:
            self._holdings.pop(partition, None)
            self._waiting.pop(partition, None)

    def merge(self, marks: Mapping[int, Mark]) -> None:
        """These are to be committed; a newer mark of a partition replaces an older one."""
        for partition, mark in marks.items():
            holding = self._holdings.get(partition)
            if holding is None or holding.epoch != mark.epoch:
                self.stale_marks += 1
            elif mark.offset >= holding.committed:
                self._waiting[partition] = mark

    def take(self) -> dict[int, Mark]:
        """All that waits, which is now out."""
        marks, self._waiting = self._waiting, {}
        for partition, mark in marks.items():
            holding = self._holdings[partition]
            holding.committed, holding.newest, holding.is_acknowledged = mark.offset, mark, False
        return marks

    def answered(self, answers: Iterable[Answer]) -> None:
        """The broker's answers to a commit, partition by partition, in the order in which it carried them out."""
        for partition, offset, refused in answers:
            holding = self._holdings.get(partition)
            if holding is None or holding.newest is None:
                continue
            if not refused and offset == holding.newest.offset:
                holding.is_acknowledged = True
            elif refused or holding.is_acknowledged:
                self._again(partition, holding)

    def failed(self) -> None:
        """A commit came to nothing, and which partitions it was for is not known."""
        for partition, holding in self._holdings.items():
            if not holding.is_acknowledged:
                self._again(partition, holding)

    def _again(self, partition: int, holding: _Holding) -> None:
        if holding.newest is not None:
            self._waiting.setdefault(partition, holding.newest)
