"""Handlers of the actions on layers. Publishing and deleting answer when it is done, at the latest after some seconds.

A layer's content is a package like any function's: a zip in the store, named by its hash, so equal contents are kept once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ingest.api.describe import deleted_layer, layer_info, page, time_text
from ingest.api.fields import Unsupported, param, short
from ingest.api.function_requests import CodeFields, LayerVersionSimple
from ingest.api.packages import URL_VALID_S, source_of, take_in
from ingest.api.params import description, limit, must, offset
from ingest.api.services import Call, Services, new_command_id
from schemas.errors import BadRequest
from schemas.ids import is_layer_name, layer_key
from schemas.limits import LAYERS_PER_TENANT, VERSIONS_PER_LAYER
from schemas.records import FunctionConfig, LayerRef
from schemas.tenants import LayerRecord, TenantCommand

Answer = Mapping[str, Any]
_RUNTIME: Final = re.compile(
    r"(Python[23]\.[0-9]{1,2}|Nodejs[0-9]{1,2}\.[0-9]{1,2}|Php[0-9](\.[0-9])?|Go1|Java[0-9]{1,2}|CustomRuntime)\Z"
)
_MAX_RUNTIMES: Final = 20
_LICENSE_CHARS: Final = 512


def _runtimes(value: Any) -> str | None:
    if len(value) > _MAX_RUNTIMES:
        return f"has {len(value)} names; the limit is {_MAX_RUNTIMES}"
    bad = next((name for name in value if not _RUNTIME.match(name)), None)
    return None if bad is None else f"holds {short(bad)}, which is no runtime of SCF"


def _runtime(value: Any) -> str | None:
    return None if not value or _RUNTIME.match(value) else f"is {short(value)}, which is no runtime of SCF"


def _name() -> Any:
    shape = "1 to 64 letters, digits, - or _, start with a letter and end with a letter or digit"
    return param(code="InvalidParameterValue.LayerName", check=must(is_layer_name, shape))


def _version() -> Any:
    return param(code="InvalidParameterValue", low=1, high=2**31)


@dataclass(frozen=True, slots=True)
class PublishLayerVersion:
    """Request of PublishLayerVersion; Content is a structure Code."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (Unsupported("Tags", "layers carry no tags"),)

    layer_name: str = _name()
    compatible_runtimes: tuple[str, ...] = param(code="InvalidParameterValue.CompatibleRuntimes", check=_runtimes)
    content: CodeFields = param()
    description: str = description()
    license_info: str = param("", max_chars=_LICENSE_CHARS)


@dataclass(frozen=True, slots=True)
class LayerVersion:
    """Request of GetLayerVersion and DeleteLayerVersion."""

    layer_name: str = _name()
    layer_version: int = _version()


@dataclass(frozen=True, slots=True)
class ListLayerVersions:
    """Request of ListLayerVersions; a version is listed when it is for any of the runtimes."""

    layer_name: str = _name()
    compatible_runtime: tuple[str, ...] = param((), code="InvalidParameterValue.CompatibleRuntimes", check=_runtimes)


@dataclass(frozen=True, slots=True)
class ListLayers:
    """Request of ListLayers."""

    compatible_runtime: str = param("", code="InvalidParameterValue.CompatibleRuntimes", check=_runtime)
    offset: int = offset()
    limit: int = limit()
    search_key: str = param("", code="InvalidParameterValue.SearchKey", max_chars=128)


async def publish_layer_version(services: Services, call: Call, request: PublishLayerVersion) -> Answer:
    """PublishLayerVersion: 1, 2, ... of its layer, which the first one makes."""
    appid, name, content = call.caller.appid, request.layer_name, request.content
    if not request.compatible_runtimes:
        raise BadRequest("InvalidParameterValue.CompatibleRuntimes", "CompatibleRuntimes names no runtime")
    if not (content.zip_file or content.cos_bucket_name or content.cos_object_name):
        raise BadRequest(
            "InvalidParameterValue.Content", "give ZipFile (base64), or CosBucketName and CosObjectName, in Content"
        )
    source = source_of(content, None, region=services.region)
    _check_room(services, appid, name)
    package = await take_in(services.code, source, appid=appid)
    wanted = LayerRecord(
        seq=0,
        appid=appid,
        uin=call.caller.uin,
        name=name,
        version=0,
        content_sha256=package.sha256,
        content_size=len(package.data),
        runtimes=tuple(dict.fromkeys(request.compatible_runtimes)),
        description=request.description,
        license_info=request.license_info,
        created_unix_ms=call.now_ms,
        applied=-1,
        command_id="",
    )
    command = TenantCommand(new_command_id(), "publish-layer", call.now_ms, appid, call.caller.uin, layer=wanted)
    made = await services.publish_layer(wanted, command)
    return {"LayerVersion": made.version}


def _check_room(services: Services, appid: str, name: str) -> None:
    """The quick answer; streams decides."""
    there = services.layers.within(appid)
    names = {layer.name for layer in there}
    if name not in names and len(names) >= LAYERS_PER_TENANT:
        raise BadRequest("LimitExceeded.Layers", f"there are {len(names)} layers, which is the limit; delete one first")
    if sum(layer.name == name for layer in there) >= VERSIONS_PER_LAYER:
        raise BadRequest("LimitExceeded.LayerVersions", f"layer {name!r} has {VERSIONS_PER_LAYER} versions, the limit")


