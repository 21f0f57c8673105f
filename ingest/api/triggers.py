"""Handlers of the actions on triggers. They answer when it is done, at the latest after some seconds (DESIGN.md section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from ingest.api.ckafka import changed_desc, parse_trigger_desc
from ingest.api.describe import page, trigger_info
from ingest.api.fields import Unsupported, param, short
from ingest.api.params import (
    TRIGGER_TYPES,
    Filter,
    description,
    function_name,
    limit,
    namespace,
    offset,
    order,
    order_by,
    qualifier,
    trigger_name,
)
from ingest.api.routing import check_qualifier
from ingest.api.services import Call, Services, accepted, new_command_id
from schemas.errors import BadRequest
from schemas.ids import FunctionKey, TriggerKey, dead_letter_topic, is_topic
from schemas.limits import TRIGGERS_PER_KIND
from schemas.records import Command, FunctionRecord, KafkaSource, TriggerRecord

Answer = Mapping[str, Any]


_FOR_TIMERS: Final = (
    Unsupported(
        "CustomArgument",
        "only timer triggers have it, and they are not built",
        code="InvalidParameterValue.CustomArgument",
    ),
)


def _enable(default: str | None) -> Any:
    rule = {"code": "InvalidParameterValue.Enable", "choices": ("OPEN", "CLOSE")}
    return param(**rule) if default is None else param(default, **rule)


def _type() -> Any:
    return param(code="InvalidParameterValue.Type", choices=TRIGGER_TYPES)


@dataclass(frozen=True, slots=True)
class CreateTrigger:
    """Request of CreateTrigger."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = _FOR_TIMERS

    function_name: str = function_name()
    trigger_name: str = trigger_name()
    type: str = _type()
    trigger_desc: str = param("{}", code="InvalidParameterValue.TriggerDesc")
    namespace: str = namespace()
    qualifier: str = qualifier()
    enable: str = _enable("OPEN")
    description: str = description()


@dataclass(frozen=True, slots=True)
class DeleteTrigger:
    """Request of DeleteTrigger; TriggerDesc matters for cos triggers only."""

    function_name: str = function_name()
    trigger_name: str = trigger_name()
    type: str = _type()
    namespace: str = namespace()
    trigger_desc: str = param("")
    qualifier: str = qualifier("")


@dataclass(frozen=True, slots=True)
class UpdateTrigger:
    """Request of UpdateTrigger; a field that is absent stays, in TriggerDesc too. Qualifier is the one that the trigger was made with."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = _FOR_TIMERS

    function_name: str = function_name()
    trigger_name: str = trigger_name()
    type: str = _type()
    enable: str = param("", code="InvalidParameterValue.Enable", choices=("OPEN", "CLOSE"))
    qualifier: str = qualifier("")
    namespace: str = namespace()
    trigger_desc: str = param("", code="InvalidParameterValue.TriggerDesc")
    description: str | None = description(None)


@dataclass(frozen=True, slots=True)
class UpdateTriggerStatus:
    """Request of UpdateTriggerStatus; TriggerDesc matters for cos triggers only."""

    enable: str = _enable(None)
    function_name: str = function_name()
    trigger_name: str = trigger_name()
    type: str = _type()
    qualifier: str = qualifier("")
    namespace: str = namespace()
    trigger_desc: str = param("")


@dataclass(frozen=True, slots=True)
class ListTriggers:
    """Request of ListTriggers."""

    function_name: str = function_name()
    namespace: str = namespace()
    offset: int = offset()
    limit: int = limit()
    order_by: str = order_by()
    order: str = order()
    filters: tuple[Filter, ...] = param((), code="InvalidParameterValue.Filters")


async def create_trigger(services: Services, call: Call, request: CreateTrigger) -> Answer:
    """CreateTrigger: answers when the start offsets are committed for the trigger's group and the registry has the trigger.

    `latest` means the ends of the partitions at that moment; partitions added later are read from their beginning.
    """
    key = TriggerKey(call.function(request.namespace, request.function_name), request.trigger_name)
    command_id = new_command_id()
    _check_type(request.type)
    is_owner = call.caller.appid == services.owner.appid
    source = parse_trigger_desc(request.trigger_desc, key, generation=command_id[:8], is_owner=is_owner)
    _check_dead_letter_topic(key)
    check_new_trigger(services.function(key.function), services.triggers_of(key.function), key)
    check_qualifier(services, key.function, request.qualifier)
    record = _record(request, call, key, source, command_id)
    with services.creating(key):
        ticket = await services.send_trigger_command(key, _command("create-trigger", call, record))
        await accepted(ticket, failed_code="FailedOperation.CreateTrigger", what="the trigger")
        services.trigger_accepted(key, ticket, command_id, record)
    return {"TriggerInfo": trigger_info(record)}


def check_new_trigger(function: FunctionRecord, triggers: Sequence[TriggerRecord], key: TriggerKey) -> None:
    """Raises BadRequest when the function can't have this trigger now."""
    if function.serving is None:
        raise BadRequest(
            "FailedOperation.FunctionStatusError",
            f"function {function.name!r} is {function.status} and can't run yet; make the trigger when it is Active",
        )
    if any(trigger.name == key.name for trigger in triggers):
        raise BadRequest("ResourceInUse.Trigger", f"function {function.name!r} has a trigger {key.name!r} already")
    same_kind = sum(trigger.type == "ckafka" for trigger in triggers)
    if same_kind >= TRIGGERS_PER_KIND:
        raise BadRequest(
            "LimitExceeded.Trigger", f"function {function.name!r} has {same_kind} ckafka triggers, which is the limit"
        )


