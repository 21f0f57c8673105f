"""Blank workers of a node: how many there are, who gets them, and that none is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandbox import blanks
from sandbox.blanks import Blanks
from schemas.errors import WorkerStartFailed


class Blank:
    """Stands in for a worker."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Maker:
    """Makes blanks when `gate` is open; the next `failures` fail."""

    def __init__(self) -> None:
        self.made: list[Blank] = []
        self.failures = self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Any:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failures:
            self.failures -= 1
            raise WorkerStartFailed("no")
        self.made.append(Blank())
        return self.made[-1]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def until_made(maker: Maker, number: int) -> None:
    async with asyncio.timeout(5):
        while len(maker.made) < number:
            await asyncio.sleep(0.005)


async def test_no_more_are_made_than_wanted_and_the_oldest_is_taken_first() -> None:
    maker = Maker()
    pool: Blanks[Any] = Blanks(maker, ahead=2)
    assert await pool.take() is None
    pool.fill()
    pool.fill()
    await settle()
    assert len(maker.made) == 2
    assert await pool.take() is maker.made[0]
    pool.fill()
    await settle()
    assert len(maker.made) == 3
    pool.close()
    assert [b.closed for b in maker.made] == [False, True, True]


async def test_one_on_its_way_is_waited_for_and_ends_with_a_cancelled_waiter() -> None:
    maker = Maker()
    maker.gate.clear()
    pool: Blanks[Any] = Blanks(maker, ahead=2)
    pool.fill()
    first, second = (asyncio.get_running_loop().create_task(pool.take()) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert maker.cancelled == 1
    maker.gate.set()
    assert await second is maker.made[0]
    pool.close()


async def test_one_that_died_or_could_not_be_made_is_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blanks, "RETRY_S", 0.01)
    maker = Maker()
    maker.failures = 1
    pool: Blanks[Any] = Blanks(maker, ahead=1)
    pool.fill()
    await settle()
    assert not maker.made
    await until_made(maker, 1)
    await settle()
    pool.lost(maker.made[0])  # type: ignore[arg-type]
    assert maker.made[0].closed
    await until_made(maker, 2)
    pool.close()


async def test_one_that_is_too_old_is_replaced() -> None:
    maker = Maker()
    pool: Blanks[Any] = Blanks(maker, ahead=1, max_age_s=0.02)
    pool.fill()
    await until_made(maker, 2)
    assert maker.made[0].closed
    pool.close()


async def test_after_the_close_nothing_is_made_and_one_on_its_way_is_given_up() -> None:
    maker = Maker()
    maker.gate.clear()
    pool: Blanks[Any] = Blanks(maker, ahead=1)
    pool.fill()
    await settle()
    pool.close()
    pool.fill()
    await settle()
    assert (maker.cancelled, len(maker.made)) == (1, 0)
