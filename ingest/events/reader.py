"""Reads one topic of asynchronous events: hands out what may run, keeps what is not due, commits what is over. On the event loop throughout.

Events have no order. An offset is committed when all before it are over, with what is over beyond it in the metadata, as the lanes do.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from infra.clock import unix_ms
from infra.kafka.commits import Mark
from infra.kafka.consumer import Assigned, ConsumerEvents, Record
from infra.telemetry import get_logger
from ingest.events.queues import Item
from ingest.lanes import marks
from ingest.lanes.engine import Source
from schemas import avro
from schemas.errors import BrokerUnavailable, PenstockError, WireError
from schemas.events import AsyncEvent
from schemas.ids import FunctionKey
from schemas.tracker import CommitTracker

_LOG = get_logger("ingest.events")
HELD: Final = 5_000
HELD_BYTES: Final = 64 * 1024 * 1024
COMMIT_S: Final = 0.05
LEAVE_S: Final = 1.8
"""A little less than the consumer's thread waits at a rebalance."""


class Work(Protocol):
    """`ingest.events.runner.Runner`, as a reader sees it."""

    def is_crowded(self, key: FunctionKey) -> bool:
        """True when no more of the function's events can be offered."""
        ...

    def offer(self, item: Item) -> None:
        """Run it."""
        ...

    def move_away(self, item: Item) -> None:
        """Have it wait in the topic of the crowded."""
        ...


@dataclass(slots=True)
class _Owned:
    epoch: int
    tracker: CommitTracker
    items: dict[int, Item] = field(default_factory=dict)
    changed: bool = False