def _check_type(trigger_type: str) -> None:
    if trigger_type != "ckafka":
        raise BadRequest(
            "UnsupportedOperation.Trigger",
            f"{trigger_type} triggers are not supported by this release of Penstock yet; ckafka triggers are",
        )


def _check_dead_letter_topic(key: TriggerKey) -> None:
    if not is_topic(dead_letter_topic(key)):
        raise BadRequest(
            "InvalidParameterValue.TriggerName",
            "the trigger's name can't be part of a topic name (its dead-letter topic)",
        )


def _record(request: CreateTrigger, call: Call, key: TriggerKey, source: KafkaSource, command_id: str) -> TriggerRecord:
    return TriggerRecord(
        seq=0,
        appid=key.function.appid,
        uin=call.caller.uin,
        namespace=key.function.namespace,
        function=key.function.name,
        name=key.name,
        type=request.type,
        qualifier=request.qualifier,
        enabled=request.enable == "OPEN",
        trigger_desc=request.trigger_desc,
        custom_argument="",
        created_unix_ms=call.now_ms,
        modified_unix_ms=call.now_ms,
        applied=-1,
        command_id=command_id,
        kafka=source,
        description=request.description,
    )


def _command(kind: str, call: Call, record: TriggerRecord) -> Command:
    return Command(
        command_id=record.command_id,
        kind=kind,
        unix_ms=call.now_ms,
        appid=record.appid,
        uin=call.caller.uin,
        namespace=record.namespace,
        function=record.function,
        trigger=record,
    )


def _key_of(record: TriggerRecord) -> TriggerKey:
    return TriggerKey(FunctionKey(record.appid, record.namespace, record.function), record.name)


def _existing(
    services: Services, call: Call, request: DeleteTrigger | UpdateTrigger | UpdateTriggerStatus
) -> TriggerRecord:
    key = TriggerKey(call.function(request.namespace, request.function_name), request.trigger_name)
    services.function(key.function)
    record = services.triggers.get(str(key))
    same = record is not None and record.type == request.type and request.qualifier in ("", record.qualifier)
    if record is None or not same:
        raise BadRequest(
            "ResourceNotFound.Trigger",
            f"function {key.function.name!r} has no {request.type} trigger {short(request.trigger_name)}",
        )
    return record


async def delete_trigger(services: Services, call: Call, request: DeleteTrigger) -> Answer:
    """DeleteTrigger: answers when the registry has let it go. Its workflow then deletes its consumer group; its dead letters stay."""
    record = _existing(services, call, request)
    gone = replace(record, command_id=new_command_id(), modified_unix_ms=call.now_ms)
    key = _key_of(record)
    ticket = await services.send_trigger_command(key, _command("delete-trigger", call, gone))
    await accepted(ticket, failed_code="FailedOperation.DeleteTrigger", what="the deletion")
    services.trigger_accepted(key, ticket, gone.command_id, None)
    return {}


async def send_delete(services: Services, call: Call, record: TriggerRecord) -> None:
    """Send the deletion of a function's trigger without waiting for its outcome."""
    gone = replace(record, command_id=new_command_id(), modified_unix_ms=call.now_ms)
    key = _key_of(record)
    ticket = await services.send_trigger_command(key, _command("delete-trigger", call, gone))
    services.trigger_accepted(key, ticket, gone.command_id, None)


async def update_trigger_status(services: Services, call: Call, request: UpdateTriggerStatus) -> Answer:
    """UpdateTriggerStatus: CLOSE stops the trigger at its committed offsets, OPEN goes on from there."""
    record = _existing(services, call, request)
    changed = replace(record, enabled=request.enable == "OPEN")
    await _change(services, call, changed, failed_code="FailedOperation.UpdateTriggerStatus")
    return {}


async def update_trigger(services: Services, call: Call, request: UpdateTrigger) -> Answer:
    """UpdateTrigger: batch, concurrency, retries and order of a ckafka trigger; it goes on at its committed offsets."""
    record = _existing(services, call, request)
    changed = record
    if request.enable:
        changed = replace(changed, enabled=request.enable == "OPEN")
    if request.description is not None:
        changed = replace(changed, description=request.description)
    if request.trigger_desc and record.kafka is not None:
        text, source = changed_desc(record.trigger_desc, request.trigger_desc, _key_of(record), record.kafka)
        changed = replace(changed, trigger_desc=text, kafka=source)
    await _change(services, call, changed, failed_code="FailedOperation.UpdateTrigger")
    return {}


async def _change(services: Services, call: Call, wanted: TriggerRecord, *, failed_code: str) -> None:
    changed = replace(wanted, command_id=new_command_id(), modified_unix_ms=call.now_ms, applied=-1)
    key = _key_of(changed)
    ticket = await services.send_trigger_command(key, _command("update-trigger", call, changed))
    await accepted(ticket, failed_code=failed_code, what="the change")
    services.trigger_accepted(key, ticket, changed.command_id, changed)


async def list_triggers(services: Services, call: Call, request: ListTriggers) -> Answer:
    """ListTriggers."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    if request.filters:
        raise BadRequest("UnsupportedOperation", "Filters is not supported by Penstock for triggers; leave it out")
    by_modified = request.order_by.lower().startswith("mod")
    found = sorted(
        services.triggers_of(key),
        key=lambda t: (t.modified_unix_ms if by_modified else t.created_unix_ms, t.name),
        reverse=request.order == "DESC",
    )
    infos = [{**trigger_info(t), "BoundResources": ""} for t in page(found, request.offset, request.limit)]
    return {"Triggers": infos, "TotalCount": len(found)}
