"""The idempotent step loop of a sub-resource module: one step record in, one result record out, then the commit.

At least once: a step may be delivered again after a crash or rebalance. `handle` must therefore be idempotent by the step's key and
operation; within one process the last 1,000 results are remembered by `step_id`, and such a step is answered without running again. What may
succeed later is answered so at once: the workflow waits and sends the step again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from infra.clock import unix_ms
from infra.faults import fault
from infra.kafka.clients import Cluster
from infra.kafka.commits import Mark
from infra.kafka.consumer import Assigned, GroupConsumer, Record
from infra.kafka.producer import Producer
from schemas import avro
from schemas.errors import BrokerUnavailable, DependencyError, PenstockError, WireError
from schemas.records import StatusReason, StepCommand, StepResult
from schemas.topics import STEP_RESULTS, STEP_TOPICS
from schemas.tracker import CommitTracker

_LOG = logging.getLogger("infra.steps")
_REMEMBERED = 1_000
_QUEUED = 1_000
_STEP_S = 60.0
_AT_ONCE = 256
Reasons = tuple[StatusReason, ...]


class StepRetry(DependencyError):
    """The step may succeed later; `reason` is what is told if it never does."""

    def __init__(self, reason: StatusReason) -> None:
        super().__init__(reason.message)
        self.reason = reason


class _Answer(NamedTuple):
    reasons: Reasons = ()
    retryable: bool = False


class StepLoop:
    """Consumes one module's step topic: steps of one key one after another, of several keys at once, so that a slow one delays its own only.

    `handle` returns the reasons why the step failed, none when it succeeded. A retryable PenstockError, and taking longer than a minute, is
    answered as retryable; any other exception fails the step as InternalError.
    """

    def __init__(
        self,
        cluster: Cluster,
        producer: Producer,
        *,
        module: str,
        instance_id: str,
        handle: Callable[[StepCommand], Awaitable[Reasons]],
    ) -> None:
        self._producer, self._module, self._handle = producer, module, handle
        self._results: OrderedDict[str, _Answer] = OrderedDict()
        self._queue: asyncio.Queue[tuple[int, Record]] = asyncio.Queue()
        self._epochs: dict[int, int] = {}
        self._trackers: dict[int, CommitTracker] = {}
        self._newest: dict[bytes | None, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._held = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._consumer = GroupConsumer(
            cluster,
            topic=STEP_TOPICS[module],
            group_id=f"penstock.steps.{module}",
            instance_id=instance_id,
            events=self,
            loop=asyncio.get_running_loop(),
            parse_epoch=lambda metadata: int(metadata) if metadata.isdigit() else 0,
        )

    async def run(self) -> None:
        """Work until cancelled; steps under way are then left uncommitted and come again.

        Raises:
            BrokerUnavailable: the consumer has ended; a new process may do better.
        """
        self._consumer.start()
        work = asyncio.ensure_future(self._work())
        try:
            await asyncio.wait((work, self._ended), return_when=asyncio.FIRST_COMPLETED)
            self._ended.result() if self._ended.done() else work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._consumer.close()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                epoch, record = await self._queue.get()
                if self._held and self._queue.qsize() < _QUEUED // 2:
                    self._held = False
                    self._consumer.release()
                if self._epochs.get(record.partition) == epoch:
                    await self._slots.acquire()
                    self._trackers[record.partition].deliver(record.offset)
                    turn = self._in_turn(epoch, record, self._newest.get(record.key))
                    self._newest[record.key] = tasks.create_task(turn)

    async def _in_turn(self, epoch: int, record: Record, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            await self._step(record)
        finally:
            self._slots.release()
            if self._newest.get(record.key) is asyncio.current_task():
                del self._newest[record.key]
        if self._epochs.get(record.partition) == epoch:
            self._commit(epoch, record)

    def _commit(self, epoch: int, record: Record) -> None:
        """Up to the first step that is still under way."""
        tracker = self._trackers[record.partition]
        before = tracker.committable
        tracker.finish(record.offset)
        if tracker.committable > before:
            self._consumer.commit({record.partition: Mark(epoch, tracker.committable, str(epoch))})

    async def _step(self, record: Record) -> None:
        try:
            step = avro.decode(StepCommand, record.value or b"")
        except WireError as exc:
            _LOG.warning("step record %d@%d skipped: %s", record.partition, record.offset, exc)
        else:
            fault(f"step.{step.module}.{step.operation}.taken")
            answer = self._results.get(step.step_id) or await self._attempt(step)
            if not answer.retryable:
                self._results[step.step_id] = answer
                while len(self._results) > _REMEMBERED:
                    self._results.popitem(last=False)
            fault(f"step.{step.module}.{step.operation}.done")
            await self._answer(step, answer)
            fault(f"step.{step.module}.{step.operation}.answered")

    async def _attempt(self, step: StepCommand) -> _Answer:
        try:
            async with asyncio.timeout(_STEP_S):
                return _Answer(await self._handle(step))
        except TimeoutError:
            why = f"the {self._module} module was not done with {step.operation} within {_STEP_S:g} s"
            return _Answer((StatusReason("ResourceUnavailable", why),), retryable=True)
        except StepRetry as exc:
            return _Answer((exc.reason,), retryable=True)
        except PenstockError as exc:
            _LOG.warning("step %s of %s: %s", step.operation, step.key, exc)
            return _Answer((StatusReason(exc.code, str(exc)),), retryable=exc.retryable)
        except Exception:  # noqa: BLE001 - one broken step must not end its module
            _LOG.exception("step %s of %s failed", step.operation, step.key)
            return _Answer((StatusReason("InternalError", f"the {self._module} module failed on this step"),))

    async def _answer(self, step: StepCommand, answer: _Answer) -> None:
        result = StepResult(
            step.step_id,
            step.saga_id,
            self._module,
            step.key,
            unix_ms(),
            answer.reasons,
            step.attempt,
            answer.retryable,
        )
        while True:
            try:
                await self._producer.send(STEP_RESULTS, key=step.key.encode(), value=avro.encode(result))
                return
            except BrokerUnavailable as exc:
                _LOG.warning("result of %s is not out yet: %s", step.step_id, exc)
                await asyncio.sleep(0.2)

    # ConsumerEvents

    def assigned(self, partitions: dict[int, Assigned]) -> None:
        """Steps of these partitions are ours."""
        self._epochs |= {p: a.epoch for p, a in partitions.items()}
        self._trackers |= {p: CommitTracker(a.offset) for p, a in partitions.items()}

    def records(self, batch: list[Record]) -> None:
        """Queue steps; hold the consumer when many wait."""
        for record in batch:
            self._queue.put_nowait((self._epochs.get(record.partition, 0), record))
        if not self._held and self._queue.qsize() >= _QUEUED:
            self._held = True
            self._consumer.hold()

    def revoking(self, partitions: frozenset[int], done: Callable[[], None]) -> None:
        """Steps of these partitions are left to their next owner."""
        self.lost(partitions)
        done()

    def lost(self, partitions: frozenset[int]) -> None:
        """As `revoking`, with nothing to commit."""
        for partition in partitions:
            self._epochs.pop(partition, None)
            self._trackers.pop(partition, None)

    def failed(self, error: PenstockError) -> None:
        """Trouble with the broker: the consumer goes on by itself, or has ended."""
        _LOG.warning("steps of %s: %s", self._module, error)
        if not error.retryable and not self._ended.done():
            # Whatever it is, it is this process's: started again it may do better.
            self._ended.set_exception(BrokerUnavailable(f"steps of {self._module}: {error}"))
