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
    """One partition of the current assignment."""

    __slots__ = ("committed", "epoch")

    def __init__(self, epoch: int, committed: int) -> None:
        self.epoch, self.committed = epoch, committed


class Commits:
    """Marks come by `merge`, leave by `take`, and come back when a commit of them is refused, unless a newer one is there by then.

    A mark counts only in the epoch of its partition's present holding, and a committed offset never goes down.
    """

    def __init__(self) -> None:
        self.stale_marks = 0
        """Marks dropped because their epoch was over."""
        self._holdings: dict[int, _Holding] = {}
        self._waiting: dict[int, Mark] = {}
        self._sent: dict[int, Mark] = {}

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
            self._sent.pop(partition, None)

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
        self._sent |= marks
        for partition, mark in marks.items():
            self._holdings[partition].committed = mark.offset
        return marks

    def answered(self, answers: Iterable[Answer]) -> None:
        """The broker's answers to a commit, partition by partition."""
        for partition, offset, refused in answers:
            sent = self._sent.get(partition)
            if sent is None:
                continue
            if refused:
                self._again(partition, sent)
            elif sent.offset == offset:
                del self._sent[partition]

    def failed(self) -> None:
        """A commit came to nothing, and which partitions it was for is not known."""
        for partition, sent in self._sent.items():
            self._again(partition, sent)

    def _again(self, partition: int, mark: Mark) -> None:
        holding = self._holdings.get(partition)
        if holding is not None and holding.epoch == mark.epoch:
            self._waiting.setdefault(partition, mark)
