"""Handlers of Invoke and InvokeFunction: synchronous runs through the router, the API's hot path; an event of type Event is only accepted.

Of RetMsg and the codes: a function that fails is still an answer (`InvokeResult` holds the run's status, RetMsg its error JSON); an API
error is for a call that could not be a run: no such function, no such qualifier, a function that is not Active, an event that is no JSON.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from ingest.api.events import accept
from ingest.api.fields import param
from ingest.api.params import function_name, namespace, qualifier
from ingest.api.routing import check_routing_key, version_for
from ingest.api.services import Call, Services
from ingest.once import run_once
from schemas.errors import BadRequest, DeadlineExceeded
from schemas.frames import WANT_LOG_TAIL, Result
from schemas.ids import DEFAULT_ALIAS, LATEST, FunctionKey
from schemas.lifecycle import GOING
from schemas.limits import ASYNC_EVENT_BYTES, ROUTING_KEY_BYTES, SYNC_EVENT_BYTES
from schemas.runstatus import RunStatus

Answer = Mapping[str, Any]
LIMIT_S: Final = 1_800.0
"""A run that the router has not ended after this long (its own limits are below) is given up."""


def _log_type() -> Any:
    return param("None", code="InvalidParameterValue", choices=("None", "Tail"))


def _routing_key() -> Any:
    return param("", code="InvalidParameter.RoutingConfig", max_chars=ROUTING_KEY_BYTES)


@dataclass(frozen=True, slots=True)
class Invoke:
    """Request of Invoke."""

    function_name: str = function_name()
    invocation_type: str = param(
        "RequestResponse", code="InvalidParameterValue.InvokeType", choices=("RequestResponse", "Event")
    )
    qualifier: str = qualifier()
    client_context: str = param("", code="InvalidParameter.RequestTooLarge", max_chars=SYNC_EVENT_BYTES)
    log_type: str = _log_type()
    namespace: str = namespace()
    routing_key: str = _routing_key()


@dataclass(frozen=True, slots=True)
class InvokeFunction:
    """Request of InvokeFunction, which is synchronous only."""

    function_name: str = function_name()
    qualifier: str = qualifier(DEFAULT_ALIAS)
    event: str = param("", code="InvalidParameter.RequestTooLarge", max_chars=SYNC_EVENT_BYTES)
    log_type: str = _log_type()
    namespace: str = namespace()
    routing_key: str = _routing_key()


async def invoke(services: Services, call: Call, request: Invoke) -> Answer:
    """Invoke."""
    is_async = request.invocation_type == "Event"
    event = check_event(
        request.client_context,
        field="ClientContext",
        code="InvalidParameterValue.ClientContext",
        limit=ASYNC_EVENT_BYTES if is_async else SYNC_EVENT_BYTES,
    )
    if not is_async:
        return await _run(services, call, request, event)
    key, version = _runnable(services, call, request)
    request_id = await accept(services, call, key, event, qualifier=request.qualifier, version=version)
    return {"Result": describe_result(Result(0, RunStatus.OK, 0, 0, 0, 0, 0, b"", b""), request_id)}


async def invoke_function(services: Services, call: Call, request: InvokeFunction) -> Answer:
    """InvokeFunction."""
    event = check_event(request.event, field="Event", code="InvalidParameter.Payload")
    return await _run(services, call, request, event)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_decoder: Final = json.JSONDecoder(parse_constant=_no_constant)


def check_event(text: str, *, field: str, code: str, limit: int = SYNC_EVENT_BYTES) -> bytes:
    """The event's bytes, `{}` when there is none; raises BadRequest when it is no JSON or too large."""
    if not text:
        return b"{}"
    try:
        _decoder.decode(text)
    except (ValueError, RecursionError) as exc:
        raise BadRequest(code, f"{field} must be JSON text: {exc}") from exc
    event = text.encode()
    if len(event) > limit:
        raise BadRequest("InvalidParameter.RequestTooLarge", f"{field} has {len(event)} bytes; the limit is {limit}")
    return event


def _runnable(services: Services, call: Call, request: Invoke | InvokeFunction) -> tuple[FunctionKey, str]:
    """The function and which of its versions is to run; raises BadRequest when there is none."""
    key = call.function(request.namespace, request.function_name)
    record = services.function(key)
    version = version_for(services, key, request.qualifier, check_routing_key(request.routing_key))
    if record.serving is None or record.status in GOING:
        raise BadRequest("FailedOperation.FunctionStatusError", f"function {key.name!r} is {record.status}, not Active")
    return key, LATEST if version is None else version.version


async def _run(services: Services, call: Call, request: Invoke | InvokeFunction, event: bytes) -> Answer:
    key, version = _runnable(services, call, request)
    request_id = uuid4()
    flags = WANT_LOG_TAIL if request.log_type == "Tail" else 0
    try:
        async with asyncio.timeout(LIMIT_S):
            result = await run_once(services.invoker, key, version, event, request_id=request_id, flags=flags)
    except TimeoutError as exc:
        raise DeadlineExceeded(f"the run did not end within {LIMIT_S:g} s") from exc
    return {"Result": describe_result(result, request_id)}


def describe_result(result: Result, request_id: UUID) -> dict[str, Any]:
    """Structure Result: MemUsage in bytes, Duration ms, BillDuration whole ms; InvokeResult 0 or the status of the failed run."""
    ok = result.status == RunStatus.OK
    duration_ms = result.duration_us / 1000
    return {
        "FunctionRequestId": str(request_id),
        "InvokeResult": 0 if ok else result.status,
        "RetMsg": result.body.decode("utf-8", "replace"),
        "ErrMsg": "" if ok else _error_message(result.body),
        "Duration": duration_ms,
        "BillDuration": math.ceil(duration_ms),
        "MemUsage": result.memory_kib * 1024,
        "Log": result.tail.decode("utf-8", "replace"),
    }


def _error_message(body: bytes) -> str:
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = error.get("errorMessage") if isinstance(error, dict) else None
    return message if isinstance(message, str) else ""
