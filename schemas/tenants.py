"""What belongs to a tenant as a whole: its namespaces, API keys, layers and limits, as they stand in Penstock's own topics.

Evolution rules are those of `schemas.records`. All of a tenant is decided in one place (streams, keyed by appid), because its limits and
refusals look at several rows at once: so many namespaces, never the last key.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.concurrency import LimitRecord, ProvisionRecord


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """State of one namespace; key `appid/name` in topic penstock.registry.namespaces.v1 (tombstone when deleted).

    `default` is there without a record; it has one when its description was changed. `applied` is the offset of the last command of
    the tenant that changed it.
    """

    seq: int
    appid: str
    uin: str
    name: str
    description: str
    created_unix_ms: int
    modified_unix_ms: int
    applied: int
    command_id: str


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """State of one pair of API keys; key is the secret id, in topic penstock.registry.keys.v1 (tombstone when deleted).

    `sealed` is the secret key, encrypted with the fabric's key (`infra.sealing`); `earlier` is the one before the last rotation, good
    until `earlier_until_unix_ms`. `expires_unix_ms` 0 is never; `rotated_unix_ms` 0 is not yet.
    """

    seq: int
    secret_id: str
    appid: str
    uin: str
    sealed: bytes
    earlier: bytes
    earlier_until_unix_ms: int
    description: str
    enabled: bool
    created_unix_ms: int
    rotated_unix_ms: int
    expires_unix_ms: int
    applied: int
    command_id: str


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One published version of a layer; key `appid/name@N` in topic penstock.registry.layers.v1 (tombstone when deleted).

    Nothing in it ever changes. N is 1, 2, ... and is not given twice to one layer. `content_sha256` is the hex digest of the zip and its
    name in the object store; `content_size` its bytes.
    """

    seq: int
    appid: str
    uin: str
    name: str
    version: int
    content_sha256: str
    content_size: int
    runtimes: tuple[str, ...]
    description: str
    license_info: str
    created_unix_ms: int
    applied: int
    command_id: str


def is_usable(key: KeyRecord, now_ms: int) -> bool:
    """True for a key that calls can be signed with."""
    return key.enabled and not 0 < key.expires_unix_ms <= now_ms


@dataclass(frozen=True, slots=True)
class TenantCommand:
    """One wish about a tenant; topic penstock.control.tenants.v1, keyed by appid. `kind` is one of `TENANT_COMMAND_KINDS`.

    It carries the whole row as it is to be (of a deletion: as it was); a layer that is published gets its version from streams. `last_too`
    lets the last key of a tenant go as well. A limit or provision whose `applied` is 0 or more is deleted only if that is still the last
    change of it.
    """

    command_id: str
    kind: str
    unix_ms: int
    appid: str
    uin: str
    namespace: NamespaceRecord | None = None
    key: KeyRecord | None = None
    last_too: bool = False
    layer: LayerRecord | None = None
    limit: LimitRecord | None = None
    provision: ProvisionRecord | None = None


TENANT_COMMAND_KINDS = (
    "create-namespace",
    "update-namespace",
    "delete-namespace",
    "create-key",
    "rotate-key",
    "delete-key",
    "publish-layer",
    "delete-layer",
    "put-reserved",
    "put-total",
    "delete-limit",
    "put-provision",
    "delete-provision",
)


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """One signed request that changed something, or was refused; topic penstock.control.requests.v1, keyed by `mark` in hex.

    `mark` is a hash of its signature; `unix_ms` is when a gateway first saw it; `code` is empty when it was done.
    """

    mark: bytes
    appid: str
    uin: str
    action: str
    request_id: str
    unix_ms: int
    code: str
