"""The thin edge around the lanes of one trigger: records in from the consumer's thread, runs out to the dispatcher, marks to the broker.

Everything here runs on the event loop, by callbacks: no task per record. Results that arrive in one loop turn are answered by one look for
what can start next. Back-pressure stops the hand-over when too much is buffered; nothing is dropped. The consumer is asked to commit at
most each 50 ms, and at once when partitions leave.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from infra.clock import mono_s
from infra.kafka.consumer import Assigned, ConsumerEvents, Mark, Record
from infra.telemetry import get_logger
from ingest.deadletter import DeadLetter
from ingest.lanes import marks
from ingest.lanes.event import CkafkaEvents
from ingest.lanes.lanes import LaneSet
from ingest.lanes.policy import WAITING_FOR, LanePolicy, Ordering
from ingest.lanes.run import Owned, Run
from schemas.errors import PenstockError
from schemas.frames import Flow, Result
from schemas.ids import FunctionKey, TriggerKey
from schemas.limits import SYNC_EVENT_BYTES
from schemas.records import LanePartition, TriggerRecord
from schemas.runstatus import ERROR_NAMES, RunStatus

_LOG = get_logger("ingest.lanes")
COMMIT_S = 0.05
REVOKE_S = 1.8
"""A little less than the consumer's thread waits, so that the last commit still goes with it."""
CLOSE_S = 2.0
BUFFERED_BYTES = 16 * 1024 * 1024
ERROR_SHOWN_S = 10.0
_NAMES = {int(status): name for status, name in ERROR_NAMES.items()}


class Submit(Protocol):
    """The router's way in (router.dispatch.Dispatcher.submit)."""

    def __call__(
        self,
        function: FunctionKey,
        qualifier: str,
        event: bytes,
        *,
        flow: Flow | None,
        attempt: int,
        flags: int,
        done: Callable[[Result], None],
    ) -> None:
        """Never raises; `done` is called exactly once, on the loop, possibly before this returns."""
        ...


class Source(Protocol):
    """The consumer of the trigger (infra.kafka.consumer.GroupConsumer)."""

    def start(self) -> None: ...
    def commit(self, marks: Mapping[int, Mark]) -> None: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    async def close(self, timeout_s: float = 5.0) -> None: ...


class Bury(Protocol):
    """The dead-letter desk's way in (ingest.deadletter.DeadLetterSink.put)."""

    async def __call__(self, letter: DeadLetter) -> None:
        """Returns when the letter is acknowledged; raises a PenstockError when it is not."""
        ...


