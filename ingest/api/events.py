"""Asynchronous invocation: Invoke of type Event, GetAsyncEventStatus, ListAsyncEvents, TerminateAsyncEvent, Get/UpdateFunctionEventInvokeConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

from ingest.api.describe import page
from ingest.api.fields import Unsupported, param, short
from ingest.api.params import function_name, namespace, offset, order, qualifier, utc_ms
from ingest.api.routing import version_for
from ingest.api.services import Call, Services, new_command_id
from schemas.errors import BadRequest
from schemas.events import AsyncEvent, EventState, EventStatus, Termination
from schemas.ids import LATEST, FunctionKey
from schemas.limits import EVENT_RETRIES, EVENT_TTL_RANGE_S
from schemas.records import Command, EventPolicy

Answer = Mapping[str, Any]
INVOKE_TYPE: Final = "INVOKE"
"""What brought the event; events of triggers will say theirs."""
_PAGE: Final = 100
_GONE: Final = "ResourceNotFound.AsyncEvent"


def _is_request_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _request_id(default: Any = None, *, required: bool = True) -> Any:
    def check(value: Any) -> str | None:
        return (
            None if not value or _is_request_id(value) else f"is {short(value)}; it must be the RequestId of an event"
        )

    rule = {"code": "InvalidParameterValue", "check": check}
    return param(**rule) if required else param(default, **rule)


@dataclass(frozen=True, slots=True)
class GetAsyncEventStatus:
    """Request of GetAsyncEventStatus."""

    invoke_request_id: str = _request_id()


@dataclass(frozen=True, slots=True)
class TimeInterval:
    """Structure TimeInterval: UTC, the end not included; an empty side is open."""

    start: str = param("", code="InvalidParameterValue", max_chars=32)
    end: str = param("", code="InvalidParameterValue", max_chars=32)


def _states(value: Any) -> str | None:
    bad = next((name for name in value if name not in tuple(EventState)), None)
    return None if bad is None else f"holds {short(bad)}; states are {', '.join(EventState)}"


@dataclass(frozen=True, slots=True)
class ListAsyncEvents:
    """Request of ListAsyncEvents."""

    function_name: str = function_name()
    namespace: str = namespace()
    qualifier: str = qualifier("")
    invoke_type: tuple[str, ...] = param(())
    status: tuple[str, ...] = param((), code="InvalidParameterValue", check=_states)
    start_time_interval: TimeInterval | None = param(None)
    end_time_interval: TimeInterval | None = param(None)
    order: str = order()
    orderby: str = param("StartTime", code="InvalidParameterValue.OrderBy", choices=("StartTime", "EndTime"))
    offset: int = offset()
    limit: int = param(20, code="InvalidParameterValue.Limit", low=0, high=_PAGE)
    invoke_request_id: str = _request_id("", required=False)


@dataclass(frozen=True, slots=True)
class TerminateAsyncEvent:
    """Request of TerminateAsyncEvent."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (
        Unsupported("GraceShutdown", "a run is ended at once, its function gets no signal first"),
    )

    function_name: str = function_name()
    invoke_request_id: str = _request_id()
    namespace: str = namespace()


@dataclass(frozen=True, slots=True)
class GetFunctionEventInvokeConfig:
    """Request of GetFunctionEventInvokeConfig. The configuration is the function's, whatever version runs."""

    function_name: str = function_name()
    namespace: str = namespace()
    qualifier: str = qualifier()


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """Structure RetryConfig."""

    retry_num: int = param(code="LimitExceeded.RetryNum", low=0, high=EVENT_RETRIES)


def _one(value: Any) -> str | None:
    return None if len(value) <= 1 else "has more than one RetryConfig"


@dataclass(frozen=True, slots=True)
class AsyncTriggerConfig:
    """Structure AsyncTriggerConfig; what is left out keeps its value."""

    retry_config: tuple[RetryConfig, ...] = param((), code="InvalidParameterValue.AsyncTriggerConfig", check=_one)
    msg_ttl: int | None = param(
        None, name="MsgTTL", code="LimitExceeded.MsgTTL", low=EVENT_TTL_RANGE_S[0], high=EVENT_TTL_RANGE_S[1]
    )


@dataclass(frozen=True, slots=True)
class UpdateFunctionEventInvokeConfig:
    """Request of UpdateFunctionEventInvokeConfig."""

    async_trigger_config: AsyncTriggerConfig = param()
    function_name: str = function_name()
    namespace: str = namespace()


