"""ListWorkflows and GetWorkflow, Penstock's own actions: what the control plane did and does, step by step (`penstock workflow`).

A workflow is one create, update or delete of a function, or of a trigger; its id is that of the command. Histories are kept 7 days. Times are unix ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ingest.api.fields import param
from ingest.api.params import must
from ingest.api.services import Call, Services
from schemas.errors import BadRequest
from schemas.records import WorkflowEvent, WorkflowRecord

STATES: Final = ("running", "undoing", "succeeded", "failed")
MAX_LISTED: Final = 200


@dataclass(frozen=True, slots=True)
class ListWorkflows:
    """Request. `function_name` and `state` narrow it; `limit` is of the newest."""

    function_name: str = param("", code="InvalidParameterValue.FunctionName", max_chars=60)
    namespace: str = param("", code="InvalidParameterValue.Namespace", max_chars=30)
    state: str = param("", check=must(lambda text: text in ("", *STATES), f"one of {', '.join(STATES)}"))
    limit: int = param(50, code="InvalidParameterValue.Limit", low=1, high=MAX_LISTED)


@dataclass(frozen=True, slots=True)
class GetWorkflow:
    """Request."""

    workflow_id: str = param(max_chars=64)


async def list_workflows(services: Services, call: Call, request: ListWorkflows) -> Mapping[str, Any]:
    """ListWorkflows: the newest first, without their events but the last one."""
    found = [
        record
        for record in await services.workflows.of(call.caller.appid)
        if request.state in ("", record.state) and _is_of(record, request)
    ]
    found.sort(key=lambda record: record.began_unix_ms, reverse=True)
    return {
        "Workflows": [_summary(record) for record in found[: request.limit]],
        "TotalCount": len(found),
    }


async def get_workflow(services: Services, call: Call, request: GetWorkflow) -> Mapping[str, Any]:
    """GetWorkflow: with every event that was kept."""
    for record in await services.workflows.of(call.caller.appid, request.workflow_id):
        return {"Workflow": {**_summary(record), "Events": [_event(e) for e in record.events]}}
    raise BadRequest("ResourceNotFound", f"there is no workflow {request.workflow_id[:64]!r} in the last 7 days")


def _is_of(record: WorkflowRecord, request: ListWorkflows) -> bool:
    _, namespace, function, *_trigger = record.key.split("/")
    return request.namespace in ("", namespace) and request.function_name in ("", function)


def _summary(record: WorkflowRecord) -> dict[str, Any]:
    return {
        "WorkflowId": record.saga_id,
        "Workflow": record.workflow,
        "Resource": record.key,
        "State": record.state,
        "BeganUnixMs": record.began_unix_ms,
        "UnixMs": record.unix_ms,
        "Seq": record.seq,
        "LeftOut": record.left_out,
        "Last": _event(record.events[-1]) if record.events else None,
    }


def _event(event: WorkflowEvent) -> dict[str, Any]:
    return {
        "UnixMs": event.unix_ms,
        "Given": event.given,
        "Decided": event.decided,
        "StepId": event.step_id,
        "Attempt": event.attempt,
        "Reasons": [{"Code": reason.code, "Message": reason.message} for reason in event.reasons],
        "Module": event.module,
        "Operation": event.operation,
        "SentStepId": event.sent_step_id,
        "SentAttempt": event.sent_attempt,
        "DueUnixMs": event.due_unix_ms,
    }