class LaneEngine:
    """One trigger at work.

    Args:
        record: the trigger; its `kafka` is set.
        submit: where runs go.
        bury: where dead letters go.
        source: makes the consumer, given who is told.
        jitter: uniform in [0, 1).
        ended: told once when the consumer ended for good, with the error.
    """

    def __init__(
        self,
        record: TriggerRecord,
        *,
        submit: Submit,
        bury: Bury,
        source: Callable[[ConsumerEvents], Source],
        jitter: Callable[[], float],
        ended: Callable[[PenstockError], None],
    ) -> None:
        assert record.kafka is not None
        kafka = record.kafka
        self.record = record
        self.key = TriggerKey(FunctionKey(record.appid, record.namespace, record.function), record.name)
        self.lanes = LaneSet(
            LanePolicy(Ordering(kafka.ordering), kafka.concurrency, kafka.batch, kafka.retries), jitter
        )
        self._submit, self._bury, self._ended = submit, bury, ended
        self._events = CkafkaEvents(kafka.topic)
        self._source = source(self)
        self._loop = asyncio.get_running_loop()
        self._high = max(512, 2 * kafka.concurrency * kafka.batch)
        self._flows: dict[int, Flow] = {}
        self._held = self._stopping = self._turning = False
        self._leaving: list[tuple[frozenset[int], Callable[[], None]]] = []
        self._burials: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0.0
        self._commit_due: asyncio.TimerHandle | None = None
        self._error: tuple[str, float] = ("", 0.0)

    def start(self) -> None:
        """Join the group."""
        self._source.start()

    async def close(self) -> None:
        """Start nothing more, let what runs finish for at most 2 s, commit, end. What was queued is read again by the next owner."""
        self._stopping = True
        deadline = mono_s() + CLOSE_S
        self.lanes.revoke(list(self.lanes.owned))
        while not self.lanes.drained(self.lanes.owned) and mono_s() < deadline:  # noqa: ASYNC110 - once in a trigger's life
            await asyncio.sleep(0.01)
        self._commit()
        for handle in (self._timer, self._commit_due):
            if handle is not None:
                handle.cancel()
        for burial in self._burials:
            burial.cancel()
        await asyncio.gather(*self._burials, return_exceptions=True)
        await self._source.close()

    # ConsumerEvents

    def assigned(self, partitions: dict[int, Assigned]) -> None:
        """Take partitions over where their last owner left off."""
        for partition, at in partitions.items():
            self.lanes.assign(partition, at.epoch, at.offset, marks.decode(at.offset, at.metadata).finished)
            self._flows[partition] = Flow(str(self.key), partition, at.epoch)

    def records(self, batch: list[Record]) -> None:
        """Take records in and start what can start."""
        if not self._stopping:
            self.lanes.offer(batch)
            self._turn()

    def revoking(self, partitions: frozenset[int], done: Callable[[], None]) -> None:
        """Drop what waits of these at once; when what runs is finished, or time is up, commit and let go."""
        self.lanes.revoke(partitions)
        leaving = (partitions, done)
        self._leaving.append(leaving)
        self._loop.call_later(REVOKE_S, self._let_go, leaving)
        self._turn()

    def lost(self, partitions: frozenset[int]) -> None:
        """They are another's already."""
        self.lanes.release(partitions)
        self._turn()

    def failed(self, error: PenstockError) -> None:
        """Temporary trouble is shown for a while; the end of the consumer is told upwards."""
        self._error = (str(error), mono_s())
        if not error.retryable:
            self._ended(error)

    # what can start

    def _turn(self) -> None:
        """Look for work at the end of this loop turn, once."""
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._turning = False
        lanes, now_ms = self.lanes, mono_s() * 1000
        if not self._stopping:
            for run in lanes.take(now_ms):
                self._dispatch(run)
        for run in lanes.take_condemned():
            burial = self._loop.create_task(self._bury_run(run))
            self._burials.add(burial)
            burial.add_done_callback(self._burials.discard)
        for leaving in [x for x in self._leaving if lanes.drained(x[0])]:
            self._let_go(leaving)
        self._press()
        self._wake_at(lanes.next_due_ms, now_ms)
        if self._commit_due is None and not self._stopping:
            self._commit_due = self._loop.call_later(COMMIT_S, self._commit_later)

    def _dispatch(self, run: Run) -> None:
        event, count = self._events.build(run.records)
        if count == 0:
            text = f"the record makes an event of more than {SYNC_EVENT_BYTES} bytes"
            error = json.dumps({"errorCode": 406, "errorMessage": text, "statusCode": 406}).encode()
            self.lanes.trim(run, 1)
            self.lanes.reject(run, RunStatus.EVENT_TOO_LARGE, error)
            self._turn()
            return
        if count < len(run.records):
            self.lanes.trim(run, count)
        self._submit(
            self.key.function,
            self.record.qualifier,
            event,
            flow=self._flows[run.partition],
            attempt=run.attempt,
            flags=0,
            done=partial(self._done, run),
        )

    def _done(self, run: Run, result: Result) -> None:
        status = result.status
        self.lanes.finish(run, status, mono_s() * 1000, b"" if status == 200 else result.body)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._work)

    async def _bury_run(self, run: Run) -> None:
        trouble = run.trouble
        assert trouble is not None
        try:
            await self._bury(
                DeadLetter(self.record, run.records[0], trouble.status, trouble.error, max(1, run.attempt))
            )
        except PenstockError as exc:
            self._error = (f"dead-letter topic unavailable: {exc}", mono_s())
            self.lanes.unburied(run, mono_s() * 1000)
        except asyncio.CancelledError:
            self.lanes.unburied(run, mono_s() * 1000)
            raise
        else:
            self.lanes.buried(run)
        self._turn()

    def _press(self) -> None:
        """Back-pressure, with marks far apart so that it does not flutter."""
        lanes = self.lanes
        if not self._held and (lanes.held >= self._high or lanes.held_bytes >= BUFFERED_BYTES):
            self._held = True
            self._source.hold()
        elif self._held and lanes.held <= self._high // 2 and lanes.held_bytes <= BUFFERED_BYTES // 2:
            self._held = False
            self._source.release()

    def _wake_at(self, due_ms: float | None, now_ms: float) -> None:
        if self._timer is not None:
            if due_ms is not None and self._timer_ms <= due_ms:
                return
            self._timer.cancel()
            self._timer = None
        if due_ms is not None:
            self._timer_ms = due_ms
            self._timer = self._loop.call_later(max(0.0, due_ms - now_ms) / 1000, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._turn()

    # what is finished

    def _commit_later(self) -> None:
        self._commit_due = None
        self._commit()

    def _commit(self) -> None:
        found = {
            partition: Mark(epoch, offset, marks.encode(epoch, offset, runs)[0])
            for partition, epoch, offset, runs in self.lanes.marks()
        }
        if found:
            self._source.commit(found)

    def _let_go(self, leaving: tuple[frozenset[int], Callable[[], None]]) -> None:
        if leaving in self._leaving:
            self._leaving.remove(leaving)
            self._commit()
            self.lanes.release(leaving[0])
            leaving[1]()

    # what to say of it

    @property
    def state(self) -> str:
        """`running`, or `stopping`."""
        return "stopping" if self._stopping else "running"

    def status(self) -> tuple[LanePartition, ...]:
        """Each owned partition, and why it does not move."""
        trouble: dict[int, list[Run]] = {}
        for run in self.lanes.troubled:
            trouble.setdefault(run.partition, []).append(run)
        return tuple(self._partition(o, trouble.get(o.partition, [])) for o in self.lanes.owned.values())

    def _partition(self, owner: Owned, troubled: list[Run]) -> LanePartition:
        return LanePartition(
            partition=owner.partition,
            epoch=owner.epoch,
            next_offset=owner.tracker.next_offset,
            in_flight=owner.out,
            queued=sum(len(lane.queue) for lane in owner.lanes.values()),
            retrying=len(troubled),
            parked=0,
            why=self._why(troubled),
        )

    def _why(self, troubled: list[Run]) -> str:
        text, at_s = self._error
        if text and mono_s() - at_s < ERROR_SHOWN_S:
            return text if text.startswith("dead-letter") else f"broker: {text}"
        if not troubled:
            return ""
        run = min(troubled, key=lambda r: r.records[0].offset)
        assert run.trouble is not None
        status = run.trouble.status
        if status in WAITING_FOR:
            return WAITING_FOR[status]
        tries = self.lanes.policy.tries
        name = _NAMES.get(status, str(status))
        return f"poison record at offset {run.records[0].offset}, attempt {run.attempt} of {tries}: {name}"