async def get_layer_version(services: Services, call: Call, request: LayerVersion) -> Answer:
    """GetLayerVersion: Location is a URL of the content as it was uploaded, good for ten minutes."""
    layer = find_layer(services, call.caller.appid, request.layer_name, request.layer_version)
    return {
        "CompatibleRuntimes": list(layer.runtimes),
        "CodeSha256": layer.content_sha256,
        "Location": await services.code.package_url(layer.content_sha256, valid_s=URL_VALID_S),
        "AddTime": time_text(layer.created_unix_ms),
        "Description": layer.description,
        "LicenseInfo": layer.license_info,
        "LayerVersion": layer.version,
        "LayerName": layer.name,
        "Status": "Active",
    }


async def list_layer_versions(services: Services, call: Call, request: ListLayerVersions) -> Answer:
    """ListLayerVersions: newest first."""
    found = [layer for layer in services.layers.within(call.caller.appid) if layer.name == request.layer_name]
    if not found:
        raise _no_layer(request.layer_name)
    wanted = set(request.compatible_runtime)
    fitting = [layer for layer in found if not wanted or wanted & set(layer.runtimes)]
    return {"LayerVersions": [layer_info(x) for x in sorted(fitting, key=lambda x: x.version, reverse=True)]}


async def list_layers(services: Services, call: Call, request: ListLayers) -> Answer:
    """ListLayers: of each layer the newest version (for that runtime), by name; SearchKey is found anywhere in the name."""
    newest: dict[str, LayerRecord] = {}
    for layer in services.layers.within(call.caller.appid):
        fits = not request.compatible_runtime or request.compatible_runtime in layer.runtimes
        known = newest.get(layer.name)
        if fits and request.search_key in layer.name and (known is None or layer.version > known.version):
            newest[layer.name] = layer
    ordered = [newest[name] for name in sorted(newest)]
    return {
        "Layers": [layer_info(layer) for layer in page(ordered, request.offset, request.limit)],
        "TotalCount": len(ordered),
    }


async def delete_layer_version(services: Services, call: Call, request: LayerVersion) -> Answer:
    """DeleteLayerVersion: of one that no function and no published version uses. With its last version a layer is gone."""
    appid = call.caller.appid
    layer = find_layer(services, appid, request.layer_name, request.layer_version)
    users = [
        where
        for where, config in _configurations(services, appid)
        if any(ref.name == layer.name and ref.version == layer.version for ref in config.layers)
    ]
    if users:
        raise BadRequest(
            "ResourceInUse.LayerVersion",
            f"version {layer.version} of layer {layer.name!r} is in use by {', '.join(sorted(set(users))[:3])};"
            " bind another one there first",
        )
    command = TenantCommand(new_command_id(), "delete-layer", call.now_ms, appid, call.caller.uin, layer=layer)
    await services.change_tenant(
        services.layers,
        layer_key(appid, layer.name, layer.version),
        command,
        None,
        failed_code="FailedOperation.DeleteLayerVersion",
        what=f"the deletion of version {layer.version} of layer {short(layer.name)}",
    )
    return {}


def bound_layers(services: Services, appid: str, wanted: Sequence[LayerVersionSimple]) -> tuple[LayerRef, ...] | None:
    """The tenant's layer versions that a request binds, frozen by the hash of their content; None when it says nothing of layers.

    Raises:
        BadRequest: ResourceNotFound.Layer or ResourceNotFound.LayerVersion.
    """
    if not wanted:
        return None
    found = [find_layer(services, appid, x.layer_name, x.layer_version) for x in wanted if not x.unbinds]
    return tuple(LayerRef(layer.name, layer.version, layer.content_sha256) for layer in found)


def layers_of(services: Services, appid: str, config: FunctionConfig | None) -> list[dict[str, Any]]:
    """Structures LayerVersionInfo of what a configuration binds, in its order."""
    shown = []
    for ref in config.layers if config is not None else ():
        layer = services.layers.get(layer_key(appid, ref.name, ref.version))
        is_the_one = layer is not None and layer.content_sha256 == ref.sha256  # else a new layer of the same name
        shown.append(layer_info(layer) if layer is not None and is_the_one else deleted_layer(ref))
    return shown


def _configurations(services: Services, appid: str) -> Iterator[tuple[str, FunctionConfig]]:
    """Every configuration of a tenant that runs or may run, with words for whose it is. Costs a scan: for rare calls."""
    for scope in services.functions.scopes(f"{appid}/"):
        for function in services.functions.within(scope):
            named = f"function {function.name!r} of namespace {function.namespace!r}"
            yield from ((named, config) for config in (function.serving, function.proposed) if config is not None)
            for version in services.versions.within(f"{scope}/{function.name}"):
                yield f"version {version.version} of {named}", version.config


def find_layer(services: Services, appid: str, name: str, version: int) -> LayerRecord:
    """One version of one of the tenant's layers; raises BadRequest, ResourceNotFound.Layer or ResourceNotFound.LayerVersion."""
    layer = services.layers.get(layer_key(appid, name, version))
    if layer is not None:
        return layer
    if any(known.name == name for known in services.layers.within(appid)):
        raise BadRequest("ResourceNotFound.LayerVersion", f"layer {short(name)} has no version {version}")
    raise _no_layer(name)


def _no_layer(name: str) -> BadRequest:
    return BadRequest("ResourceNotFound.Layer", f"layer {short(name)} does not exist; PublishLayerVersion makes it")
