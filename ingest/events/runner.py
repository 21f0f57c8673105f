"""Runs asynchronous events, and makes known what became of each before its record is let go. No Kafka consumer here: readers bring events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol
from uuid import UUID

from infra.clock import unix_ms
from infra.telemetry import get_logger
from ingest.api.ports import Invoker
from ingest.events import decide
from ingest.events.decide import Decision, Fate
from ingest.events.queues import Item, Queues
from ingest.once import run_once
from schemas.errors import BrokerUnavailable
from schemas.events import AsyncEvent, EventState, EventStatus
from schemas.frames import Result
from schemas.ids import FunctionKey
from schemas.records import EventPolicy

_LOG = get_logger("ingest.events")
_STATES: Final = {
    Fate.FINISHED: EventState.FINISHED,
    Fate.FAILED: EventState.FAILED,
    Fate.ABORTED: EventState.ABORTED,
    Fate.LATER: EventState.RUNNING,
}
_AGAIN_FIRST_S: Final = 0.1
_AGAIN_MAX_S: Final = 2.0


class Outlet(Protocol):
    """Where what became of events is written; each returns when that is durable, and raises BrokerUnavailable when it is not."""

    async def later(self, event: AsyncEvent) -> None:
        """It runs again when its `due_unix_ms` has come."""
        ...

    async def crowded(self, event: AsyncEvent) -> None:
        """It waits behind others of its function."""
        ...

    async def dead(self, event: AsyncEvent, status: int, error: bytes) -> None:
        """It was given up."""
        ...

    async def status(self, status: EventStatus) -> None:
        """What is known of it now."""
        ...


class Runner:
    """All events of one gateway that are in hand.

    Args:
        invoker: where runs go (Dispatcher).
        outlet: where its ends are written.
        policy: of a function, as of now.
        is_terminated: whether somebody asked for the end of a request.
        counted: told of each step of an event, by its fate.
        retry_s: pause before an event that failed runs again.
    """

    def __init__(
        self,
        invoker: Invoker,
        outlet: Outlet,
        policy: Callable[[FunctionKey], EventPolicy],
        is_terminated: Callable[[str], bool],
        *,
        counted: Callable[[FunctionKey, Fate], None],
        retry_s: float,
    ) -> None:
        self._invoker, self._outlet = invoker, outlet
        self._policy, self._is_terminated, self._counted = policy, is_terminated, counted
        self._retry_ms = round(retry_s * 1000)
        self._queues = Queues()
        self._running: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._roomy: list[Callable[[FunctionKey], None]] = []
        self._closing = False

    @property
    def held(self) -> tuple[int, int]:
        """Events that run, and that wait for their turn."""
        return self._queues.running, self._queues.waiting

    def on_room(self, callback: Callable[[FunctionKey], None]) -> None:
        """Have `callback` called whenever a function's event is over."""
        self._roomy.append(callback)

    def is_crowded(self, key: FunctionKey) -> bool:
        """True when the function has as many events here as may be."""
        return self._queues.is_crowded(key)

    def offer(self, item: Item) -> None:
        """Run it when its turn comes; not for a function that is crowded."""
        self._queues.put(item)
        self._start()

    def move_away(self, item: Item) -> None:
        """Have it wait in the topic of the crowded."""
        item.started = True
        self._spawn(self._move(item))

    def terminate(self, request_id: str) -> None:
        """Somebody asked for its end: what runs is cancelled, what rests a moment goes on at once and finds out."""
        if (resting := self._running.get(request_id)) is not None:
            resting.set()
            self._invoker.cancel(UUID(request_id).bytes)

    async def close(self) -> None:
        """Leave everything as it is; what is not over comes again."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self) -> None:
        for item in [] if self._closing else self._queues.take():
            self._spawn(self._work(item))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # `close` ends them
        task.add_done_callback(self._tasks.discard)

    async def _move(self, item: Item) -> None:
        await self._surely(lambda: self._outlet.crowded(item.event))
        item.finished()

    async def _work(self, item: Item) -> None:
        self._running[item.event.request_id] = asyncio.Event()
        try:
            decision, result = await self._run(item)
            if decision.fate is not Fate.SOON:
                await self._make_known(decision, result)
                item.finished()
        finally:
            self._running.pop(item.event.request_id, None)
            self._queues.done(item)
            self._start()
            for roomy in self._roomy:
                roomy(item.event.key)

    async def _run(self, item: Item) -> tuple[Decision, Result | None]:
        """The event's runs here, till it goes on elsewhere; SOON when it was dropped between two of them."""
        event, quick = item.event, 0
        while True:
            gone = self._is_terminated(event.request_id)
            decision = decide.before(event, self._policy(event.key), unix_ms(), is_terminated=gone)
            if decision is not None:
                return decision, None
            result = await run_once(
                self._invoker,
                event.key,
                event.version,
                event.event,
                request_id=UUID(event.request_id),
                attempt=event.failures + 1,
                waits=True,
            )
            decision = decide.after(
                event,
                result.status,
                self._policy(event.key),
                unix_ms(),
                is_terminated=self._is_terminated(event.request_id),
                quick=quick,
                retry_ms=self._retry_ms,
            )
            if decision.fate is not Fate.SOON or item.dropped:
                return decision, result
            quick += 1
            await self._rest(event.request_id, decision.delay_ms / 1000)

    async def _rest(self, request_id: str, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._running[request_id].wait()
        except TimeoutError:
            return

    async def _make_known(self, decision: Decision, result: Result | None) -> None:
        event, fate = decision.event, decision.fate
        status = 0 if result is None else result.status
        if fate is Fate.LATER:
            await self._surely(lambda: self._outlet.later(event))
        elif fate is Fate.FAILED:
            error = b"" if result is None else result.body
            await self._surely(lambda: self._outlet.dead(event, status, error))
        known = status_of(event, _STATES[fate], unix_ms(), status_code=status)
        await self._surely(lambda: self._outlet.status(known))
        self._counted(event.key, fate)

    async def _surely(self, write: Callable[[], Awaitable[None]]) -> None:
        pause_s = _AGAIN_FIRST_S
        while True:
            try:
                await write()
                return
            except BrokerUnavailable as exc:
                _LOG.warning("an event's fate is not written yet", error=str(exc))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _AGAIN_MAX_S)


def status_of(event: AsyncEvent, state: EventState, now_ms: int, *, status_code: int = 0) -> EventStatus:
    """The record of an event's state."""
    return EventStatus(
        event.request_id,
        str(event.key),
        event.qualifier,
        state,
        event.accepted_unix_ms,
        now_ms,
        status_code,
        0 if state is EventState.RUNNING else now_ms,
        event.failures + event.deferrals,
    )
