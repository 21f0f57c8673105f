"""A gateway's asynchronous events, with consumers, dispatcher and topics in memory and virtual time (ingest.events.work)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid5

import pytest

from infra.kafka.consumer import ConsumerEvents, Record
from infra.metrics import MetricRegistry
from ingest.events import reader as reader_module
from ingest.events import runner as runner_module
from ingest.events.queues import AT_ONCE_OF_FUNCTION, WAITING_OF_FUNCTION
from ingest.events.work import EventWork
from router.counts import Counts
from schemas import avro
from schemas.errors import BrokerUnavailable, ConfigError
from schemas.events import AsyncEvent, EventState, EventStatus, Termination
from schemas.frames import Flow, Result
from schemas.ids import FunctionKey
from schemas.records import EventPolicy, FunctionRecord
from schemas.runstatus import RunStatus
from schemas.topics import EVENTS_CROWDED, EVENTS_LATER, EVENTS_NEW
from tests.api_fakes import FakeView
from tests.lane_fakes import FakeSource, result

pytestmark = pytest.mark.looptime(start=1_000)
EVENT = AsyncEvent("", "1", "2", "default", "f", "$LATEST", "$LATEST", b"{}", 1_000_000)
ALL = AT_ONCE_OF_FUNCTION + WAITING_OF_FUNCTION


def event(name: str, function: str = "f", **more: Any) -> AsyncEvent:
    return replace(EVENT, request_id=str(uuid5(UUID(int=0), name)), function=function, **more)


class Runs:
    """A dispatcher that keeps runs until they are ended here."""

    def __init__(self) -> None:
        self.out: dict[str, Callable[[Result], None]] = {}
        self.attempts: list[int] = []
        self.most: dict[str, int] = {}

    def submit(
        self,
        function: FunctionKey,
        qualifier: str,
        event: bytes,
        *,
        flow: Flow | None,
        attempt: int,
        flags: int,
        done: Callable[[Result], None],
        request_id: bytes | None = None,
        waits: bool = False,
    ) -> None:
        assert request_id is not None
        assert waits
        assert flow is None
        self.out[str(UUID(bytes=request_id))] = done
        self.attempts.append(attempt)

    def cancel(self, request_id: bytes) -> bool:
        done = self.out.pop(str(UUID(bytes=request_id)), None)
        if done is not None:
            done(result(RunStatus.CANCELLED))
        return done is not None

    async def end(self, request_id: str, status: RunStatus = RunStatus.OK) -> None:
        self.out.pop(request_id)(result(status))
        await turns()


class Topics:
    """Where ends are written."""

    def __init__(self) -> None:
        self.broken = False
        self.waiting: list[AsyncEvent] = []
        self.crowds: list[AsyncEvent] = []
        self.letters: list[tuple[AsyncEvent, int, bytes]] = []
        self.states: list[EventStatus] = []

    def _check(self) -> None:
        if self.broken:
            raise BrokerUnavailable("away")

    async def later(self, event: AsyncEvent) -> None:
        self._check()
        self.waiting.append(event)

    async def crowded(self, event: AsyncEvent) -> None:
        self._check()
        self.crowds.append(event)

    async def dead(self, event: AsyncEvent, status: int, error: bytes) -> None:
        self._check()
        self.letters.append((event, status, error))

    async def status(self, status: EventStatus) -> None:
        self._check()
        self.states.append(status)


class Rig:
    """The work and its fakes. `give` hands over an event as a record of a topic."""

    def __init__(self) -> None:
        self.sources: dict[str, FakeSource] = {}
        self.runs, self.topics = Runs(), Topics()
        self.functions: FakeView[FunctionRecord] = FakeView()
        self.terminations: FakeView[Termination] = FakeView()
        self.counts = Counts()
        self.ends: dict[str, int] = {}
        self.work = EventWork(
            self._open,
            self.runs,
            self.topics,
            functions=self.functions,
            terminations=self.terminations,
            counts=self.counts,
            metrics=MetricRegistry(),
            retry_s=60.0,
        )

    def _open(self, topic: str, events: ConsumerEvents) -> FakeSource:
        self.sources[topic] = FakeSource(events)
        self.ends[topic] = 0
        return self.sources[topic]

    async def give(self, *events: AsyncEvent, topic: str = EVENTS_NEW) -> None:
        first = self.ends[topic]
        batch = [Record(0, first + n, None, avro.encode(e), (), 0) for n, e in enumerate(events)]
        self.ends[topic] += len(events)
        self.sources[topic].hand_over(batch)
        await turns()

    def state(self, of: AsyncEvent) -> tuple[str, int, int]:
        found = [s for s in self.topics.states if s.request_id == of.request_id][-1]
        return found.state, found.status_code, found.runs

    async def committed(self, topic: str = EVENTS_NEW) -> int:
        await asyncio.sleep(0.1)
        mark = self.sources[topic].committed.get(0)
        return -1 if mark is None else mark.offset


async def turns() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    loop = asyncio.get_running_loop()
    for module in (reader_module, runner_module):
        monkeypatch.setattr(module, "unix_ms", lambda: int(loop.time() * 1000))
    rig = Rig()
    running = asyncio.ensure_future(rig.work.run())
    await turns()
    for source in rig.sources.values():
        source.assign(0)
    yield rig
    running.cancel()
    await asyncio.wait([running])
    assert all(source.closed for source in rig.sources.values())


async def test_an_event_runs_by_its_version_and_its_offset_goes_when_its_end_is_written(rig: Rig) -> None:
    a, b = event("a"), event("b")
    await rig.give(a, b)
    await rig.runs.end(b.request_id)
    assert rig.state(b) == ("FINISHED", 200, 0)
    assert await rig.committed() == 0
    rig.topics.broken = True
    await rig.runs.end(a.request_id)
    assert await rig.committed() == 0
    rig.topics.broken = False
    await asyncio.sleep(3)
    assert rig.state(a)[0] == EventState.FINISHED
    assert await rig.committed() == 2


async def test_a_failed_event_waits_its_minute_in_the_topic_for_later_and_then_dies_whole(rig: Rig) -> None:
    a = event("a", event=b'{"n": 1}')
    await rig.give(a)
    for n in (1, 2):
        await rig.runs.end(a.request_id, RunStatus.USER_EXCEPTION)
        (waiting,) = rig.topics.waiting[n - 1 :]
        assert (waiting.failures, rig.state(a)) == (n, ("RUNNING", 430, n))
        await rig.give(waiting, topic=EVENTS_LATER)
        await asyncio.sleep(59)
        assert not rig.runs.out
        await asyncio.sleep(1.1)
        assert list(rig.runs.out) == [a.request_id]
    await rig.runs.end(a.request_id, RunStatus.TIMEOUT)
    ((dead, status, error),) = rig.topics.letters
    assert (dead.event, dead.failures, status, bool(error)) == (b'{"n": 1}', 3, 433, True)
    assert rig.state(a) == ("FAILED", 433, 3)
    assert rig.runs.attempts == [1, 2, 3]
    assert (await rig.committed(), await rig.committed(EVENTS_LATER)) == (1, 2)


async def test_a_platform_failure_is_tried_again_at_once_and_then_by_the_minute(rig: Rig) -> None:
    a = event("a")
    await rig.give(a)
    for _ in range(6):
        assert list(rig.runs.out) == [a.request_id]
        await rig.runs.end(a.request_id, RunStatus.NO_RESOURCES)
        await asyncio.sleep(0.9)
    assert rig.runs.attempts == [1] * 6
    assert (rig.topics.waiting[0].failures, rig.topics.waiting[0].deferrals) == (0, 1)


async def test_a_functions_policy_decides(rig: Rig) -> None:
    a = event("a")
    record = FunctionRecord(1, "1", "2", "default", "f", "lam-1", "Active", "", 0, 0, 0, "c", events=EventPolicy(0, 60))
    rig.functions.put("1/default/f", record)
    await rig.give(a)
    await rig.runs.end(a.request_id, RunStatus.USER_EXCEPTION)
    assert rig.state(a) == ("FAILED", 430, 1)
    old = event("old", accepted_unix_ms=int(asyncio.get_running_loop().time() * 1000) - 60_001)
    await rig.give(old)
    assert rig.state(old) == ("FAILED", 0, 0)
    assert [letter[0].request_id for letter in rig.topics.letters] == [a.request_id, old.request_id]


async def test_a_slow_function_with_very_many_events_keeps_no_other_waiting(rig: Rig) -> None:
    slow = [event(f"s{n}", "slow") for n in range(3 * ALL)]
    await rig.give(*slow)
    assert len(rig.runs.out) == AT_ONCE_OF_FUNCTION
    assert len(rig.topics.crowds) == 2 * ALL
    fast = event("fast", "fast")
    await rig.give(fast)
    assert fast.request_id in rig.runs.out
    assert await rig.committed() == 0  # the first is still out; what left for the crowd is known beyond it
    assert not rig.sources[EVENTS_NEW].held


async def test_the_crowd_goes_on_as_room_comes_and_all_of_it_runs_once(rig: Rig) -> None:
    slow = [event(f"s{n}", "slow") for n in range(3 * ALL)]
    await rig.give(*slow)
    await rig.give(*rig.topics.crowds, topic=EVENTS_CROWDED)
    ran: list[str] = []
    while rig.runs.out:
        assert len(rig.runs.out) <= AT_ONCE_OF_FUNCTION
        request_id = next(iter(rig.runs.out))
        ran.append(request_id)
        await rig.runs.end(request_id)
    assert sorted(ran) == sorted(e.request_id for e in slow)
    assert (await rig.committed(), await rig.committed(EVENTS_CROWDED)) == (3 * ALL, 2 * ALL)


async def test_a_termination_ends_a_run_a_rest_a_wait_and_what_has_not_begun(rig: Rig) -> None:
    a, resting, later, queued = event("a"), event("resting"), event("later", due_unix_ms=9_000_000), event("q")
    await rig.give(a, resting)
    await rig.give(later, topic=EVENTS_LATER)
    await rig.runs.end(resting.request_id, RunStatus.NO_RESOURCES)
    rig.terminations.put(queued.request_id, Termination(queued.request_id, "1/default/f", "2", 0))
    await rig.give(queued)
    for one in (a, resting, later):
        rig.terminations.put(one.request_id, Termination(one.request_id, "1/default/f", "2", 0))
        await turns()
    assert [rig.state(one)[0] for one in (a, resting, later, queued)] == ["ABORTED"] * 4
    assert not rig.runs.out
    assert not rig.topics.letters
    assert await rig.committed() == 3


async def test_partitions_that_leave_take_what_waits_with_them_and_what_runs_is_waited_for(rig: Rig) -> None:
    events = [event(f"e{n}", "slow") for n in range(AT_ONCE_OF_FUNCTION + 5)]
    await rig.give(*events)
    left = asyncio.Event()
    source = rig.sources[EVENTS_NEW]
    source.events.revoking(frozenset([0]), left.set)
    await asyncio.sleep(0.5)
    assert not left.is_set()
    for request_id in list(rig.runs.out):
        await rig.runs.end(request_id)
    await asyncio.sleep(0.1)
    assert left.is_set()
    assert not rig.runs.out  # what waited was not begun
    assert source.committed[0].offset == AT_ONCE_OF_FUNCTION


async def test_a_run_that_outlasts_its_partition_is_not_committed(rig: Rig) -> None:
    a = event("a")
    await rig.give(a)
    left = asyncio.Event()
    rig.sources[EVENTS_NEW].events.revoking(frozenset([0]), left.set)
    await asyncio.sleep(2.0)
    assert left.is_set()
    await rig.runs.end(a.request_id)
    assert rig.state(a)[0] == "FINISHED"
    assert await rig.committed() == -1


async def test_what_an_earlier_owner_finished_is_not_run_again(rig: Rig) -> None:
    rig.sources[EVENTS_NEW].assign(0, epoch=2, offset=0, finished=[(1, 3)])
    events = [event(f"e{n}") for n in range(4)]
    await rig.give(*events)
    assert list(rig.runs.out) == [events[0].request_id, events[3].request_id]


async def test_a_record_that_is_no_event_is_passed_over(rig: Rig) -> None:
    rig.sources[EVENTS_NEW].hand_over([Record(0, 0, None, b"what", (), 0)])
    rig.ends[EVENTS_NEW] = 1
    a = event("a")
    await rig.give(a)
    await rig.runs.end(a.request_id)
    assert await rig.committed() == 2


async def test_much_in_hand_holds_the_consumer_and_less_lets_it_go_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "HELD", 4)
    events = [event(f"e{n}") for n in range(4)]
    await rig.give(*events)
    source = rig.sources[EVENTS_NEW]
    assert source.held
    for one in events[:2]:
        await rig.runs.end(one.request_id)
    assert not source.held


async def test_the_end_of_a_consumer_ends_the_work() -> None:
    rig = Rig()
    running = asyncio.ensure_future(rig.work.run())
    await turns()
    rig.sources[EVENTS_LATER].events.failed(BrokerUnavailable("a while"))
    await turns()
    assert not running.done()
    rig.sources[EVENTS_LATER].events.failed(ConfigError("for good"))
    with pytest.raises(BaseExceptionGroup) as caught:
        await running
    assert caught.group_contains(BrokerUnavailable)
