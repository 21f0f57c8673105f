"""The thin edge around the lanes of one trigger: records in from the consumer's thread, runs out to the dispatcher, marks to the broker.

Everything runs on the event loop, by callbacks, with no task per record. Results that arrive in one turn of the loop are answered by one look
for what can start next. When too much is buffered the consumer is told to hand over no more; nothing is ever dropped. Marks go to the
consumer at most each 50 ms, and at once when partitions leave. A record's offset passes a dead letter only when that was acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Protocol

from infra.clock import unix_ms
from infra.kafka.commits import Mark
from infra.kafka.consumer import Assigned, ConsumerEvents, Record
from infra.telemetry import get_logger
from ingest.deadletter import DeadLetter
from ingest.lanes import marks
from ingest.lanes.event import CkafkaEvents
from ingest.lanes.explain import Around, partition_states
from ingest.lanes.lanes import LaneSet
from ingest.lanes.policy import LanePolicy, Ordering
from ingest.lanes.run import Run
from ingest.lanes.versions import Division, one_version
from schemas.errors import PenstockError, PlatformError
from schemas.frames import Flow, Result
from schemas.ids import FunctionKey, TriggerKey
from schemas.limits import SYNC_EVENT_BYTES
from schemas.records import LanePartition, TriggerRecord
from schemas.runerror import error_body
from schemas.runstatus import RunStatus

_LOG = get_logger("ingest.lanes")
COMMIT_S: Final = 0.05
REVOKE_S: Final = 1.8
"""A little less than the consumer's thread waits, so that the last commit still goes with it."""
CLOSE_S: Final = 2.0
BUFFERED_RECORDS: Final = 512
BUFFERED_BYTES: Final = 16 * 1024 * 1024
BURIALS_AT_ONCE: Final = 64
ERROR_SHOWN_S: Final = 10.0
_OK: Final = int(RunStatus.OK)


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

    def start(self) -> None:
        """Join the group."""
        ...

    def commit(self, marks: Mapping[int, Mark]) -> None:
        """Commit soon."""
        ...

    def hold(self) -> None:
        """Hand over no more records."""
        ...

    def release(self) -> None:
        """Hand over records again."""
        ...

    async def close(self, timeout_s: float = 5.0) -> None:
        """Commit what is marked, end."""
        ...


Bury = Callable[[DeadLetter], Awaitable[None]]
"""ingest.deadletter.DeadLetterSink.put: returns when the letter is acknowledged; raises a PenstockError when it is not."""


