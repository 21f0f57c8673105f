"""GetAccount: what the tenant has, and how much of it there may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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
    TENANT_CONCURRENCY,
    TIMEOUT_RANGE_S,
    TRIGGERS_PER_KIND,
)

TENANT_CONCURRENCY_MIB: Final = TENANT_CONCURRENCY * MEMORY_DEFAULT_MIB
"""SCF counts concurrency in memory; Penstock's limit is so many invocations at once, here of functions of the default size."""
_KINDS: Final = ("Cos", "Timer", "Cmq", "Ckafka", "Apigw", "Cls", "Clb", "Mps", "Cm", "Vod", "Eb")
_BUILT: Final = ("Ckafka",)


async def get_account(services: Services, call: Call, request: NoFields) -> Mapping[str, Any]:
    """GetAccount: structures UsageInfo and LimitsInfo, a row for each namespace."""
    usage, limits = [], []
    for namespace in namespaces_of(services, call.caller.appid):
        names = [f.name for f in services.functions.within(f"{call.caller.appid}/{namespace.name}")]
        usage.append(
            {
                "Namespace": namespace.name,
                "Functions": names,
                "FunctionsCount": len(names),
                "TotalConcurrencyMem": TENANT_CONCURRENCY_MIB,
                "TotalAllocatedConcurrencyMem": 0,
                "TotalAllocatedProvisionedMem": 0,
            }
        )
        limits.append(
            {
                "Namespace": namespace.name,
                "FunctionsCount": FUNCTIONS_PER_NAMESPACE,
                "Trigger": {kind: TRIGGERS_PER_KIND if kind in _BUILT else 0 for kind in _KINDS}
                | {"Total": TRIGGERS_PER_KIND * len(_BUILT)},
                "ConcurrentExecutions": TENANT_CONCURRENCY,
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
            "TotalAllocatedConcurrencyMem": 0,
            "UserConcurrencyMemLimit": TENANT_CONCURRENCY_MIB,
        },
        "AccountLimit": {"NamespacesCount": NAMESPACES_PER_TENANT, "Namespace": limits},
    }
