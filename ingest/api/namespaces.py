"""Handlers of the actions on namespaces. They answer when it is done, at the latest after some seconds.

`default` is always there, made or not. A namespace that holds functions exists too, whatever the registry says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from ingest.api.describe import page, time_text
from ingest.api.fields import Unsupported, param, short
from ingest.api.params import description, limit, must, offset, order
from ingest.api.services import Call, Services, new_command_id
from schemas.errors import BadRequest
from schemas.ids import DEFAULT_NAMESPACE, is_namespace
from schemas.lifecycle import GOING
from schemas.limits import NAMESPACES_PER_TENANT
from schemas.tenants import NamespaceRecord, TenantCommand

Answer = Mapping[str, Any]
_MAX_KEYS: Final = 10
_SEARCHED: Final[Mapping[str, Callable[[NamespaceRecord], str]]] = {
    "Namespace": lambda n: n.name,
    "Description": lambda n: n.description,
}


def _name() -> Any:
    shape = "1 to 30 letters, digits, - or _, start with a letter and end with a letter or digit"
    return param(code="InvalidParameterValue.Namespace", check=must(is_namespace, shape))


@dataclass(frozen=True, slots=True)
class CreateNamespace:
    """Request of CreateNamespace."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (
        Unsupported("ResourceEnv", "namespaces are on the fabric's own hosts, not in a TKE cluster"),
    )

    namespace: str = _name()
    description: str = description()


@dataclass(frozen=True, slots=True)
class UpdateNamespace:
    """Request of UpdateNamespace; the description is replaced."""

    namespace: str = _name()
    description: str = description()


@dataclass(frozen=True, slots=True)
class DeleteNamespace:
    """Request of DeleteNamespace."""

    namespace: str = _name()


@dataclass(frozen=True, slots=True)
class SearchKey:
    """One condition of a search: the row's `key` contains `value`."""

    key: str = param(code="InvalidParameterValue.SearchKey", choices=tuple(_SEARCHED))
    value: str = param("", code="InvalidParameterValue.SearchKey", max_chars=128)


@dataclass(frozen=True, slots=True)
class ListNamespaces:
    """Request of ListNamespaces; all conditions of the search hold for what is listed."""

    limit: int = limit()
    offset: int = offset()
    orderby: str = param(
        "AddTime",
        code="InvalidParameterValue.OrderBy",
        choices=("AddTime", "ModTime", "Name", "name", "updatetime"),
    )
    order: str = order()
    search_key: tuple[SearchKey, ...] = param((), code="InvalidParameterValue.SearchKey")


async def create_namespace(services: Services, call: Call, request: CreateNamespace) -> Answer:
    """CreateNamespace."""
    existing = {n.name for n in namespaces_of(services, call.caller.appid)}
    if request.namespace in existing:
        raise BadRequest("ResourceInUse.Namespace", f"namespace {request.namespace!r} exists already")
    if len(existing) >= NAMESPACES_PER_TENANT:
        raise BadRequest(
            "LimitExceeded.Namespace",
            f"there are {len(existing)} namespaces, {DEFAULT_NAMESPACE} among them, which is the limit",
        )
    wanted = _fresh(services, call.caller.appid, request.namespace)
    wanted = replace(wanted, description=request.description, created_unix_ms=call.now_ms)
    await _send(services, call, "create-namespace", wanted)
    return {}


async def update_namespace(services: Services, call: Call, request: UpdateNamespace) -> Answer:
    """UpdateNamespace."""
    existing = _existing(services, call, request.namespace)
    await _send(services, call, "update-namespace", replace(existing, description=request.description))
    return {}