class LaneEngine:
    """One trigger at work.

    Args:
        record: the trigger; its `kafka` is set.
        submit: where runs go.
        bury: where dead letters go.
        source: makes the consumer, given who is told.
        jitter: uniform in [0, 1).
        division: how records divide between versions, for a trigger that names an alias.
        ended: told once when the engine can't go on, with the error; whoever made it then closes it.
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
        division: Division | None = None,
    ) -> None:
        assert record.kafka is not None
        kafka = record.kafka
        self.record = record
        self.key = TriggerKey(FunctionKey(record.appid, record.namespace, record.function), record.name)
        self.lanes = LaneSet(
            LanePolicy(Ordering(kafka.ordering), kafka.concurrency, kafka.batch, kafka.retries), jitter
        )
        self.joined = asyncio.Event()
        """Set by the first word of the consumer, good or bad."""
        self._submit, self._bury, self._ended = submit, bury, ended
        self._function, self._qualifier, self._division = self.key.function, record.qualifier, division
        self._events = CkafkaEvents(kafka.topic)
        self._source = source(self)
        self._loop = asyncio.get_running_loop()
        self._high = max(BUFFERED_RECORDS, 2 * kafka.concurrency * kafka.batch)
        self._flows: dict[int, Flow] = {}
        self._held = self._stopping = self._turning = self._over = False
        self._leaving: list[tuple[frozenset[int], Callable[[], None]]] = []
        self._burials: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._commit_due: asyncio.TimerHandle | None = None
        self._broker_error: tuple[str, float] = ("", 0.0)
        self._dead_letter_error = ""

    def start(self) -> None:
        """Join the group."""
        self._source.start()

    async def close(self) -> None:
        """Start nothing more, let what runs finish for at most 2 s, commit, end. What was queued is the next owner's."""
        self._stopping = True
        if self._retry is not None:
            self._retry.cancel()
        partitions = frozenset(self.lanes.owned)
        self.lanes.revoke(partitions)
        drained = asyncio.Event()
        if not self._over and not self.lanes.drained(partitions):
            self._leaving.append((partitions, drained.set))
            try:
                async with asyncio.timeout(CLOSE_S):
                    await drained.wait()
            except TimeoutError:
                _LOG.warning("stopped with runs out", trigger=str(self.key), runs=self.lanes.in_flight)
        self._commit()
        for burial in self._burials:
            burial.cancel()
        await asyncio.gather(*self._burials, return_exceptions=True)
        if self._commit_due is not None:
            self._commit_due.cancel()
        self._over = True  # what the consumer says from here is of no interest
        await self._source.close()

    # ---------------------------------------------------------------------------------------------------- ConsumerEvents

    def assigned(self, partitions: dict[int, Assigned]) -> None:
        """Take partitions over where their last owner left off."""
        self.joined.set()
        if self._stopping:
            return
        for partition, at in partitions.items():
            finished = marks.decode(at.offset, at.metadata).finished
            self.lanes.assign(partition, at.epoch, at.offset, finished)
            self._flows[partition] = Flow(str(self.key), partition, at.epoch)
            _LOG.info(
                "partition assigned", trigger=str(self.key), partition=partition, epoch=at.epoch, offset=at.offset
            )

    def records(self, batch: list[Record]) -> None:
        """Take records in and start what can start."""
        if self._stopping:
            return
        self._broker_error = ("", 0.0)
        try:
            self.lanes.offer(batch)
        except Exception as exc:  # noqa: BLE001 - a fault of ours must not leave a trigger half dead
            self._broke(exc)
        self._press()
        if not self._turning:  # else results of this turn are looked at with these
            self._work()

    def revoking(self, partitions: frozenset[int], done: Callable[[], None]) -> None:
        """Drop what waits of these at once; when what runs is finished, or time is up, commit and let go."""
        self.lanes.revoke(partitions)
        leaving = (partitions, done)
        self._leaving.append(leaving)
        self._loop.call_later(REVOKE_S, self._let_go, leaving)
        self._turn()

    def lost(self, partitions: frozenset[int]) -> None:
        """They are another's already."""
        _LOG.warning("partitions lost", trigger=str(self.key), partitions=sorted(partitions))
        self.lanes.release(partitions)
        self._turn()

    def failed(self, error: PenstockError) -> None:
        """Passing trouble is shown for a while; the end of the consumer is told upwards."""
        self.joined.set()
        self._broker_error = (str(error), self._loop.time())
        if not error.retryable:
            self._end(error)

    # -------------------------------------------------------------------------------------------------- what can start

    def _turn(self) -> None:
        """Look for work at the end of this turn of the loop, once."""
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._turning = False
        try:
            self._start_runs()
        except Exception as exc:  # noqa: BLE001 - see `records`
            self._broke(exc)
        for leaving in [x for x in self._leaving if self.lanes.drained(x[0])]:
            self._let_go(leaving)
        if self._commit_due is None and not self._stopping:
            self._commit_due = self._loop.call_later(COMMIT_S, self._commit_later)

    def _start_runs(self) -> None:
        if self._stopping or self._over:
            return
        lanes = self.lanes
        now_ms = self._loop.time() * 1000
        for run in lanes.take(now_ms):
            self._dispatch(run)
        for run in lanes.take_condemned(BURIALS_AT_ONCE - len(self._burials)):
            self._burials.add(self._loop.create_task(self._bury_run(run)))  # `close` ends them
        self._press()
        due_ms = lanes.next_due_ms
        if due_ms is not None:
            self._wake_at(due_ms, now_ms)

    def _press(self) -> None:
        """Back-pressure, with marks far apart so that it does not flutter."""
        lanes = self.lanes
        if not self._held:
            if lanes.held >= self._high or lanes.held_bytes >= BUFFERED_BYTES:
                self._held = True
                self._source.hold()
        elif lanes.held <= self._high // 2 and lanes.held_bytes <= BUFFERED_BYTES // 2:
            self._held = False
            self._source.release()

    def _dispatch(self, run: Run) -> None:
        qualifier = self._qualifier
        if self._division is not None and (split := self._division()) is not None:
            qualifier, run.records, count = one_version(split, run.records, ordered=run.lane.ordered)
            if count < len(run.records):
                self.lanes.trim(run, count)
                self._turn()
        event, count = self._events.build(run.records)
        if count < len(run.records):
            self.lanes.trim(run, max(1, count))
            self._turn()
        if count == 0:
            said = f"the record makes an event of more than {SYNC_EVENT_BYTES} bytes"
            self.lanes.reject(run, RunStatus.EVENT_TOO_LARGE, error_body(RunStatus.EVENT_TOO_LARGE, said, bytes(16)))
            self._turn()
            return
        self._submit(
            self._function,
            qualifier,
            event,
            flow=self._flows[run.lane.owner.partition],
            attempt=run.attempt,
            flags=0,
            done=partial(self._done, run),
        )

    def _done(self, run: Run, result: Result) -> None:
        status = result.status
        try:
            self.lanes.finish(run, status, self._loop.time() * 1000, b"" if status == _OK else result.body)
        except Exception as exc:  # noqa: BLE001 - see `records`
            self._broke(exc)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._work)

    async def _bury_run(self, run: Run) -> None:
        assert run.trouble is not None
        trouble = run.trouble
        letter = DeadLetter(self.record, run.records[0], trouble.status, trouble.error, trouble.failures, unix_ms())
        is_safe = False
        try:
            await self._bury(letter)
            is_safe, self._dead_letter_error = True, ""
        except PenstockError as exc:
            self._dead_letter_error = str(exc)
            _LOG.warning("dead letter not written", trigger=str(self.key), offset=letter.record.offset, error=str(exc))
        except Exception as exc:  # noqa: BLE001 - see `records`
            self._broke(exc)
        finally:
            if is_safe:
                self.lanes.buried(run)
            else:
                self.lanes.unburied(run, self._loop.time() * 1000)
            self._burials.discard(asyncio.current_task())
            self._turn()

    def _wake_at(self, due_ms: float, now_ms: float) -> None:
        at_s = self._loop.time() + max(0.0, due_ms - now_ms) / 1000
        if self._retry is not None:
            if self._retry.when() <= at_s:
                return
            self._retry.cancel()
        self._retry = self._loop.call_at(at_s, self._woken)

    def _woken(self) -> None:
        self._retry = None
        self._turn()

    # ------------------------------------------------------------------------------------------------ what is finished

    def _commit_later(self) -> None:
        self._commit_due = None
        self._commit()

    def _commit(self) -> None:
        found = {
            partition: Mark(epoch, offset, marks.encode(epoch, offset, finished)[0])
            for partition, epoch, offset, finished in self.lanes.marks()
        }
        if found:
            self._source.commit(found)

    def _let_go(self, leaving: tuple[frozenset[int], Callable[[], None]]) -> None:
        if leaving in self._leaving:
            self._leaving.remove(leaving)
            self._commit()
            self.lanes.release(leaving[0])
            leaving[1]()

    # --------------------------------------------------------------------------------------------------- what is wrong

    def _broke(self, exc: Exception) -> None:
        _LOG.error("lanes broke; the trigger starts again", trigger=str(self.key), exc_info=exc)
        error = PlatformError(f"the lanes broke: {exc!r}")
        error.__cause__ = exc
        self._end(error)

    def _end(self, error: PenstockError) -> None:
        if not self._over:
            self._over = True
            self._ended(error)

    def status(self) -> tuple[LanePartition, ...]:
        """Each owned partition: where it stands, and why it does not move."""
        text, at_s = self._broker_error
        recent = text if text and self._loop.time() - at_s < ERROR_SHOWN_S else ""
        return partition_states(self.lanes, Around(recent, self._dead_letter_error, self._held))
