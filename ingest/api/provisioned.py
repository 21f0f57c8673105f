"""Handlers of the actions on provisioned concurrency: workers of a published version that are started ahead and kept.

A change answers when it is decided; host agents then start or let go workers, and say how far they are (Status InProgress, Done or Failed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ingest.api.concurrency import existing, provisioned_mib, reserved_mib, shared_mib, taken_mib, total_mib
from ingest.api.fields import Unsupported, param, short
from ingest.api.params import function_name, namespace
from ingest.api.services import Call, Services, new_command_id
from schemas.concurrency import ProvisionRecord, ProvisionStatus
from schemas.errors import BadRequest
from schemas.ids import FunctionKey
from schemas.limits import MEMORY_CHOICES_MIB, PROVISION_GAP, TENANT_CONCURRENCY_MIB, UNRESERVED_MIB
from schemas.records import VersionRecord
from schemas.tenants import TenantCommand

Answer = Mapping[str, Any]
AGENT_ALIVE_MS: Final = 15_000
_MOST: Final = TENANT_CONCURRENCY_MIB // MEMORY_CHOICES_MIB[0] - PROVISION_GAP
_TRACKING: Final = "ConcurrencyUtilizationTracking"
_UNTRACKED: Final = "a provision is a fixed number of workers; nothing changes it by load"


def _is_version(value: Any) -> str | None:
    if value.isascii() and value.isdigit():
        return None
    return f"is {short(value)}; it must be the number of a published version"


@dataclass(frozen=True, slots=True)
class PutProvisioned:
    """Request of PutProvisionedConcurrencyConfig."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (
        Unsupported("TriggerActions", "a provision can't change by the clock: timers are not built yet"),
        Unsupported("TrackingTarget", _UNTRACKED),
        Unsupported("MinCapacity", _UNTRACKED),
        Unsupported("MaxCapacity", _UNTRACKED),
    )

    function_name: str = function_name()
    qualifier: str = param(code="InvalidParameterValue.Qualifier", max_chars=64, check=_is_version)
    version_provisioned_concurrency_num: int = param(
        code="LimitExceeded.FunctionTotalProvisionedConcurrencyNum", low=1, high=_MOST
    )
    namespace: str = namespace()
    provisioned_type: str = param("Default", code="InvalidParameterValue.ProvisionType", choices=("Default", _TRACKING))


@dataclass(frozen=True, slots=True)
class GetProvisioned:
    """Request of GetProvisionedConcurrencyConfig; without Qualifier, of all versions."""

    function_name: str = function_name()
    namespace: str = namespace()
    qualifier: str = param("", code="InvalidParameterValue.Qualifier", max_chars=64, check=_is_version)


@dataclass(frozen=True, slots=True)
class DeleteProvisioned:
    """Request of DeleteProvisionedConcurrencyConfig."""

    function_name: str = function_name()
    qualifier: str = param(code="InvalidParameterValue.Qualifier", max_chars=64, check=_is_version)
    namespace: str = namespace()


async def put_provisioned(services: Services, call: Call, request: PutProvisioned) -> Answer:
    """PutProvisionedConcurrencyConfig: so many workers in all; a second call changes the number."""
    if request.provisioned_type == _TRACKING:
        raise BadRequest("UnsupportedOperation", f"ProvisionedType {_TRACKING} is not supported: {_UNTRACKED}")
    key = existing(services, call, request.namespace, request.function_name)
    version = _version(services, key, request.qualifier)
    wanted = _provision(version, request.version_provisioned_concurrency_num, call.now_ms)
    await _change(services, call, "put-provision", wanted)
    return {}


