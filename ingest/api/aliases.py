"""Handlers of the actions on aliases. They answer when it is done and this gateway shows it, at the latest after some seconds.

Every function has the alias `$DEFAULT`, which leads to `$LATEST` until UpdateAlias points it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ingest.api.describe import page, time_text
from ingest.api.fields import param, short
from ingest.api.params import DEFAULT_PAGE, PAGE_LIMIT, description, function_name, must, namespace
from ingest.api.routing import RoutingConfig, describe_route, is_version, route_of, version_name
from ingest.api.services import Call, Services
from ingest.api.versions import check_no_trigger, ledger_command
from schemas.errors import BadRequest
from schemas.ids import DEFAULT_ALIAS, LATEST, FunctionKey, is_alias
from schemas.records import AliasRecord, FunctionRecord

Answer = Mapping[str, Any]


def _name() -> Any:
    shape = "1 to 64 letters, digits, - or _, and start with a letter"
    check = must(lambda name: name == DEFAULT_ALIAS or is_alias(name), shape)
    return param(code="InvalidParameterValue.Alias", check=check)


def _count(default: int, code: str, high: int) -> Any:
    def check(text: str) -> str | None:
        good = text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) <= high
        return None if good else f"is {short(text)}; it must be the text of an integer from 0 to {high}"

    return param(str(default), code=code, check=check)


@dataclass(frozen=True, slots=True)
class CreateAlias:
    """Request of CreateAlias."""

    name: str = _name()
    function_name: str = function_name()
    function_version: str = version_name()
    namespace: str = namespace()
    routing_config: RoutingConfig | None = param(None)
    description: str = description()


@dataclass(frozen=True, slots=True)
class UpdateAlias:
    """Request of UpdateAlias. Without RoutingConfig all calls go to FunctionVersion; an absent Description stays."""

    function_name: str = function_name()
    name: str = _name()
    function_version: str = version_name()
    namespace: str = namespace()
    routing_config: RoutingConfig | None = param(None)
    description: str | None = description(None)


@dataclass(frozen=True, slots=True)
class OneAlias:
    """Request of GetAlias and DeleteAlias."""

    function_name: str = function_name()
    name: str = _name()
    namespace: str = namespace()


@dataclass(frozen=True, slots=True)
class ListAliases:
    """Request of ListAliases; Offset and Limit are texts in SCF."""

    function_name: str = function_name()
    namespace: str = namespace()
    function_version: str = param(
        "", code="InvalidParameterValue.Qualifier", check=must(is_version, "a version's number, or $LATEST")
    )
    offset: str = _count(0, "InvalidParameterValue.Offset", 999_999_999)
    limit: str = _count(DEFAULT_PAGE, "InvalidParameterValue.Limit", PAGE_LIMIT)


async def create_alias(services: Services, call: Call, request: CreateAlias) -> Answer:
    """CreateAlias."""
    key = call.function(request.namespace, request.function_name)
    record = services.function(key)
    if request.name in {alias.name for alias in aliases_of(services, key, record)}:
        raise BadRequest("ResourceInUse.Alias", f"function {key.name!r} has an alias {request.name!r} already")
    fresh = replace(_fresh(record, request.name), created_unix_ms=call.now_ms)
    await _set(services, call, request, replace(fresh, description=request.description), kind="create-alias")
    return {}


async def update_alias(services: Services, call: Call, request: UpdateAlias) -> Answer:
    """UpdateAlias."""
    _, alias = _existing(services, call, request.namespace, request.function_name, request.name)
    description = alias.description if request.description is None else request.description
    await _set(services, call, request, replace(alias, description=description), kind="update-alias")
    return {}


async def _set(
    services: Services, call: Call, request: CreateAlias | UpdateAlias, alias: AliasRecord, *, kind: str
) -> None:
    key = call.function(request.namespace, request.function_name)
    route = route_of(request.routing_config, request.function_version)
    wanted = replace(
        alias,
        version=request.function_version,
        additional=route.additional,
        weight=route.weight,
        matches=route.matches,
    )
    for version in {wanted.version, wanted.additional or LATEST, *(match.version for match in wanted.matches)}:
        if version != LATEST and services.versions.get(f"{key}/{version}") is None:
            raise BadRequest("ResourceNotFound.FunctionVersion", f"function {key.name!r} has no version {version!r}")
    command = ledger_command(kind, call, key, alias=wanted)
    await services.change_ledger(
        services.aliases,
        key,
        command,
        lambda _result: (
            f"{key}/{alias.name}",
            lambda seen: seen is not None and seen.command_id == command.command_id,
        ),
        failed_code="FailedOperation.CreateAlias" if kind == "create-alias" else "FailedOperation.UpdateAlias",
        what="the alias",
    )


async def get_alias(services: Services, call: Call, request: OneAlias) -> Answer:
    """GetAlias."""
    _, alias = _existing(services, call, request.namespace, request.function_name, request.name)
    return _describe(alias)


async def list_aliases(services: Services, call: Call, request: ListAliases) -> Answer:
    """ListAliases: by name; with FunctionVersion only those whose main version it is."""
    key = call.function(request.namespace, request.function_name)
    found = [
        alias
        for alias in aliases_of(services, key, services.function(key))
        if request.function_version in ("", alias.version)
    ]
    shown = page(found, int(request.offset), int(request.limit))
    return {"Aliases": [_describe(alias) for alias in shown], "TotalCount": len(found)}


async def delete_alias(services: Services, call: Call, request: OneAlias) -> Answer:
    """DeleteAlias: of one that no trigger names."""
    key, alias = _existing(services, call, request.namespace, request.function_name, request.name)
    if alias.name == DEFAULT_ALIAS:
        raise BadRequest("InvalidParameterValue.Alias", f"alias {DEFAULT_ALIAS} belongs to every function")
    check_no_trigger(services, key, alias.name)
    await services.change_ledger(
        services.aliases,
        key,
        ledger_command("delete-alias", call, key, qualifier=alias.name),
        lambda _result: (f"{key}/{alias.name}", lambda seen: seen is None),
        failed_code="FailedOperation.DeleteAlias",
        what="the deletion",
    )
    return {}


def aliases_of(services: Services, key: FunctionKey, record: FunctionRecord) -> list[AliasRecord]:
    """All aliases of a function, by name, `$DEFAULT` among them."""
    found = services.aliases.within(str(key))
    if any(alias.name == DEFAULT_ALIAS for alias in found):
        return found
    return [_fresh(record, DEFAULT_ALIAS), *found]


def _existing(
    services: Services, call: Call, namespace: str, function: str, name: str
) -> tuple[FunctionKey, AliasRecord]:
    key = call.function(namespace, function)
    record = services.function(key)
    alias = services.aliases.get(f"{key}/{name}")
    if alias is None and name == DEFAULT_ALIAS:
        alias = _fresh(record, DEFAULT_ALIAS)
    if alias is None:
        raise BadRequest("ResourceNotFound.Alias", f"function {key.name!r} has no alias {name!r}")
    return key, alias


def _fresh(record: FunctionRecord, name: str) -> AliasRecord:
    """An alias as it is before anybody changed it."""
    made_ms = record.created_unix_ms
    return AliasRecord(
        0, record.appid, record.uin, record.namespace, record.name, name, LATEST, "", made_ms, made_ms, -1, ""
    )


def _describe(alias: AliasRecord) -> dict[str, Any]:
    return {
        "Name": alias.name,
        "FunctionVersion": alias.version,
        "RoutingConfig": describe_route(alias),
        "Description": alias.description,
        "AddTime": time_text(alias.created_unix_ms),
        "ModTime": time_text(alias.modified_unix_ms),
    }
