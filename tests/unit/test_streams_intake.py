"""Records from a reader that drops and repeats some: each handed out once, let go in order, none passed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import clock
from streams.delivery import Delivery, Verdict
from streams.intake import REWIND_S, REWINDS, Intake, Place
from streams.lanes import KeyLanes
from streams.processors import Input

HERE = Place("t", 0)


def test_records_are_let_go_in_order_and_only_when_all_before_them_are_finished() -> None:
    delivery: Delivery[str] = Delivery(5)
    assert [delivery.take(offset, f"r{offset}") for offset in (5, 6, 7)] == [Verdict.TAKE] * 3
    assert delivery.finish(7) == []
    assert delivery.finish(6) == []
    assert delivery.finish(5) == ["r5", "r6", "r7"]
    assert delivery.is_idle


def test_what_comes_again_is_known_and_what_is_left_out_is_seen() -> None:
    delivery: Delivery[str] = Delivery(0)
    assert delivery.take(1, "") is Verdict.MISSING
    assert delivery.take(0, "") is Verdict.TAKE
    assert delivery.take(0, "") is Verdict.UNDER_WAY
    assert delivery.take(1, "") is Verdict.TAKE
    delivery.finish(0)
    assert (delivery.take(0, ""), delivery.take(1, "")) == (Verdict.LET_GO, Verdict.UNDER_WAY)


@given(st.permutations(range(12)))
def test_in_whatever_order_records_finish_nothing_unfinished_is_passed(order: list[int]) -> None:
    delivery: Delivery[int] = Delivery(0)
    for offset in range(12):
        delivery.take(offset, offset)
    gone: list[int] = []
    for count, offset in enumerate(order, 1):
        gone += delivery.finish(offset)
        first_open = min(set(range(12)) - set(order[:count]), default=12)
        assert gone == list(range(first_open))


class FakeReader:
    """A topic of `size` records; reads on from `position`."""

    def __init__(self, size: int) -> None:
        self.size, self.position = size, 0
        self.rewinds: list[int] = []
        self.holes: list[int] = []

    def end(self, place: Place) -> int | None:
        return self.size

    async def rewind(self, place: Place, offset: int) -> None:
        self.rewinds.append(offset)
        self.position = offset

    def accept_hole(self, place: Place, offset: int) -> None:
        self.holes.append(offset)


class Rig:
    def __init__(self, size: int = 100) -> None:
        self.reader, self.lanes = FakeReader(size), KeyLanes()
        self.intake = Intake(self.reader, self.lanes)
        self.handled: list[int] = []
        self.gone: list[int] = []

    async def deliver(self, *offsets: int, settle: bool = True) -> None:
        for offset in offsets:
            let_go = partial(self.gone.append, offset)
            await self.intake.take(HERE, offset, b"%d" % offset, b"", let_go=let_go, handle=self._handle)
        if settle:
            await self.lanes.drained()

    async def _handle(self, record: Input) -> None:
        self.handled.append(record.offset)
        record.done()


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        working = tasks.create_task(made.lanes.run())
        yield made
        working.cancel()


async def test_before_its_start_is_known_a_partition_is_not_taken() -> None:
    async with rig() as r:
        await r.deliver(3)
        r.intake.begin({HERE: 3})
        await r.deliver(3)
        r.intake.clear()
        await r.deliver(4)
        assert (r.handled, r.gone) == ([3], [3])


async def test_left_out_records_are_read_again_and_later_ones_wait_for_them() -> None:
    async with rig() as r:
        r.intake.begin({HERE: 0})
        await r.deliver(0, 3, 4)
        assert (r.handled, r.reader.rewinds) == ([0], [1])
        await r.deliver(1, 2, 3, 4)
        assert r.handled == r.gone == [0, 1, 2, 3, 4]


async def test_what_is_delivered_twice_is_handled_once_and_let_go() -> None:
    async with rig() as r:
        r.intake.begin({HERE: 0})
        await r.deliver(0, 1)
        await r.deliver(0, 1)
        assert r.handled == [0, 1]
        assert r.gone == [0, 1, 0, 1]


async def test_a_partition_that_stands_still_before_its_end_is_read_again() -> None:
    async with rig() as r:
        r.intake.begin({HERE: 0})
        await r.deliver(0)
        await r.intake.watch()
        assert r.reader.rewinds == [], "it may just have come"
        await r.intake.watch()
        assert r.reader.rewinds == [1]
        await r.deliver(*range(1, 100))
        for _ in range(3):
            await r.intake.watch()
        assert r.reader.rewinds == [1]


async def test_an_end_that_holds_no_record_is_asked_for_a_few_times_only() -> None:
    async with rig() as r:
        r.intake.begin({HERE: 99})
        for _ in range(3 * REWINDS):
            await r.intake.watch()
        assert r.reader.rewinds == [99] * REWINDS
        r.reader.size = 101
        await r.deliver(99)
        assert r.handled == [99]


async def test_records_that_do_not_exist_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig() as r:
        r.intake.begin({HERE: 0})
        now_s = clock.mono_s()
        for attempt in range(REWINDS + 1):
            monkeypatch.setattr(clock, "mono_s", lambda attempt=attempt: now_s + attempt * (REWIND_S + 0.1))
            await r.deliver(7)
        assert (r.handled, r.reader.rewinds, r.reader.holes) == ([7], [0] * REWINDS, [7])
