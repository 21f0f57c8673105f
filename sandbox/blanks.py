"""Blank workers of one node: forked, in their namespaces and cgroups, told nothing yet. A start that finds one needs only to claim it.

Joining a cgroup is what takes long in a start (5 to 19 ms: the kernel waits for an RCU grace period), and it can be done before anyone waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from sandbox.driver import Worker
from schemas.errors import WorkerStartFailed

AHEAD: Final = 2
MAX_AGE_S: Final = 600.0
RETRY_S: Final = 1.0
"""How long after a failure or an untimely end the next one is made."""

W = TypeVar("W", bound=Worker)


class Blanks(Generic[W]):
    """Up to `ahead` blank workers, oldest first, some of them still on their way. Nothing is made before the first `fill`."""

    def __init__(
        self, make: Callable[[], Coroutine[Any, Any, W]], *, ahead: int = AHEAD, max_age_s: float = MAX_AGE_S
    ) -> None:
        self._make, self._ahead, self._max_age_s = make, ahead, max_age_s
        self._blanks: dict[asyncio.Task[W], asyncio.TimerHandle] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    def fill(self) -> None:
        """Begin to make what is missing; returns at once. After a failure nothing is made for RETRY_S."""
        loop = asyncio.get_running_loop()
        while not self._closed and self._retry is None and len(self._blanks) < self._ahead:
            task = loop.create_task(self._make())
            self._blanks[task] = loop.call_later(self._max_age_s, self._replace, task)
            task.add_done_callback(self._made)

    async def take(self) -> W | None:
        """The oldest, which is the caller's from now on; waits when it is on its way. None when there is none to be had."""
        if not self._blanks:
            return None
        task = next(iter(self._blanks))
        self._blanks.pop(task).cancel()
        try:
            return await task
        except WorkerStartFailed:
            return None
        except asyncio.CancelledError:
            _end(task)
            raise

    def lost(self, worker: Worker) -> None:
        """A worker has ended; when it was a blank, another is made later."""
        for task in self._blanks:
            if _result(task) is worker:
                self._drop(task)
                self._later()
                return

    def close(self) -> None:
        """End them all; no more are made. Idempotent."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        for task in list(self._blanks):
            self._drop(task)

    def _made(self, task: asyncio.Task[W]) -> None:
        if task.cancelled() or task.exception() is None or task not in self._blanks:
            return
        self._drop(task)
        self._later()

    def _replace(self, task: asyncio.Task[W]) -> None:
        self._drop(task)
        self.fill()

    def _drop(self, task: asyncio.Task[W]) -> None:
        self._blanks.pop(task).cancel()
        _end(task)

    def _later(self) -> None:
        if self._retry is None and not self._closed:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._again)

    def _again(self) -> None:
        self._retry = None
        self.fill()


def _result(task: asyncio.Task[W]) -> W | None:
    return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


def _end(task: asyncio.Task[W]) -> None:
    """Whether it is there or on its way (a cancelled making leaves nothing)."""
    task.cancel()
    worker = _result(task)
    if worker is not None:
        worker.close()
