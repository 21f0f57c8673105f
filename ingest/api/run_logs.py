"""GetFunctionLogs and GetRequestStatus: the runs of a function that began in a window of time, from the log topic (kept 24 h)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ingest.api.describe import page, time_text
from ingest.api.fields import Unsupported, param
from ingest.api.params import function_name, namespace, offset, utc_ms
from ingest.api.runs import FILTERS, Run, RunBuilder, passes
from ingest.api.services import Call, Services
from schemas.errors import BadRequest, DeadlineExceeded
from schemas.ids import FunctionKey
from schemas.runstatus import RunStatus

Answer = Mapping[str, Any]
WINDOW_MS: Final = 15 * 60 * 1000
DAY_MS: Final = 24 * 3_600 * 1000
READ_S: Final = 10.0
READ_LINES: Final = 200_000
READ_CHARS: Final = 32 * 1024 * 1024
LAST: Final = 10_000
"""Offset + Limit of SCF."""
_PAGE_LINES: Final = 5_000
_WINDOW: Final = "InvalidParameterValue.StartTimeOrEndTime"
_RUNNING, _FAILED = 1, -1


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Structure LogFilter."""

    ret_code: str = param("", code="InvalidParameterValue.RetCode", choices=FILTERS)


def _time() -> Any:
    return param("", code=_WINDOW, max_chars=32)


@dataclass(frozen=True, slots=True)
class GetFunctionLogs:
    """Request of GetFunctionLogs. StartTime and EndTime are UTC, both or neither."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (
        Unsupported("Qualifier", "the runs of all versions stand in one log"),
        Unsupported("SearchContext", "the vendor has switched it off; use Offset and Limit"),
    )

    function_name: str = function_name()
    offset: int = offset()
    limit: int = param(20, code="InvalidParameterValue.Limit", low=0, high=LAST)
    order: str = param("desc", code="InvalidParameterValue.Order", choices=("desc", "asc", "DESC", "ASC"))
    order_by: str = param(
        "start_time",
        code="InvalidParameterValue.OrderBy",
        choices=("start_time", "function_name", "duration", "mem_usage"),
    )
    filter: LogFilter | None = param(None)
    namespace: str = namespace()
    function_request_id: str = param("", code="InvalidParameterValue.FunctionRequestId", max_chars=64)
    start_time: str = _time()
    end_time: str = _time()


@dataclass(frozen=True, slots=True)
class GetRequestStatus:
    """Request of GetRequestStatus. StartTime and EndTime are UTC, both or neither; without them the last 15 minutes."""

    function_name: str = function_name()
    function_request_id: str = param(code="InvalidParameterValue.FunctionRequestId", max_chars=64)
    namespace: str = namespace()
    start_time: str = _time()
    end_time: str = _time()


async def get_function_logs(services: Services, call: Call, request: GetFunctionLogs) -> Answer:
    """GetFunctionLogs: without times the last 15 minutes, or with FunctionRequestId the last day."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    if request.offset + request.limit > LAST:
        raise BadRequest(
            "LimitExceeded.Offset", f"Offset and Limit are more than {LAST} together; give a smaller window"
        )
    default_ms = DAY_MS if request.function_request_id else WINDOW_MS
    window = window_of(request.start_time, request.end_time, now_ms=call.now_ms, default_ms=default_ms)
    wanted = request.filter.ret_code if request.filter is not None else ""
    runs = await _runs(services, key, window, request.function_request_id)
    found = [run for run in runs if passes(run, wanted)]
    found.sort(key=_ORDERS[request.order_by], reverse=request.order.lower() == "desc")
    shown = page(found, request.offset, request.limit)
    return {"TotalCount": len(found), "Data": [_function_log(key, run) for run in shown], "SearchContext": None}


async def get_request_status(services: Services, call: Call, request: GetRequestStatus) -> Answer:
    """GetRequestStatus: a row for each run of the request, the newest first."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    window = window_of(request.start_time, request.end_time, now_ms=call.now_ms, default_ms=WINDOW_MS)
    runs = await _runs(services, key, window, request.function_request_id)
    return {"TotalCount": len(runs), "Data": [_request_status(key, run) for run in reversed(runs)]}


def window_of(start: str, end: str, *, now_ms: int, default_ms: int) -> tuple[int, int]:
    """First and last unix ms of a window; raises BadRequest when it is none, or longer than a day."""
    if not start and not end:
        return now_ms - default_ms, now_ms
    if not start or not end:
        raise BadRequest(_WINDOW, "give StartTime and EndTime, or neither")
    first_ms, last_ms = utc_ms("StartTime", start, _WINDOW), utc_ms("EndTime", end, _WINDOW) + 999
    if not 0 <= last_ms - first_ms - 999 <= DAY_MS:
        raise BadRequest(_WINDOW, "EndTime must be later than StartTime, by one day at most")
    return first_ms, last_ms


async def _runs(services: Services, key: FunctionKey, window: tuple[int, int], request_id: str) -> list[Run]:
    """Runs that began in the window, oldest START first. Bounded: raises BadRequest or DeadlineExceeded beyond."""
    builder, cursor, lines, chars = RunBuilder(), "", 0, 0
    ends_s = services.clock.mono_s() + READ_S
    since_ms = max(0, window[0])
    while True:
        read = await services.logs.read(
            key, cursor=cursor, since_unix_ms=since_ms, limit=_PAGE_LINES, request_id=request_id, wait_s=0.0
        )
        builder.take(read.lines)
        if read.at_end:
            return [run for run in builder.runs if window[0] <= run.started_unix_ms <= window[1]]
        cursor, lines = read.cursor, lines + len(read.lines)
        chars += sum(len(line.line) for line in read.lines)
        if lines > READ_LINES or chars > READ_CHARS:
            raise BadRequest(
                "FailedOperation",
                "the window holds more log than one call reads: give a later StartTime, or a FunctionRequestId",
            )
        if services.clock.mono_s() > ends_s:
            raise DeadlineExceeded(f"the log of the window was not read within {READ_S:g} s; give a later StartTime")


_ORDERS: Final[Mapping[str, Callable[[Run], Any]]] = {
    "start_time": lambda run: run.started_unix_ms,
    "function_name": lambda run: 0,
    "duration": lambda run: run.duration_ms,
    "mem_usage": lambda run: run.memory_mib,
}


def _function_log(key: FunctionKey, run: Run) -> dict[str, Any]:
    """Structure FunctionLog: RetCode 0 when it ended well, 2 while it lasts, else its status. What a run returned is not in the log."""
    return {
        "FunctionName": key.name,
        "RequestId": run.request_id,
        "StartTime": time_text(run.started_unix_ms),
        "RetCode": {0: 2, int(RunStatus.OK): 0}.get(run.status, int(run.status)),
        "InvokeFinished": int(run.status != 0),
        "RetMsg": run.error,
        "Duration": float(run.duration_ms),
        "BillDuration": run.billed_ms,
        "MemUsage": run.memory_mib * 1024 * 1024,
        "Log": "\n".join(run.lines),
        "Level": "",
        "Source": "",
        "RetryNum": run.attempt,
    }


def _request_status(key: FunctionKey, run: Run) -> dict[str, Any]:
    """Structure RequestStatus."""
    return {
        "FunctionName": key.name,
        "RequestId": run.request_id,
        "StartTime": time_text(run.started_unix_ms),
        "RetCode": {0: _RUNNING, int(RunStatus.OK): 0}.get(run.status, _FAILED),
        "RetMsg": run.error,
        "Duration": float(run.duration_ms),
        "MemUsage": float(run.memory_mib),
        "RetryNum": run.attempt,
    }
