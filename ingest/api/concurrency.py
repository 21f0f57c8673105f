"""Handlers of the actions on concurrency: what is reserved for a function, and what a namespace may use in all. MB at once.

All changes answer when they are decided and this gateway goes by them, at the latest after some seconds. Streams decides, per tenant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ingest.api.describe import Concurrency
from ingest.api.fields import param
from ingest.api.params import function_name, namespace
from ingest.api.services import Call, Services, new_command_id
from schemas.concurrency import TOTAL, LimitRecord, ProvisionRecord, limit_key
from schemas.errors import BadRequest
from schemas.ids import FunctionKey
from schemas.lifecycle import GOING
from schemas.limits import TENANT_CONCURRENCY_MIB, UNRESERVED_MIB
from schemas.tenants import TenantCommand

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PutReserved:
    """Request of PutReservedConcurrencyConfig; 0 MB blocks the function."""

    function_name: str = function_name()
    reserved_concurrency_mem: int = param(
        code="LimitExceeded.FunctionReservedConcurrencyMemory", low=0, high=TENANT_CONCURRENCY_MIB - UNRESERVED_MIB
    )
    namespace: str = namespace()


@dataclass(frozen=True, slots=True)
class OneFunction:
    """Request of GetReservedConcurrencyConfig and DeleteReservedConcurrencyConfig."""

    function_name: str = function_name()
    namespace: str = namespace()


@dataclass(frozen=True, slots=True)
class PutTotal:
    """Request of PutTotalConcurrencyConfig."""

    total_concurrency_mem: int = param(
        code="LimitExceeded.TotalConcurrencyMemory", low=UNRESERVED_MIB, high=TENANT_CONCURRENCY_MIB
    )
    namespace: str = namespace()


async def put_reserved(services: Services, call: Call, request: PutReserved) -> Answer:
    """PutReservedConcurrencyConfig: the function's invocations never take more, and nobody else can use it."""
    key = existing(services, call, request.namespace, request.function_name)
    wanted = _limit(call, key, request.reserved_concurrency_mem)
    await services.change_limit(
        services.limits, str(key), _command(call, "put-reserved", wanted), gone=False, what="the reservation"
    )
    return {}


async def get_reserved(services: Services, call: Call, request: OneFunction) -> Answer:
    """GetReservedConcurrencyConfig: null when nothing is reserved, for 0 means that the function is blocked."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    return {"ReservedMem": reserved_mib(services, key)}


async def delete_reserved(services: Services, call: Call, request: OneFunction) -> Answer:
    """DeleteReservedConcurrencyConfig: the function shares what is left of its namespace again."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    command = _command(call, "delete-limit", _limit(call, key, 0))
    await services.change_limit(services.limits, str(key), command, gone=True, what="the end of the reservation")
    return {}


async def put_total(services: Services, call: Call, request: PutTotal) -> Answer:
    """PutTotalConcurrencyConfig: what a namespace may use in all, what is reserved in it included."""
    services.namespace(call.caller.appid, request.namespace)
    key = FunctionKey(call.caller.appid, request.namespace, TOTAL)
    wanted = _limit(call, key, request.total_concurrency_mem)
    command = _command(call, "put-total", wanted)
    await services.change_limit(services.limits, str(key), command, gone=False, what="the total")
    return {}


def _command(call: Call, kind: str, wanted: LimitRecord) -> TenantCommand:
    return TenantCommand(new_command_id(), kind, call.now_ms, wanted.appid, call.caller.uin, limit=wanted)


def _limit(call: Call, key: FunctionKey, memory_mib: int) -> LimitRecord:
    return LimitRecord(0, key.appid, call.caller.uin, key.namespace, key.name, memory_mib, -1, "")


def existing(services: Services, call: Call, namespace: str, name: str) -> FunctionKey:
    """Key of a function that is there and stays; raises ResourceNotFound or FailedOperation.FunctionStatusError."""
    key = call.function(namespace, name)
    record = services.function(key)
    if record.status in GOING:
        raise BadRequest("FailedOperation.FunctionStatusError", f"function {name!r} is {record.status}")
    return key


def reserved_mib(services: Services, key: FunctionKey) -> int | None:
    """What is reserved for a function, None when nothing is."""
    row = services.limits.get(str(key))
    return None if row is None else row.memory_mib


def concurrency_of(services: Services, key: FunctionKey) -> Concurrency:
    """What of a function's concurrency is set."""
    return Concurrency(reserved_mib(services, key), provisioned_mib(services.provisions.within(str(key))))


def provisioned_mib(rows: Iterable[ProvisionRecord]) -> int:
    """Memory of all workers of these."""
    return sum(row.target * row.config.memory_mib for row in rows)


def total_mib(services: Services, appid: str, namespace: str) -> int:
    """What a namespace may use in all."""
    row = services.limits.get(limit_key(appid, namespace, TOTAL))
    return TENANT_CONCURRENCY_MIB if row is None else row.memory_mib


def all_reserved_mib(services: Services, appid: str, namespace: str) -> int:
    """Sum of what is reserved in a namespace."""
    rows = services.limits.within(f"{appid}/{namespace}")
    return sum(row.memory_mib for row in rows if row.function != TOTAL)


def shared_mib(services: Services, appid: str, namespace: str) -> int:
    """What functions of a namespace without a reservation may use together."""
    return total_mib(services, appid, namespace) - all_reserved_mib(services, appid, namespace)


def all_provisioned_mib(services: Services, appid: str, namespace: str, *, unreserved_only: bool = False) -> int:
    """Memory of all provisioned workers in a namespace, or of those of functions without a reservation."""
    return sum(
        provisioned_mib(services.provisions.within(scope))
        for scope in services.provisions.scopes(f"{appid}/{namespace}/")
        if not unreserved_only or services.limits.get(scope) is None
    )


def taken_mib(services: Services, appid: str, namespace: str | None = None) -> int:
    """What is reserved, or provisioned without a reservation, in a namespace or in all of a tenant's; as streams counts it."""
    names = {namespace}
    if namespace is None:
        scopes = (*services.limits.scopes(f"{appid}/"), *services.provisions.scopes(f"{appid}/"))
        names = {scope.split("/")[1] for scope in scopes}
    return sum(
        all_reserved_mib(services, appid, name) + all_provisioned_mib(services, appid, name, unreserved_only=True)
        for name in names
        if name is not None
    )
