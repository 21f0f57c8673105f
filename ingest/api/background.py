"""Best-effort work that goes on after an answer, such as clearing away the consumer group of a deleted trigger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from infra.telemetry import get_logger
from schemas.errors import PenstockError

AT_MOST: Final = 256
FOR_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 5.0

log = get_logger("ingest.api.background")


class BackgroundWork:
    """Runs work until it says that it is done, with growing pauses, for a minute at most. Beyond `AT_MOST` new work is refused."""

    def __init__(self, *, for_s: float = FOR_S) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._for_s = for_s

    def later(self, what: str, work: Callable[[], Awaitable[bool]]) -> None:
        """Start `work`; `what` names it in the log when it is given up."""
        if len(self._tasks) >= AT_MOST:
            log.warning("background work refused: too much of it", what=what)
            return
        # Kept in the set and ended by `close`.
        task = asyncio.get_running_loop().create_task(self._run(what, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, what: str, work: Callable[[], Awaitable[bool]]) -> None:
        pause_s, why = _FIRST_PAUSE_S, "not done in time"
        try:
            async with asyncio.timeout(self._for_s):
                while True:
                    try:
                        if await work():
                            return
                    except PenstockError as exc:
                        why = str(exc)
                        if not exc.retryable:
                            break
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except TimeoutError:
            pass
        log.warning("background work given up", what=what, why=why)
