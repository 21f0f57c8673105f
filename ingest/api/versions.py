"""Handlers of the actions on versions. They answer when it is done and this gateway shows it, at the latest after some seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ingest.api.describe import page, time_text
from ingest.api.fields import Unsupported, param, short
from ingest.api.params import description, function_name, limit, namespace, offset, order, order_by
from ingest.api.services import Call, Services, new_command_id
from schemas.errors import BadRequest
from schemas.ids import LATEST, FunctionKey
from schemas.lifecycle import FunctionStatus
from schemas.records import AliasRecord, Command, VersionRecord

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PublishVersion:
    """Request of PublishVersion."""

    function_name: str = function_name()
    description: str = description()
    namespace: str = namespace()


@dataclass(frozen=True, slots=True)
class ListVersionByFunction:
    """Request of ListVersionByFunction."""

    function_name: str = function_name()
    namespace: str = namespace()
    offset: int = offset()
    limit: int = limit()
    order: str = order()
    order_by: str = order_by()


@dataclass(frozen=True, slots=True)
class DeleteFunctionVersion:
    """Request of DeleteFunctionVersion."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (
        Unsupported("ForceDelete", "a version in use is not deleted: point its aliases elsewhere first"),
    )

    function_name: str = function_name()
    qualifier: str = param(code="InvalidParameterValue.Qualifier", max_chars=64)
    namespace: str = namespace()


async def publish_version(services: Services, call: Call, request: PublishVersion) -> Answer:
    """PublishVersion."""
    key = call.function(request.namespace, request.function_name)
    record = services.function(key)
    if record.status != FunctionStatus.ACTIVE:
        raise BadRequest(
            "FailedOperation.FunctionStatusError",
            f"function {key.name!r} is {record.status}; a version can be published when it is Active",
        )
    command = ledger_command("publish-version", call, key, description=request.description)

    def published(number: str) -> tuple[str, Callable[[VersionRecord | None], bool]]:
        return f"{key}/{number}", lambda version: version is not None and version.command_id == command.command_id

    version = await services.change_ledger(
        services.versions, key, command, published, failed_code="FailedOperation.PublishVersion", what="the version"
    )
    assert version is not None
    config = version.config
    return {
        "FunctionVersion": version.version,
        "CodeSize": config.code_size,
        "MemorySize": config.memory_mib,
        "Description": version.description,
        "Handler": config.handler,
        "Timeout": config.timeout_s,
        "Runtime": config.runtime,
        "Namespace": key.namespace,
    }


async def list_version_by_function(services: Services, call: Call, request: ListVersionByFunction) -> Answer:
    """ListVersionByFunction: `$LATEST` counts as the newest, however long ago it was changed."""
    key = call.function(request.namespace, request.function_name)
    record = services.function(key)
    found = sorted(services.versions.within(str(key)), key=lambda v: int(v.version))
    rows = [_describe(v) for v in found]
    latest = {
        "Version": LATEST,
        "Description": record.description,
        "AddTime": time_text(record.created_unix_ms),
        "ModTime": time_text(record.modified_unix_ms),
        "Status": record.status,
    }
    rows.append(latest)
    if request.order == "DESC":
        rows.reverse()
    shown = page(rows, request.offset, request.limit)
    return {"FunctionVersion": [row["Version"] for row in shown], "Versions": shown, "TotalCount": len(rows)}


def _describe(version: VersionRecord) -> dict[str, str]:
    at = time_text(version.created_unix_ms)
    return {
        "Version": version.version,
        "Description": version.description,
        "AddTime": at,
        "ModTime": at,
        "Status": str(FunctionStatus.ACTIVE),
    }


async def delete_function_version(services: Services, call: Call, request: DeleteFunctionVersion) -> Answer:
    """DeleteFunctionVersion: of one that no alias and no trigger names."""
    await delete_version(services, call, call.function(request.namespace, request.function_name), request.qualifier)
    return {}


async def delete_version(services: Services, call: Call, key: FunctionKey, number: str) -> None:
    """Delete one published version; raises BadRequest when it is not there or in use."""
    services.function(key)
    if number == LATEST or services.versions.get(f"{key}/{number}") is None:
        raise BadRequest(
            "ResourceNotFound.FunctionVersion", f"function {key.name!r} has no published version {short(number)}"
        )
    check_no_trigger(services, key, number)
    command = ledger_command("delete-version", call, key, qualifier=number)
    await services.change_ledger(
        services.versions,
        key,
        command,
        lambda _result: (f"{key}/{number}", lambda version: version is None),
        failed_code="FailedOperation",
        what="the deletion",
    )


def check_no_trigger(services: Services, key: FunctionKey, name: str) -> None:
    """Raises BadRequest while a trigger names this version or alias."""
    bound = [trigger.name for trigger in services.triggers_of(key) if trigger.qualifier == name]
    if bound:
        raise BadRequest(
            "FailedOperation",
            f"{short(name)} of function {key.name!r} is in use by trigger {', '.join(bound[:3])}; delete that first",
        )


def ledger_command(
    kind: str,
    call: Call,
    key: FunctionKey,
    *,
    description: str | None = None,
    alias: AliasRecord | None = None,
    qualifier: str = "",
) -> Command:
    """A command about a function's versions or aliases."""
    return Command(
        command_id=new_command_id(),
        kind=kind,
        unix_ms=call.now_ms,
        appid=key.appid,
        uin=call.caller.uin,
        namespace=key.namespace,
        function=key.name,
        description=description,
        qualifier=qualifier,
        alias=alias,
    )
