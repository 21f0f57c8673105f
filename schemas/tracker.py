"""Which offsets of one partition are finished, and how far a commit may go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class CommitTracker:
    """Finished and unfinished offsets of one partition during one ownership.

    Offsets finish in any order; only the contiguous prefix may be committed. What is kept is the *unfinished* delivered offsets, in
    the order of delivery: their number is bounded by the buffers, whatever happens behind a stuck record. Every offset below
    `next_offset` that is not among them counts as finished, also one that was never delivered (removed by compaction, or a
    transaction marker): so gaps never stall a commit.

    Args:
        offset: the committed offset, where delivery starts (or later, when the log no longer has it).
        finished: what the commit's metadata knew to be finished beyond it, as `Marks.finished`. Such a record is not run again.

    `deliver` and `finish` take about 0.1 µs; reading `committable` or `runs` walks the unfinished offsets, so do it per commit, not per
    record. Not thread-safe. Pure.
    """

    __slots__ = ("_restored", "next_offset", "unfinished")

    def __init__(self, offset: int, finished: Iterable[tuple[int, int]] = ()) -> None:
        self.next_offset = offset
        """One above the highest offset delivered so far."""
        self.unfinished: dict[int, None] = {}
        """Delivered and not finished, ascending. Read it freely; change it through `deliver` and `finish`."""
        self._restored = [run for run in finished if run[1] > offset]
        self._restored.reverse()  # so that the lowest is popped

    def deliver(self, offset: int) -> bool:
        """Take note of a record.

        Args:
            offset: at least `next_offset`.

        Returns:
            True when it has to run; False when it finished under an earlier ownership.
        """
        self.next_offset = offset + 1
        if self._restored and self._was_finished(offset):
            return False
        self.unfinished[offset] = None
        return True

    def _was_finished(self, offset: int) -> bool:
        restored = self._restored
        while restored and restored[-1][1] <= offset:
            restored.pop()
        return bool(restored) and restored[-1][0] <= offset

    def finish(self, offset: int) -> None:
        """The record is done with (its function succeeded, or its dead letter is safe). Idempotent."""
        self.unfinished.pop(offset, None)

    @property
    def committable(self) -> int:
        """The offset to commit: the first one that is not known to be finished."""
        first = next(iter(self.unfinished), None)
        if first is not None:
            return first
        restored = self._live()
        return restored[-1][1] if restored and restored[-1][0] <= self.next_offset else self.next_offset

    def runs(self) -> Iterator[tuple[int, int]]:
        """Finished ranges beyond `committable`, half-open, ascending, not touching; for `marks.encode`. Lazy: use it at once."""
        restored = self._live()
        offsets = iter(self.unfinished)
        last = next(offsets, None)
        if last is None:
            committable = self.committable
            yield from (run for run in reversed(restored) if run[0] > committable)
            return
        for offset in offsets:
            if offset != last + 1:
                yield last + 1, offset
            last = offset
        first, end = last + 1, self.next_offset
        if restored and restored[-1][0] <= end:  # what was restored goes on where the delivered part ends
            end = restored[-1][1]
            restored = restored[:-1]
        if first < end:
            yield first, end
        yield from reversed(restored)

    def _live(self) -> list[tuple[int, int]]:
        """Restored runs that delivery has not passed yet; the lowest is last."""
        restored = self._restored
        while restored and restored[-1][1] <= self.next_offset:
            restored.pop()
        return restored
