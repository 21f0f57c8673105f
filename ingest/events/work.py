"""All that one gateway does with asynchronous events: three topics read, one runner, and word of those that are to be ended.

Events of a function with very many go from the new ones to the topic of the crowded, so that no other function's events wait behind them; what
failed waits in the topic of those for later, which is in the order of their times because all pauses are equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from infra.kafka.clients import Cluster
from infra.kafka.consumer import ConsumerEvents, GroupConsumer
from infra.metrics import EVENTS, EVENTS_HELD, MetricRegistry
from ingest.api.ports import Invoker, View
from ingest.events.decide import Fate
from ingest.events.reader import Reader
from ingest.events.runner import Outlet, Runner
from ingest.lanes import marks
from ingest.lanes.engine import Source
from router.counts import Counts
from schemas.events import Termination
from schemas.ids import FunctionKey
from schemas.records import EventPolicy, FunctionRecord
from schemas.topics import EVENTS_CROWDED, EVENTS_LATER, EVENTS_NEW

SHOW_S: Final = 1.0
OpenTopic = Callable[[str, ConsumerEvents], Source]


def kafka_topics(cluster: Cluster, slot: str) -> OpenTopic:
    """Consumers of the event topics, each a static member `slot` of its topic's group."""

    def open_topic(topic: str, events: ConsumerEvents) -> Source:
        return GroupConsumer(
            cluster,
            topic=topic,
            group_id=topic,
            instance_id=slot,
            events=events,
            loop=asyncio.get_running_loop(),
            parse_epoch=marks.parse_epoch,
        )

    return open_topic


class EventWork:
    """The events of one gateway.

    Args:
        open_topic: makes the consumer of a topic.
        invoker: the router's.
        outlet: where ends are written.
        functions: the registry's view.
        terminations: the view of wishes, by request id.
        counts: where retried and dead events are counted, by function.
        metrics: where they are counted for Prometheus.
        retry_s: pause before an event that failed runs again.
    """

    def __init__(
        self,
        open_topic: OpenTopic,
        invoker: Invoker,
        outlet: Outlet,
        *,
        functions: View[FunctionRecord],
        terminations: View[Termination],
        counts: Counts,
        metrics: MetricRegistry,
        retry_s: float,
    ) -> None:
        self._functions, self._terminations, self._counts = functions, terminations, counts
        ends = metrics.counter(EVENTS)
        self._ends = {fate: ends.labels(outcome=str(fate)) for fate in Fate}
        held = metrics.gauge(EVENTS_HELD)
        self._held = [held.labels(state=state) for state in ("running", "waiting")]
        self._runner = Runner(invoker, outlet, self._policy, self._is_terminated, counted=self._count, retry_s=retry_s)

        def reader(topic: str, *, moves_away: bool = True) -> Reader:
            return Reader(topic, lambda events: open_topic(topic, events), self._runner, moves_away=moves_away)

        crowded = reader(EVENTS_CROWDED, moves_away=False)
        self._runner.on_room(crowded.room)
        self._readers = (reader(EVENTS_NEW), reader(EVENTS_LATER), crowded)

    async def run(self) -> None:
        """Work until cancelled. Raises BrokerUnavailable when a consumer has ended."""
        self._terminations.subscribe(self._told)
        try:
            async with asyncio.TaskGroup() as tasks:
                for reader in self._readers:
                    tasks.create_task(reader.run())
                tasks.create_task(self._show())
        finally:
            await self._runner.close()

    async def _show(self) -> None:
        while True:
            for gauge, count in zip(self._held, self._runner.held, strict=True):
                gauge.set(count)
            await asyncio.sleep(SHOW_S)

    def _policy(self, key: FunctionKey) -> EventPolicy:
        record = self._functions.get(str(key))
        return EventPolicy() if record is None else record.events

    def _is_terminated(self, request_id: str) -> bool:
        return self._terminations.get(request_id) is not None

    def _told(self, request_id: str, wish: Termination | None) -> None:
        if wish is not None:
            self._runner.terminate(request_id)
            for reader in self._readers:
                reader.wake(request_id)

    def _count(self, key: FunctionKey, fate: Fate) -> None:
        self._ends[fate].inc()
        count = self._counts.of(key)
        count.retried += fate is Fate.LATER
        count.dead += fate is Fate.FAILED
        count.touched = True
