"""One run of an event, for a caller that awaits its result."""

from __future__ import annotations

import asyncio
from uuid import UUID

from ingest.api.ports import Invoker
from schemas.frames import Result
from schemas.ids import FunctionKey


async def run_once(
    invoker: Invoker,
    function: FunctionKey,
    version: str,
    event: bytes,
    *,
    request_id: UUID,
    attempt: int = 1,
    flags: int = 0,
    waits: bool = False,
) -> Result:
    """How the run ended, a refusal too; arguments as of `Invoker.submit`. Has no time-out of its own."""
    answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def done(result: Result) -> None:
        if not answer.done():
            answer.set_result(result)

    invoker.submit(
        function,
        version,
        event,
        flow=None,
        attempt=attempt,
        flags=flags,
        done=done,
        request_id=request_id.bytes,
        waits=waits,
    )
    return await answer