class Reader:
    """One topic of one gateway.

    Args:
        topic: for the log.
        open_source: makes the consumer, given who is told.
        work: where events go.
        moves_away: events of a crowded function leave for the topic of the crowded; else they wait here.
    """

    def __init__(
        self, topic: str, open_source: Callable[[ConsumerEvents], Source], work: Work, *, moves_away: bool
    ) -> None:
        self._topic, self._work, self._moves_away = topic, work, moves_away
        self._owned: dict[int, _Owned] = {}
        self._waiting: list[tuple[int, int, Item]] = []
        self._crowds: dict[FunctionKey, deque[Item]] = {}
        self._serial = self._bytes = 0
        self._held = self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._commit_due: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._source = open_source(self)

    async def run(self) -> None:
        """Work until cancelled, then let what runs finish for a moment.

        Raises:
            BrokerUnavailable: the consumer has ended; a new process may do better.
        """
        self._source.start()
        try:
            await asyncio.shield(self._ended)
        finally:
            await self._close()

    async def _close(self) -> None:
        self._stopping = True
        leaving = asyncio.Event()
        self.revoking(frozenset(self._owned), leaving.set)
        await leaving.wait()
        for timer in (self._timer, self._commit_due):
            if timer is not None:
                timer.cancel()
        await self._source.close()

    def wake(self, request_id: str) -> None:
        """Somebody asked for the end of an event that may wait here for its time: it goes on now, and is ended."""
        for at, (_, serial, item) in enumerate(self._waiting):
            if item.event.request_id == request_id:
                self._waiting[at] = (0, serial, item)
                heapq.heapify(self._waiting)
                self._hand_out()
                return

    def room(self, key: FunctionKey) -> None:
        """An event of the function is over: the next of its crowd may go."""
        crowd = self._crowds.get(key)
        while crowd and not self._work.is_crowded(key):
            item = crowd.popleft()
            if not item.dropped:
                self._work.offer(item)
        if crowd is not None and not crowd:
            self._crowds.pop(key, None)

    # ConsumerEvents

    def assigned(self, partitions: dict[int, Assigned]) -> None:
        """Take partitions over where their last owner left off."""
        if self._stopping:
            return
        for partition, at in partitions.items():
            finished = marks.decode(at.offset, at.metadata).finished
            self._owned[partition] = _Owned(at.epoch, CommitTracker(at.offset, finished))

    def records(self, batch: list[Record]) -> None:
        """Take events in."""
        for record in batch:
            owned = self._owned.get(record.partition)
            if owned is None or self._stopping or record.offset < owned.tracker.next_offset:
                continue
            if owned.tracker.deliver(record.offset):
                self._take(owned, record)
        self._hand_out()
        self._press()

    def revoking(self, partitions: frozenset[int], done: Callable[[], None]) -> None:
        """Drop what waits; when what runs is over, or time is up, commit and let go."""
        mine = [self._owned[p] for p in partitions if p in self._owned]
        for owned in mine:
            for offset, item in list(owned.items.items()):
                if not item.started:
                    item.dropped = True
                    self._forget(owned, offset)
        deadline = self._loop.time() + LEAVE_S

        def look() -> None:
            if any(owned.items for owned in mine) and self._loop.time() < deadline:
                self._loop.call_later(0.01, look)
                return
            self._commit()
            self.lost(partitions)
            done()

        look()

    def lost(self, partitions: frozenset[int]) -> None:
        """They are another's already."""
        for partition in partitions:
            owned = self._owned.pop(partition, None)
            for offset, item in list(owned.items.items()) if owned is not None else ():
                item.dropped = True
                if owned is not None:
                    self._forget(owned, offset)
        self._press()

    def failed(self, error: PenstockError) -> None:
        """Passing trouble is logged; the end of the consumer ends `run`."""
        _LOG.warning("reading events", topic=self._topic, error=str(error))
        if not error.retryable and not self._ended.done():
            self._ended.set_exception(BrokerUnavailable(f"{self._topic}: {error}"))

    # in hand

    def _take(self, owned: _Owned, record: Record) -> None:
        try:
            event = avro.decode(AsyncEvent, record.value or b"")
        except WireError as exc:
            _LOG.warning("event skipped", topic=self._topic, offset=record.offset, error=str(exc))
            owned.tracker.finish(record.offset)
            owned.changed = True
            return
        item = Item(event, partial(self._finished, owned, record.offset))
        owned.items[record.offset] = item
        self._bytes += len(event.event)
        self._serial += 1
        heapq.heappush(self._waiting, (event.due_unix_ms, self._serial, item))

    def _hand_out(self) -> None:
        now_ms = unix_ms()
        while self._waiting and (self._waiting[0][0] <= now_ms or self._waiting[0][2].dropped):
            item = heapq.heappop(self._waiting)[2]
            if not item.dropped:
                self._place(item)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and not self._stopping:
            self._timer = self._loop.call_later((self._waiting[0][0] - now_ms) / 1000, self._hand_out)

    def _place(self, item: Item) -> None:
        key = item.event.key
        if key not in self._crowds and not self._work.is_crowded(key):
            self._work.offer(item)
        elif self._moves_away:
            self._work.move_away(item)
        else:
            self._crowds.setdefault(key, deque()).append(item)

    def _finished(self, owned: _Owned, offset: int) -> None:
        if offset not in owned.items:
            return  # its partition left before it was over
        owned.tracker.finish(offset)
        owned.changed = True
        self._forget(owned, offset)
        if self._commit_due is None and not self._stopping:
            self._commit_due = self._loop.call_later(COMMIT_S, self._commit)
        self._press()

    def _forget(self, owned: _Owned, offset: int) -> None:
        self._bytes -= len(owned.items.pop(offset).event.event)

    def _press(self) -> None:
        count = sum(len(owned.items) for owned in self._owned.values())
        full = count >= HELD or self._bytes >= HELD_BYTES
        if full and not self._held:
            self._held = True
            self._source.hold()
        elif self._held and count <= HELD // 2 and self._bytes <= HELD_BYTES // 2:
            self._held = False
            self._source.release()

    def _commit(self) -> None:
        self._commit_due = None
        found: dict[int, Mark] = {}
        for partition, owned in self._owned.items():
            if owned.changed:
                owned.changed = False
                offset = owned.tracker.committable
                finished = marks.encode(owned.epoch, offset, owned.tracker.runs())[0]
                found[partition] = Mark(owned.epoch, offset, finished)
        if found:
            self._source.commit(found)
