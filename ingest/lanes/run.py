"""What a LaneSet is made of: ownerships, lanes, runs. Pure data; `lanes` moves it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from schemas.tracker import CommitTracker

if TYPE_CHECKING:
    from infra.kafka.consumer import Record

RECORD_OVERHEAD_BYTES: Final = 1_024
"""What a buffered record costs beside its bytes: the tuple, its objects, its queue (measured: 270 when many share a lane, 1,150 alone in one)."""


class Owned:
    """One ownership of one partition: what its lanes share."""

    __slots__ = ("dirty", "epoch", "lanes", "leaving", "out", "partition", "tracker")

    def __init__(self, partition: int, epoch: int, tracker: CommitTracker) -> None:
        self.partition, self.epoch, self.tracker = partition, epoch, tracker
        self.lanes: dict[object, Lane] = {}
        self.out = 0
        """Records in runs that are out, or on their way to the dead-letter topic."""
        self.leaving = False
        """Revoked or released: nothing new starts, and what fails is left to the next owner."""
        self.dirty = False
        """What may be committed has changed since `marks`."""


class Lane:
    """The queue of one key. In `Owned.lanes` while it has records that wait or are out; a pool stays."""

    __slots__ = ("idle", "key", "ordered", "owner", "queue", "single_attempt", "singles")

    def __init__(self, owner: Owned, key: object, queue: deque[Record], *, ordered: bool) -> None:
        self.owner, self.key, self.queue, self.ordered = owner, key, queue, ordered
        self.idle = False
        """A pool that has nothing queued, so is not in the ready queue."""
        self.singles = 0
        """How many records at the head came from a batch that was taken apart, and run one by one for the last time."""
        self.single_attempt = 0


class Trouble:
    """What went wrong with a run so far."""

    __slots__ = ("condemned", "error", "failures", "status", "waits")

    def __init__(self) -> None:
        self.status = 0
        self.error = b""
        """The error JSON of the last failure."""
        self.failures = 0
        """Runs that the function failed."""
        self.waits = 0
        """Failures of the platform, or of the dead-letter topic, since the function last had its say."""
        self.condemned = False


class Run:
    """Records that go to the function together, from the first try to the last. The caller reads it and hands it back.

    `attempt` counts from 1 and only by the function's failures; `records` are of one partition, and of an ordered lane in offset order.
    """

    __slots__ = ("attempt", "lane", "records", "trouble")

    def __init__(self, lane: Lane, records: list[Record], attempt: int) -> None:
        self.lane, self.records, self.attempt = lane, records, attempt
        self.trouble: Trouble | None = None

    @property
    def partition(self) -> int:
        """The partition of its records."""
        return self.lane.owner.partition

    @property
    def epoch(self) -> int:
        """The ownership under which it started."""
        return self.lane.owner.epoch


def weight(record: Record) -> int:
    """Bytes that a buffered record is counted for."""
    _, _, key, value, headers, _ = record
    size = RECORD_OVERHEAD_BYTES + (len(value) if value else 0) + (len(key) if key else 0)
    return size + sum(len(name) + len(content or b"") for name, content in headers) if headers else size