async def accept(
    services: Services, call: Call, key: FunctionKey, event: bytes, *, qualifier: str, version: str
) -> UUID:
    """Take an event in durably, for a function that can run; its request id. Raises BrokerUnavailable: it may be in, or not."""
    request_id = uuid4()
    made = AsyncEvent(
        str(request_id), key.appid, call.caller.uin, key.namespace, key.name, qualifier, version, event, call.now_ms
    )
    await services.events.accept(made, call.now_ms)
    return request_id


async def get_async_event_status(services: Services, call: Call, request: GetAsyncEventStatus) -> Answer:
    """GetAsyncEventStatus: of the last 72 h."""
    status = await services.events.find(call.caller.appid, request.invoke_request_id)
    if status is None:
        raise _no_event(request.invoke_request_id)
    return {
        "Result": {
            "Status": status.state,
            "StatusCode": status.status_code,
            "InvokeRequestId": status.request_id,
        }
    }


async def list_async_events(services: Services, call: Call, request: ListAsyncEvents) -> Answer:
    """ListAsyncEvents: of the last 72 h, the newest first unless Order says otherwise."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    found = [status for status in await services.events.of(key, request.invoke_request_id) if _passes(status, request)]
    field = "accepted_unix_ms" if request.orderby == "StartTime" else "ended_unix_ms"
    found.sort(key=lambda status: getattr(status, field), reverse=request.order == "DESC")
    shown = page(found, request.offset, request.limit)
    return {"TotalCount": len(found), "EventList": [_describe(status) for status in shown]}


async def terminate_async_event(services: Services, call: Call, request: TerminateAsyncEvent) -> Answer:
    """TerminateAsyncEvent: its run is ended, or it never begins; it is ABORTED soon after the answer."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    found = await services.events.of(key, request.invoke_request_id)
    if not found:
        raise _no_event(request.invoke_request_id)
    if found[0].state != EventState.RUNNING:
        raise BadRequest(
            "FailedOperation", f"event {request.invoke_request_id} is {found[0].state}; there is nothing to end"
        )
    await services.events.terminate(Termination(request.invoke_request_id, str(key), call.caller.uin, call.now_ms))
    return {}


async def get_function_event_invoke_config(
    services: Services, call: Call, request: GetFunctionEventInvokeConfig
) -> Answer:
    """GetFunctionEventInvokeConfig."""
    key = call.function(request.namespace, request.function_name)
    policy = services.function(key).events
    if request.qualifier != LATEST:
        version_for(services, key, request.qualifier, {})
    return {"AsyncTriggerConfig": {"RetryConfig": [{"RetryNum": policy.retries}], "MsgTTL": policy.ttl_s}}


async def update_function_event_invoke_config(
    services: Services, call: Call, request: UpdateFunctionEventInvokeConfig
) -> Answer:
    """UpdateFunctionEventInvokeConfig: answers at once; counts for events that wait already, too."""
    key = call.function(request.namespace, request.function_name)
    record, wanted = services.function(key), request.async_trigger_config
    retries = wanted.retry_config[0].retry_num if wanted.retry_config else record.events.retries
    policy = EventPolicy(retries, record.events.ttl_s if wanted.msg_ttl is None else wanted.msg_ttl)
    command = Command(
        new_command_id(),
        "set-event-policy",
        call.now_ms,
        key.appid,
        call.caller.uin,
        key.namespace,
        key.name,
        events=policy,
    )
    shown = replace(record, events=policy, command_id=command.command_id)
    await services.send_function_command(key, command, shown)
    return {}


def _passes(status: EventStatus, request: ListAsyncEvents) -> bool:
    return (
        request.qualifier in ("", status.qualifier)
        and (not request.status or status.state in request.status)
        and (not request.invoke_type or INVOKE_TYPE in request.invoke_type)
        and _is_within(status.accepted_unix_ms, request.start_time_interval, "StartTimeInterval")
        and _is_within(status.ended_unix_ms, request.end_time_interval, "EndTimeInterval")
    )


def _is_within(unix_ms: int, interval: TimeInterval | None, name: str) -> bool:
    if interval is None:
        return True
    code = "InvalidParameterValue"
    is_after = not interval.start or unix_ms >= utc_ms(f"{name}.Start", interval.start, code)
    return is_after and (not interval.end or 0 < unix_ms < utc_ms(f"{name}.End", interval.end, code))


def _describe(status: EventStatus) -> dict[str, str]:
    return {
        "InvokeRequestId": status.request_id,
        "InvokeType": INVOKE_TYPE,
        "Qualifier": status.qualifier,
        "Status": status.state,
        "StartTime": _time(status.accepted_unix_ms),
        "EndTime": _time(status.ended_unix_ms) if status.ended_unix_ms else "",
    }


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _no_event(request_id: str) -> BadRequest:
    return BadRequest(_GONE, f"there is no event {short(request_id)} in the last 72 hours")
