"""GetAccount: what the tenant has, and how much of it there may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ingest.api.concurrency import all_provisioned_mib, all_reserved_mib, total_mib
from ingest.api.fields import NoFields
from ingest.api.namespaces import namespaces_of
from ingest.api.services import Call, Services
from schemas.limits import (
    EVENT_RETRIES,
    EVENT_TTL_RANGE_S,
    FUNCTIONS_PER_NAMESPACE,
    INIT_TIMEOUT_RANGE_S,
    MEMORY_DEFAULT_MIB,
    NAMESPACES_PER_TENANT,
    TENANT_CONCURRENCY_MIB,
    TIMEOUT_RANGE_S,
    TRIGGERS_PER_KIND,
)

_KINDS: Final = ("Cos", "Timer", "Cmq", "Ckafka", "Apigw", "Cls", "Clb", "Mps", "Cm", "Vod", "Eb")
_BUILT: Final = ("Ckafka",)


async def get_account(services: Services, call: Call, request: NoFields) -> Mapping[str, Any]:
    """GetAccount: structures UsageInfo and LimitsInfo, a row for each namespace."""
    usage: list[dict[str, Any]] = []
    limits = []
    appid = call.caller.appid
    for namespace in namespaces_of(services, appid):
        names = [f.name for f in services.functions.within(f"{appid}/{namespace.name}")]
        total = total_mib(services, appid, namespace.name)
        usage.append(
            {
                "Namespace": namespace.name,
                "Functions": names,
                "FunctionsCount": len(names),
                "TotalConcurrencyMem": total,
                "TotalAllocatedConcurrencyMem": all_reserved_mib(services, appid, namespace.name),
                "TotalAllocatedProvisionedMem": all_provisioned_mib(services, appid, namespace.name),
            }
        )
        limits.append(
            {
                "Namespace": namespace.name,
                "FunctionsCount": FUNCTIONS_PER_NAMESPACE,
                "Trigger": {kind: TRIGGERS_PER_KIND if kind in _BUILT else 0 for kind in _KINDS}
                | {"Total": TRIGGERS_PER_KIND * len(_BUILT)},
                "ConcurrentExecutions": total // MEMORY_DEFAULT_MIB,
                "TimeoutLimit": TIMEOUT_RANGE_S[1],
                "InitTimeoutLimit": INIT_TIMEOUT_RANGE_S[1],
                "TestModelLimit": 0,
                "RetryNumLimit": EVENT_RETRIES,
                "MinMsgTTL": EVENT_TTL_RANGE_S[0],
                "MaxMsgTTL": EVENT_TTL_RANGE_S[1],
            }
        )
    return {
        "AccountUsage": {
            "NamespacesCount": len(usage),
            "Namespace": usage,
            "TotalConcurrencyMem": TENANT_CONCURRENCY_MIB,
            "TotalAllocatedConcurrencyMem": sum(row["TotalAllocatedConcurrencyMem"] for row in usage),
            "UserConcurrencyMemLimit": min(TENANT_CONCURRENCY_MIB, sum(row["TotalConcurrencyMem"] for row in usage)),
        },
        "AccountLimit": {"NamespacesCount": NAMESPACES_PER_TENANT, "Namespace": limits},
    }
