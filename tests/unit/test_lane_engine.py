"""The engine around the lanes, with a consumer and a dispatcher in memory and virtual time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from infra.kafka.consumer import ConsumerEvents
from ingest.lanes import engine as engine_module
from ingest.lanes import marks
from ingest.lanes.engine import LaneEngine
from schemas.errors import BrokerUnavailable, ConfigError, PenstockError
from schemas.frames import Flow
from schemas.limits import SYNC_EVENT_BYTES
from schemas.runstatus import RunStatus
from tests.lane_fakes import FUNCTION, FakeDesk, FakeDispatcher, FakeSource, result, trigger
from tests.records import keyed, record

pytestmark = pytest.mark.looptime(start=1_000)


class Rig:
    """An engine and its fakes."""

    def __init__(self, **kafka: Any) -> None:
        self.dispatcher, self.desk = FakeDispatcher(), FakeDesk()
        self.ended: list[PenstockError] = []
        self.engine = LaneEngine(
            trigger(**kafka),
            submit=self.dispatcher.submit,
            bury=self.desk.put,
            source=self._open,
            jitter=lambda: 0.5,
            ended=self.ended.append,
        )
        self.engine.start()

    def _open(self, events: ConsumerEvents) -> FakeSource:
        self.source = FakeSource(events)
        return self.source

    async def hand_over(self, keys: str, *, first: int = 0, partition: int = 0) -> None:
        self.source.hand_over(keyed(keys, first=first, partition=partition))
        await turns()

    def is_held(self) -> bool:
        return self.source.held

    def is_closed(self) -> bool:
        return self.source.closed

    @property
    def why(self) -> str:
        return self.engine.status()[0].why


async def turns() -> None:
    """Let the loop do what it has to do now."""
    for _ in range(4):
        await asyncio.sleep(0)


async def test_a_record_becomes_an_invocation_that_carries_its_flow() -> None:
    rig = Rig()
    rig.source.assign(0, epoch=7)
    await rig.hand_over("a")
    (call,) = rig.dispatcher.out
    assert (call.function, call.qualifier, call.attempt) == (FUNCTION, "$LATEST", 1)
    assert call.flow == Flow(f"{FUNCTION}/t1", 0, 7)
    assert json.loads(call.event)["Records"][0]["Ckafka"]["topic"] == "orders"


async def test_results_start_what_comes_next_in_the_lane() -> None:
    rig = Rig()
    rig.source.assign(0)
    await rig.hand_over("aab")
    rig.dispatcher.finish()
    await turns()
    assert rig.dispatcher.seen == [[0], [2], [1]]


async def test_a_dispatcher_that_answers_at_once_works_thousands_of_records_off_without_recursion() -> None:
    rig = Rig(concurrency=1_000)
    rig.dispatcher.answer = lambda _call: result()
    rig.source.assign(0)
    await rig.hand_over("".join(chr(97 + i % 26) for i in range(5_000)))
    await asyncio.sleep(1)
    assert len(rig.dispatcher.seen) == 5_000
    assert rig.source.committed[0].offset == 5_000


# ------------------------------------------------------------------------------------------------------------- commits


async def test_marks_go_to_the_consumer_at_most_each_50_ms() -> None:
    rig = Rig()
    rig.dispatcher.answer = lambda _call: result()
    rig.source.assign(0)
    for offset in range(100):  # one each 10 ms
        await rig.hand_over("a", first=offset)
        await asyncio.sleep(0.01)
    assert 15 <= rig.source.commits <= 21
    await asyncio.sleep(0.1)
    assert rig.source.committed[0].offset == 100


async def test_nothing_is_committed_when_nothing_changed() -> None:
    rig = Rig()
    rig.source.assign(0)
    await rig.hand_over("a")
    await asyncio.sleep(1)
    assert rig.source.commits == 0


async def test_a_commit_tells_what_is_finished_beyond_it_and_a_successor_does_not_run_that_again() -> None:
    rig = Rig()
    rig.source.assign(0, epoch=3)
    await rig.hand_over("abcd")
    rig.dispatcher.finish(offset=1)
    rig.dispatcher.finish(offset=3)
    await asyncio.sleep(0.1)
    mark = rig.source.committed[0]
    assert (mark.epoch, mark.offset) == (3, 0)
    successor = Rig()
    successor.source.assign(0, epoch=4, offset=0, finished=marks.decode(0, mark.metadata).finished)
    await successor.hand_over("abcd")
    assert successor.dispatcher.seen == [[0], [2]]


# ------------------------------------------------------------------------------------------------------------- failures


async def test_a_failing_record_is_tried_again_after_growing_pauses_and_then_buried() -> None:
    rig = Rig(retries=3)
    began = asyncio.get_running_loop().time()
    starts: list[float] = []

    def fail(_call: object) -> object:
        starts.append(round(asyncio.get_running_loop().time() - began, 3))
        return result(RunStatus.USER_EXCEPTION)

    rig.dispatcher.answer = fail  # type: ignore[assignment]
    rig.source.assign(0)
    await rig.hand_over("a")
    await asyncio.sleep(2)
    assert starts == [0, 0.1, 0.3, 0.7]
    (letter,) = rig.desk.letters
    assert (letter.record.offset, letter.status, letter.attempts) == (0, 430, 4)
    assert json.loads(letter.error)["errorMessage"] == "UserCodeException: boom"
    assert rig.source.committed[0].offset == 1


async def test_the_offset_does_not_pass_a_dead_letter_that_is_not_acknowledged() -> None:
    rig = Rig(retries=0)
    rig.desk.broken = True
    rig.dispatcher.answer = lambda call: result(RunStatus.TIMEOUT) if call.offsets == [0] else result()
    rig.source.assign(0)
    await rig.hand_over("ab")
    await asyncio.sleep(10)
    assert rig.source.committed[0].offset == 0
    assert rig.why == "dead-letter topic unavailable: no acknowledgement; record at offset 0"
    rig.desk.broken = False
    await asyncio.sleep(3)
    assert (rig.source.committed[0].offset, rig.why) == (2, "")


async def test_a_record_too_large_for_an_event_is_buried_with_406_and_never_runs() -> None:
    rig = Rig()
    rig.dispatcher.answer = lambda _call: result()
    rig.source.assign(0)
    rig.source.hand_over([record(0, "a", value=b"x" * SYNC_EVENT_BYTES), record(1, "a")])
    await asyncio.sleep(0.1)
    (letter,) = rig.desk.letters
    assert (letter.status, letter.attempts, letter.record.offset) == (406, 0, 0)
    assert rig.dispatcher.seen == [[1]]
    assert rig.source.committed[0].offset == 2


async def test_batches_close_before_they_are_too_large() -> None:
    rig = Rig(batch=10)
    rig.source.assign(0)
    rig.dispatcher.answer = lambda _call: result()
    large = SYNC_EVENT_BYTES // 2
    rig.source.hand_over([record(i, None, value=b"x" * large) for i in range(3)])
    await asyncio.sleep(0.1)
    assert sorted(rig.dispatcher.seen) == [[0], [1], [2]]


async def test_a_missing_host_is_waited_for_without_an_end_and_costs_no_attempt() -> None:
    rig = Rig(retries=0)
    rig.dispatcher.answer = lambda call: result(RunStatus.NO_RESOURCES, "no host agent is connected")
    rig.source.assign(0)
    await rig.hand_over("a")
    await asyncio.sleep(60)
    assert rig.why == "waiting for a host: NoResources: no host agent is connected"
    rig.dispatcher.answer = lambda call: result()
    await asyncio.sleep(2)
    assert (rig.desk.letters, rig.source.committed[0].offset, rig.why) == ([], 1, "")


async def test_no_more_burials_run_at_once_than_allowed() -> None:
    rig = Rig(retries=0, concurrency=1_000)
    gate, running, most = asyncio.Event(), 0, 0

    async def slow(_letter: object) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    rig.engine._bury = slow
    rig.dispatcher.answer = lambda _call: result(RunStatus.USER_EXCEPTION)
    rig.source.assign(0)
    rig.source.hand_over([record(i, None) for i in range(500)])
    await asyncio.sleep(1)
    assert most == engine_module.BURIALS_AT_ONCE
    gate.set()
    await asyncio.sleep(1)
    assert rig.source.committed[0].offset == 500


# ------------------------------------------------------------------------------------------------------- back-pressure


async def test_the_consumer_is_held_at_the_high_mark_and_released_at_the_low_one() -> None:
    rig = Rig(concurrency=1)
    rig.source.assign(0)
    await rig.hand_over("a" * 511)
    assert not rig.is_held()
    await rig.hand_over("a", first=511)
    assert rig.is_held()
    for _ in range(255):
        rig.dispatcher.finish()
        await turns()
        assert rig.is_held()
    rig.dispatcher.finish()
    await turns()
    assert not rig.is_held()


async def test_the_consumer_is_held_by_bytes_too() -> None:
    rig = Rig()
    rig.source.assign(0)
    rig.source.hand_over([record(i, "a", value=b"x" * 1_000_000) for i in range(16)])
    await turns()
    assert not rig.is_held()
    rig.source.hand_over([record(16, "a", value=b"x" * 1_000_000)])
    await turns()
    assert rig.is_held()


# ------------------------------------------------------------------------------------------------------------ ownership


async def test_a_revoke_waits_for_what_runs_then_commits_and_lets_go() -> None:
    rig = Rig()
    rig.source.assign(0)
    await rig.hand_over("aab")
    let_go: list[object] = []
    rig.engine.revoking(frozenset({0}), lambda: let_go.append(dict(rig.source.committed)))
    await asyncio.sleep(0.5)
    assert let_go == []
    rig.dispatcher.finish()
    await turns()
    ((committed,),) = [let_go]
    mark = committed[0]  # type: ignore[index]
    assert (mark.offset, list(marks.decode(1, mark.metadata).finished)) == (1, [(2, 3)])
    assert rig.dispatcher.out == []


async def test_a_revoke_lets_go_at_its_deadline_and_later_results_are_ignored() -> None:
    rig = Rig()
    rig.source.assign(0)
    await rig.hand_over("a")
    let_go: list[float] = []
    began = asyncio.get_running_loop().time()
    rig.engine.revoking(frozenset({0}), lambda: let_go.append(asyncio.get_running_loop().time() - began))
    await asyncio.sleep(5)
    assert let_go == [pytest.approx(1.8)]
    rig.dispatcher.finish()
    await asyncio.sleep(1)
    assert rig.source.commits == 0


async def test_other_partitions_go_on_during_a_revoke() -> None:
    rig = Rig()
    rig.source.assign(0, 1)
    await rig.hand_over("a")
    rig.engine.revoking(frozenset({0}), lambda: None)
    await rig.hand_over("a", partition=1)
    assert [call.flow.partition for call in rig.dispatcher.out if call.flow] == [0, 1]


async def test_lost_partitions_commit_nothing_any_more() -> None:
    rig = Rig()
    rig.source.assign(0)
    await rig.hand_over("a")
    rig.engine.lost(frozenset({0}))
    rig.dispatcher.finish()
    await asyncio.sleep(1)
    assert (rig.source.commits, rig.engine.status()) == (0, ())


# ---------------------------------------------------------------------------------------------------------- end, states


async def test_close_waits_for_what_runs_commits_and_ends_the_consumer() -> None:
    rig = Rig()
    rig.source.assign(0)
    await rig.hand_over("aab")
    closing = asyncio.ensure_future(rig.engine.close())
    await asyncio.sleep(0.5)
    assert not rig.is_closed()
    rig.dispatcher.finish()
    await closing
    assert rig.is_closed()
    assert (rig.source.committed[0].offset, rig.dispatcher.seen) == (1, [[0], [2]])


async def test_close_does_not_wait_longer_than_two_seconds() -> None:
    rig = Rig()
    rig.source.assign(0)
    await rig.hand_over("a")
    began = asyncio.get_running_loop().time()
    await rig.engine.close()
    assert asyncio.get_running_loop().time() - began == pytest.approx(2.0)
    rig.dispatcher.finish()
    await turns()


async def test_the_end_of_the_consumer_is_told_once_and_passing_trouble_is_only_shown() -> None:
    rig = Rig()
    rig.source.assign(0)
    rig.engine.failed(BrokerUnavailable("down"))
    assert (rig.why, rig.ended) == ("broker: down", [])
    await asyncio.sleep(11)
    assert rig.why == ""
    error = ConfigError("fenced")
    rig.engine.failed(error)
    rig.engine.failed(error)
    assert rig.ended == [error]


async def test_a_fault_in_the_lanes_ends_the_engine_instead_of_leaving_it_half_dead() -> None:
    rig = Rig()
    rig.source.assign(0)
    rig.engine.lanes.owned[0].lanes = None  # type: ignore[assignment]
    await rig.hand_over("a")
    assert [type(error).__name__ for error in rig.ended] == ["PlatformError"]


async def test_each_partition_says_why_it_does_not_move() -> None:
    rig = Rig(retries=3, concurrency=1)
    rig.source.assign(0, 1)
    rig.dispatcher.answer = lambda call: result(RunStatus.USER_EXCEPTION)
    await rig.hand_over("a", first=5)
    await asyncio.sleep(0.2)
    assert rig.why == "poison record at offset 5, attempt 2 of 4: UserCodeException"
    rig.dispatcher.answer = lambda call: None
    await rig.hand_over("b", first=6)
    await rig.hand_over("b", partition=1)
    states = rig.engine.status()
    assert [s.why for s in states][1] == "waiting for concurrency: other partitions use the trigger's 1"
    assert [(s.partition, s.in_flight, s.queued, s.retrying) for s in states] == [(0, 1, 0, 1), (1, 0, 1, 0)]
