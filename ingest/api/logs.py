"""GetFunctionLogLines, Penstock's own action: the lines of a function's log, oldest first, in arrival order.

Follow a log by asking again with the Cursor of the last answer; WaitMs lets an answer wait for new lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ingest.api.fields import param
from ingest.api.params import function_name, namespace
from ingest.api.services import Call, Services
from schemas.errors import BadRequest

MAX_LINES: Final = 5_000
MAX_WAIT_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class GetFunctionLogLines:
    """Request. `since` is unix ms; `cursor` comes from an earlier answer and wins over it."""

    function_name: str = function_name()
    namespace: str = namespace()
    since: int | None = param(None, code="InvalidParameterValue.StartTime", low=0, high=10**14)
    cursor: str = param("", max_chars=128)
    limit: int = param(1_000, code="InvalidParameterValue.Limit", low=1, high=MAX_LINES)
    wait_ms: int = param(0, low=0, high=MAX_WAIT_MS)
    function_request_id: str = param("", code="InvalidParameterValue.FunctionRequestId", max_chars=64)


async def get_function_log_lines(services: Services, call: Call, request: GetFunctionLogLines) -> Mapping[str, Any]:
    """Lines, and the Cursor behind them; AtEnd false means that more is there (a page may be short, even empty, before that)."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    try:
        page = await services.logs.read(
            key,
            cursor=request.cursor,
            since_unix_ms=request.since,
            limit=request.limit,
            request_id=request.function_request_id,
            wait_s=request.wait_ms / 1000,
        )
    except ValueError as exc:
        raise BadRequest("InvalidParameterValue", f"Cursor is none of this function's: {exc}") from exc
    return {
        "Lines": [
            {"RequestId": line.request_id, "UnixMs": line.unix_ms, "Stream": line.stream, "Line": line.line}
            for line in page.lines
        ],
        "Cursor": page.cursor,
        "AtEnd": page.at_end,
    }
