"""Handlers of the actions on functions. They answer at once; streams works the commands off (DESIGN.md section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ingest.api.concurrency import concurrency_of
from ingest.api.describe import function_detail, function_summary, newest_config, page
from ingest.api.fields import short
from ingest.api.function_plans import (
    PackageFacts,
    check_create,
    check_new_name,
    check_update,
    matches,
    plan_copy,
    plan_create,
    plan_delete,
    plan_update_code,
    plan_update_configuration,
)
from ingest.api.function_requests import (
    CodeFields,
    CopyFunction,
    CreateFunction,
    DeleteFunction,
    GetFunction,
    GetFunctionAddress,
    ListFunctions,
    UpdateFunctionCode,
    UpdateFunctionConfiguration,
)
from ingest.api.layers import bound_layers, layers_of
from ingest.api.packages import URL_VALID_S, source_of, take_in
from ingest.api.params import Filter
from ingest.api.routing import as_function, main_version
from ingest.api.services import Call, Services, new_command_id
from ingest.api.triggers import send_delete
from ingest.api.versions import delete_version
from schemas.errors import BadRequest
from schemas.records import FunctionRecord

Answer = Mapping[str, Any]
_FILTERS: Final = ("Status", "Runtime", "Type")
_MAX_FILTERS: Final = 10
_MAX_FILTER_VALUES: Final = 20


async def create_function(services: Services, call: Call, request: CreateFunction) -> Answer:
    """CreateFunction: answers when the package is in the store and the command in its topic; the function is then Creating."""
    key = call.function(request.namespace, request.function_name)
    config = check_create(request)
    source = source_of(request.code, request.code_source, region=services.region)
    _check_new(services, call, request)
    bound_layers(services, key.appid, request.layers)
    package = await take_in(services.code, source, appid=key.appid)
    # Again, for other calls may have gone by while the package was stored.
    _check_new(services, call, request)
    plan = plan_create(
        request,
        call,
        key=key,
        config=config,
        package=PackageFacts(package.sha256, len(package.data)),
        layers=bound_layers(services, key.appid, request.layers) or (),
        command_id=new_command_id(),
    )
    await services.send_function_command(key, plan.command, plan.shown)
    return {}


def _check_new(services: Services, call: Call, request: CreateFunction) -> None:
    key = call.function(request.namespace, request.function_name)
    scope = services.namespace(key.appid, key.namespace)
    check_new_name(key, services.functions.get(str(key)), count=len(services.functions.within(scope)))


async def copy_function(services: Services, call: Call, request: CopyFunction) -> Answer:
    """CopyFunction: the copy shares the package in the store. Triggers, versions and aliases are not copied."""
    key = call.function(request.target_namespace, request.new_function_name)
    origin = call.function(request.namespace, request.function_name)
    if request.target_region not in ("", services.region):
        raise BadRequest(
            "UnsupportedOperation.Region", f"this fabric is region {services.region}; there is no other to copy to"
        )
    source = services.function(origin)
    scope = services.namespace(key.appid, key.namespace)
    if key == origin:
        raise BadRequest("InvalidParameterValue.FunctionName", f"function {key.name!r} can't be copied to itself")
    existing = services.functions.get(str(key))
    if existing is None or not request.override:
        check_new_name(key, existing, count=len(services.functions.within(scope)))
    plan = plan_copy(request, call, source=source, key=key, existing=existing, command_id=new_command_id())
    await services.send_function_command(key, plan.command, plan.shown)
    return {}


async def update_function_code(services: Services, call: Call, request: UpdateFunctionCode) -> Answer:
    """UpdateFunctionCode."""
    key = call.function(request.namespace, request.function_name)
    beside = CodeFields(request.zip_file, request.cos_bucket_name, request.cos_object_name, request.cos_bucket_region)
    given_beside = any((request.zip_file, request.cos_bucket_name, request.cos_object_name))
    if request.code is not None and given_beside:
        raise BadRequest(
            "InvalidParameterValue.Code", "give the package in Code or in the fields beside it, not in both"
        )
    source = source_of(request.code or beside, request.code_source, region=services.region)
    check_update(services.function(key))
    package = await take_in(services.code, source, appid=key.appid)
    facts = PackageFacts(package.sha256, len(package.data))
    plan = plan_update_code(
        request, call, key=key, existing=services.function(key), package=facts, command_id=new_command_id()
    )
    await services.send_function_command(key, plan.command, plan.shown)
    return {}


async def update_function_configuration(services: Services, call: Call, request: UpdateFunctionConfiguration) -> Answer:
    """UpdateFunctionConfiguration."""
    key = call.function(request.namespace, request.function_name)
    existing = services.function(key)
    plan = plan_update_configuration(
        request,
        call,
        key=key,
        existing=existing,
        layers=bound_layers(services, key.appid, request.layers),
        command_id=new_command_id(),
    )
    await services.send_function_command(key, plan.command, plan.shown)
    return {}


async def delete_function(services: Services, call: Call, request: DeleteFunction) -> Answer:
    """DeleteFunction: its triggers go first, then the function with all versions and aliases. Dead-letter topics stay: they hold data."""
    key = call.function(request.namespace, request.function_name)
    if request.qualifier:
        await delete_version(services, call, key, request.qualifier)
        return {}
    plan = plan_delete(services.function(key), call, key=key, command_id=new_command_id())
    for trigger in services.triggers_of(key):
        await send_delete(services, call, trigger)
    await services.send_function_command(key, plan.command, plan.shown, ends=True)
    return {}


async def get_function(services: Services, call: Call, request: GetFunction) -> Answer:
    """GetFunction."""
    key = call.function(request.namespace, request.function_name)
    record = services.function(key)
    version = main_version(services, key, request.qualifier, code="ResourceNotFound.FunctionVersion")
    triggers = [t for t in services.triggers_of(key) if version is None or t.qualifier == version.version]
    shown = as_function(record, version)
    layers = layers_of(services, key.appid, newest_config(shown))
    return function_detail(shown, triggers, layers, concurrency_of(services, key))


async def get_function_address(services: Services, call: Call, request: GetFunctionAddress) -> Answer:
    """GetFunctionAddress: a URL of the package as it was uploaded, good for ten minutes, and its SHA-256 in hex."""
    key = call.function(request.namespace, request.function_name)
    record = services.function(key)
    version = main_version(services, key, request.qualifier, code="ResourceNotFound.FunctionVersion")
    config = newest_config(as_function(record, version))
    if config is None:
        raise BadRequest("FailedOperation.FunctionStatusError", f"function {key.name!r} is {record.status}: no package")
    url = await services.code.package_url(config.code_sha256, valid_s=URL_VALID_S)
    return {"Url": url, "CodeSha256": config.code_sha256}


async def list_functions(services: Services, call: Call, request: ListFunctions) -> Answer:
    """ListFunctions: those whose name contains SearchKey and whose description contains Description, filtered, ordered, one page."""
    filters = check_filters(request.filters)
    found = [
        record
        for record in services.functions.within(services.namespace(call.caller.appid, request.namespace))
        if request.search_key in record.name and request.description in record.description and matches(record, filters)
    ]
    ordered = _ordered(found, request.orderby, descending=request.order == "DESC")
    return {
        "Functions": [
            function_summary(record, concurrency_of(services, call.function(record.namespace, record.name)))
            for record in page(ordered, request.offset, request.limit)
        ],
        "TotalCount": len(found),
    }


def check_filters(filters: Sequence[Filter]) -> dict[str, tuple[str, ...]]:
    """Filters by name; raises BadRequest for those that SCF has and Penstock does not."""
    if len(filters) > _MAX_FILTERS:
        raise BadRequest(
            "InvalidParameterValue.Filters", f"there are {len(filters)} filters; the limit is {_MAX_FILTERS}"
        )
    for item in filters:
        if item.name not in _FILTERS:
            raise BadRequest(
                "UnsupportedOperation",
                f"filter {short(item.name)} is not supported by Penstock; there are {', '.join(_FILTERS)}",
            )
        if len(item.values) > _MAX_FILTER_VALUES:
            raise BadRequest(
                "InvalidParameterValue.Filters", f"filter {item.name} has more than {_MAX_FILTER_VALUES} values"
            )
    return {item.name: item.values for item in filters}


def _ordered(records: list[FunctionRecord], by: str, *, descending: bool) -> list[FunctionRecord]:
    if by == "FunctionName":
        return sorted(records, key=lambda r: r.name, reverse=descending)
    if by == "ModTime":
        return sorted(records, key=lambda r: (r.modified_unix_ms, r.name), reverse=descending)
    return sorted(records, key=lambda r: (r.created_unix_ms, r.name), reverse=descending)
