"""Work by key: one job of a key after another, several keys at once, never more waiting than fits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from zlib import crc32

Job = Callable[[], Awaitable[None]]
WIDTH: Final = 16
DEPTH: Final = 32


class KeyLanes:
    """A fixed number of queues, a key always in the same one; jobs of one queue run in order.

    A job that raises ends `run`, and with it the worker: what was not acknowledged comes again.
    """

    def __init__(self, *, width: int = WIDTH, depth: int = DEPTH) -> None:
        self._queues: list[asyncio.Queue[Job]] = [asyncio.Queue(depth) for _ in range(width)]

    async def put(self, key: bytes, job: Job) -> None:
        """Queue a job behind those of its key; waits while the queue is full."""
        await self._queues[crc32(key) % len(self._queues)].put(job)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for queue in self._queues:
                tasks.create_task(_work(queue))

    async def drained(self) -> None:
        """Wait until every job that was put is done."""
        for queue in self._queues:
            await queue.join()


async def _work(queue: asyncio.Queue[Job]) -> None:
    while True:
        job = await queue.get()
        await job()
        queue.task_done()