async def get_provisioned(services: Services, call: Call, request: GetProvisioned) -> Answer:
    """GetProvisionedConcurrencyConfig: Available… are those that can be given calls now."""
    key = call.function(request.namespace, request.function_name)
    record = services.function(key)
    rows = services.provisions.within(str(key))
    config = record.serving or record.proposed
    memory_mib = MEMORY_CHOICES_MIB[0] if config is None else config.memory_mib
    if request.qualifier:
        memory_mib = _version(services, key, request.qualifier).config.memory_mib
    shown = [row for row in rows if request.qualifier in ("", row.version)]
    return {
        "UnallocatedConcurrencyNum": unallocated(services, key, rows, memory_mib),
        "Allocated": [
            describe(row, statuses_of(services, row, call.now_ms))
            for row in sorted(shown, key=lambda r: int(r.version))
        ],
    }


async def delete_provisioned(services: Services, call: Call, request: DeleteProvisioned) -> Answer:
    """DeleteProvisionedConcurrencyConfig: the workers go when they are idle, like any others."""
    key = call.function(request.namespace, request.function_name)
    services.function(key)
    await _change(
        services, call, "delete-provision", _provision(_version(services, key, request.qualifier), 0, call.now_ms)
    )
    return {}


async def _change(services: Services, call: Call, kind: str, wanted: ProvisionRecord) -> None:
    command = TenantCommand(new_command_id(), kind, call.now_ms, wanted.appid, call.caller.uin, provision=wanted)
    key = f"{wanted.appid}/{wanted.namespace}/{wanted.function}/{wanted.version}"
    gone = kind == "delete-provision"
    what = f"the provision of version {wanted.version}"
    await services.change_limit(services.provisions, key, command, gone=gone, what=what)


def _provision(version: VersionRecord, target: int, now_ms: int) -> ProvisionRecord:
    return ProvisionRecord(
        0, version.appid, version.uin, version.namespace, version.function, version.version, target, version.config,
        now_ms, -1, "",
    )  # fmt: skip


def _version(services: Services, key: FunctionKey, number: str) -> VersionRecord:
    version = services.versions.get(f"{key}/{number}")
    if version is None:
        raise BadRequest("ResourceNotFound.FunctionVersion", f"function {key.name!r} has no version {short(number)}")
    return version


def unallocated(services: Services, key: FunctionKey, rows: Sequence[ProvisionRecord], memory_mib: int) -> int:
    """How many more workers of this size streams would grant the function now."""
    own = reserved_mib(services, key)
    gap_mib = PROVISION_GAP * max([memory_mib, *(row.config.memory_mib for row in rows)])
    rooms = [(shared_mib(services, key.appid, key.namespace) if own is None else own) - provisioned_mib(rows) - gap_mib]
    if own is None:
        total = total_mib(services, key.appid, key.namespace)
        rooms.append(total - UNRESERVED_MIB - taken_mib(services, key.appid, key.namespace))
        rooms.append(TENANT_CONCURRENCY_MIB - UNRESERVED_MIB - taken_mib(services, key.appid))
    return max(0, min(rooms)) // memory_mib


def statuses_of(services: Services, row: ProvisionRecord, now_ms: int) -> list[ProvisionStatus]:
    """What the live agents say of a provision."""
    key = f"{row.appid}/{row.namespace}/{row.function}/{row.version}"
    found = []
    for name, member in services.members.items().items():
        if member.kind == "agent" and now_ms - member.unix_ms < AGENT_ALIVE_MS:
            status = services.kept.get(f"{name.partition('/')[2]}/{key}")
            if status is not None and status.term == member.term:
                found.append(status)
    return found


def describe(row: ProvisionRecord, statuses: Sequence[ProvisionStatus]) -> dict[str, Any]:
    """Structure VersionProvisionedConcurrencyInfo. Only what is said of this very change of the provision can make it Failed."""
    ready = min(row.target, sum(status.ready for status in statuses))
    failed = [status for status in statuses if status.failed and status.applied == row.applied]
    state = "Done" if ready >= row.target else "Failed" if failed else "InProgress"
    reasons = (status.reason for status in failed or statuses if status.reason)
    return {
        "AllocatedProvisionedConcurrencyNum": row.target,
        "AvailableProvisionedConcurrencyNum": ready,
        "Status": state,
        "StatusReason": "" if state == "Done" else next(reasons, ""),
        "Qualifier": row.version,
        "TriggerActions": [],
    }