async def delete_namespace(services: Services, call: Call, request: DeleteNamespace) -> Answer:
    """DeleteNamespace: of an empty one. Functions that are being deleted don't count."""
    if request.namespace == DEFAULT_NAMESPACE:
        raise BadRequest("InvalidParameterValue.DefaultNamespace", f"namespace {DEFAULT_NAMESPACE} can't be deleted")
    existing = _existing(services, call, request.namespace)
    scope = f"{call.caller.appid}/{request.namespace}"
    left = [f.name for f in services.functions.within(scope) if f.status not in GOING]
    if left:
        raise BadRequest(
            "ResourceInUse.Namespace",
            f"namespace {request.namespace!r} holds {len(left)} functions ({', '.join(left[:3])}); delete them first",
        )
    await _send(services, call, "delete-namespace", existing)
    return {}


async def list_namespaces(services: Services, call: Call, request: ListNamespaces) -> Answer:
    """ListNamespaces."""
    if len(request.search_key) > _MAX_KEYS:
        raise BadRequest("InvalidParameterValue.SearchKey", f"there are more than {_MAX_KEYS} search keys")
    found = [
        n
        for n in namespaces_of(services, call.caller.appid)
        if all(wanted.value in _SEARCHED[wanted.key](n) for wanted in request.search_key)
    ]
    ordered = sorted(found, key=_order_of(request.orderby), reverse=request.order == "DESC")
    return {
        "Namespaces": [_describe(n) for n in page(ordered, request.offset, request.limit)],
        "TotalCount": len(found),
    }


def namespaces_of(services: Services, appid: str) -> Sequence[NamespaceRecord]:
    """All namespaces of a tenant, by name: those that were made, `default`, and any other that holds functions."""
    found = {n.name: n for n in services.namespaces.within(appid)}
    holding = [scope.rpartition("/")[2] for scope in services.functions.scopes(f"{appid}/")]
    unmade = {DEFAULT_NAMESPACE, *holding} - found.keys()
    if unmade:
        fresh = _fresh(services, appid, DEFAULT_NAMESPACE)
        found |= {name: replace(fresh, name=name) for name in unmade}
    return [found[name] for name in sorted(found)]


def _fresh(services: Services, appid: str, name: str) -> NamespaceRecord:
    """A namespace without a record, as old as the tenant's first key."""
    owner = services.owner
    keys = [k for k in services.keys.within("") if k.appid == appid]
    known = [k.created_unix_ms for k in keys] + ([owner.since_unix_ms] if appid == owner.appid else [])
    since_ms = min(known, default=0)
    uin = owner.uin if appid == owner.appid else next((k.uin for k in keys), "")
    return NamespaceRecord(0, appid, uin, name, "", since_ms, since_ms, -1, "")


def _existing(services: Services, call: Call, name: str) -> NamespaceRecord:
    services.namespace(call.caller.appid, name)
    record = services.namespaces.get(f"{call.caller.appid}/{name}")
    return record if record is not None else _fresh(services, call.caller.appid, name)


async def _send(services: Services, call: Call, kind: str, record: NamespaceRecord) -> None:
    command = TenantCommand(new_command_id(), kind, call.now_ms, call.caller.appid, call.caller.uin, namespace=record)
    shown = None if kind == "delete-namespace" else replace(record, modified_unix_ms=call.now_ms)
    await services.change_tenant(
        services.namespaces,
        f"{record.appid}/{record.name}",
        command,
        shown,
        failed_code="FailedOperation",
        what=f"namespace {short(record.name)}",
    )


def _order_of(field: str) -> Callable[[NamespaceRecord], tuple[object, ...]]:
    if field in ("Name", "name"):
        return lambda n: (n.name,)
    if field in ("ModTime", "updatetime"):
        return lambda n: (n.modified_unix_ms, n.name)
    return lambda n: (n.created_unix_ms, n.name)


def _describe(record: NamespaceRecord) -> dict[str, str]:
    return {
        "Name": record.name,
        "Description": record.description,
        "Type": DEFAULT_NAMESPACE,
        "AddTime": time_text(record.created_unix_ms),
        "ModTime": time_text(record.modified_unix_ms),
    }
