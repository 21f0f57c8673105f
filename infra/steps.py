"""The idempotent step loop of a sub-resource module: one step record in, one result record out, then the commit.

At least once: a step may be delivered again after a crash or rebalance. `handle` must therefore be idempotent by the step's key and
operation; within one process the last 1,000 results are remembered by `step_id`, and such a step is answered without running again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from infra.clock import unix_ms
from infra.kafka.clients import Cluster
from infra.kafka.commits import Mark
from infra.kafka.consumer import Assigned, GroupConsumer, Record
from infra.kafka.producer import Producer
from schemas import avro
from schemas.errors import BrokerUnavailable, PenstockError, WireError
from schemas.records import StatusReason, StepCommand, StepResult
from schemas.topics import STEP_RESULTS

_LOG = logging.getLogger("infra.steps")
_REMEMBERED = 1_000
_QUEUED = 1_000
Reasons = tuple[StatusReason, ...]


class StepLoop:
    """Consumes one module's step topic, one step after another.

    `handle` returns the reasons why the step failed, none when it succeeded. A retryable PenstockError is tried again with back-off
    (0.1 s × 2 ≤ 5 s) as long as it takes: the saga waits and says so; any other exception fails the step as InternalError.
    """

    def __init__(
        self,
        cluster: Cluster,
        producer: Producer,
        *,
        module: str,
        topic: str,
        instance_id: str,
        handle: Callable[[StepCommand], Awaitable[Reasons]],
    ) -> None:
        self._producer, self._module, self._handle = producer, module, handle
        self._results: OrderedDict[str, Reasons] = OrderedDict()
        self._queue: asyncio.Queue[tuple[int, Record]] = asyncio.Queue()
        self._epochs: dict[int, int] = {}
        self._held = False
        self._consumer = GroupConsumer(
            cluster,
            topic=topic,
            group_id=f"penstock.steps.{module}",
            instance_id=instance_id,
            events=self,
            loop=asyncio.get_running_loop(),
            parse_epoch=lambda metadata: int(metadata) if metadata.isdigit() else 0,
        )

    async def run(self) -> None:
        """Work until cancelled; the step under way is then left uncommitted and comes again."""
        self._consumer.start()
        try:
            while True:
                epoch, record = await self._queue.get()
                if self._held and self._queue.qsize() < _QUEUED // 2:
                    self._held = False
                    self._consumer.release()
                if self._epochs.get(record.partition) == epoch:
                    await self._step(epoch, record)
        finally:
            await self._consumer.close()

    async def _step(self, epoch: int, record: Record) -> None:
        try:
            step = avro.decode(StepCommand, record.value or b"")
        except WireError as exc:
            _LOG.warning("step record %d@%d skipped: %s", record.partition, record.offset, exc)
        else:
            reasons = self._results.get(step.step_id)
            if reasons is None:
                reasons = await self._attempt(step)
                self._results[step.step_id] = reasons
                while len(self._results) > _REMEMBERED:
                    self._results.popitem(last=False)
            await self._answer(step, reasons)
        self._consumer.commit({record.partition: Mark(epoch, record.offset + 1, str(epoch))})

    async def _attempt(self, step: StepCommand) -> Reasons:
        pause_s = 0.1
        while True:
            try:
                return await self._handle(step)
            except PenstockError as exc:
                if not exc.retryable:
                    return (StatusReason(exc.code, str(exc)),)
                _LOG.warning("step %s of %s waits: %s", step.operation, step.key, exc)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 5.0)
            except Exception:  # noqa: BLE001 - one broken step must not end its module
                _LOG.exception("step %s of %s failed", step.operation, step.key)
                return (StatusReason("InternalError", f"the {self._module} module failed on this step"),)

    async def _answer(self, step: StepCommand, reasons: Reasons) -> None:
        result = StepResult(step.step_id, step.saga_id, self._module, step.key, unix_ms(), reasons)
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

    def failed(self, error: PenstockError) -> None:
        """Trouble with the broker: the consumer goes on by itself, or has ended."""
        _LOG.warning("steps of %s: %s", self._module, error)
