"""Limits of concurrency and workers that are kept ready, as they stand in Penstock's own topics.

Concurrency is counted in MB: each invocation that runs costs its function's MemorySize. Evolution rules are those of `schemas.records`; all
of a tenant is decided in one place (streams, keyed by appid), because its limits are sums over its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from schemas.records import FunctionConfig

TOTAL: Final = "$total"
"""Stands where a function's name stands in the key of a namespace's total; no function can be called so."""


@dataclass(frozen=True, slots=True)
class LimitRecord:
    """One limit, in MB; key `appid/namespace/function` in topic penstock.registry.limits.v1 (tombstone when deleted).

    Of a function: what is reserved for it, which it can't exceed and nobody else can use; 0 blocks it. With `TOTAL` for a function: all that
    the namespace may use, what is reserved in it included.
    """

    seq: int
    appid: str
    uin: str
    namespace: str
    function: str
    memory_mib: int
    applied: int
    command_id: str


@dataclass(frozen=True, slots=True)
class ProvisionRecord:
    """So many workers of a published version that are to be ready; key `appid/namespace/function/version` in topic
    penstock.registry.provisions.v1 (tombstone when deleted). Host agents follow it.

    `uin` and `config` are the version's own, so that what is started ahead is what calls ask for.
    """

    seq: int
    appid: str
    uin: str
    namespace: str
    function: str
    version: str
    target: int
    config: FunctionConfig
    modified_unix_ms: int
    applied: int
    command_id: str


@dataclass(frozen=True, slots=True)
class ProvisionStatus:
    """What one host agent has of a provision; key `agent/appid/namespace/function/version` in topic penstock.fabric.provisions.v1 (tombstone
    when nothing is to be kept any more).

    `term` is the agent's, `applied` that of the provision it follows. `ready` of the `wanted` workers that are its part can be given calls. `reason` says why the
    others can't; `failed` that they will not by waiting alone.
    """

    agent: str
    term: int
    applied: int
    wanted: int
    ready: int
    reason: str
    failed: bool
    unix_ms: int


def limit_key(appid: str, namespace: str, function: str) -> str:
    """Key of a limit; `function` may be `TOTAL`."""
    return f"{appid}/{namespace}/{function}"


def provision_key(appid: str, namespace: str, function: str, version: str) -> str:
    """Key of the workers kept ready for a version."""
    return f"{appid}/{namespace}/{function}/{version}"
