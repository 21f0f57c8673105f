"""The decisions about tenants: their namespaces, API keys, layers and limits of concurrency. One entry per tenant, so that limits over several rows hold.

Pure: no Faust, no clock, no I/O. As in `streams.registry`, all that follows from the last command stands in the entry itself, so
`outputs` says the same again after a crash.

What this core can't see: whether functions are in a namespace (other keys, other owners); the gateway checks it before it sends
delete-namespace. One that comes by at that very moment keeps its function, which shows again when the namespace is made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from schemas.concurrency import TOTAL, LimitRecord, ProvisionRecord, limit_key, provision_key
from schemas.ids import DEFAULT_NAMESPACE, layer_key
from schemas.limits import KEYS_PER_TENANT, NAMESPACES_PER_TENANT
from schemas.records import Outcome
from schemas.tenants import KeyRecord, LayerRecord, NamespaceRecord, TenantCommand, is_usable
from streams import concurrency, layers

FORGET_AFTER_MS: Final = 3_600_000
"""How long the marks of a tenant that has nothing left are kept: far longer than a command can still come again."""


@dataclass(frozen=True, slots=True)
class TenantEntry:
    """All of one tenant. `seq` and `applied` as in `streams.registry.Entry`; `moved` is the key of the row that the last command changed,
    in the topic of namespaces (`appid/name`), of keys (a secret id, without a slash), of layers (`appid/name@N`), of limits
    (`appid/namespace/function`) or of provisions (`appid/namespace/function/version`); empty when it changed none. `published`, `limit` and
    `provision` are the row that it made; of the others only what decisions need stands here.
    """

    seq: int = 0
    applied: int = -1
    unix_ms: int = 0
    namespaces: tuple[NamespaceRecord, ...] = ()
    keys: tuple[KeyRecord, ...] = ()
    moved: str = ""
    outcomes: tuple[Outcome, ...] = ()
    layers: tuple[layers.Shelf, ...] = ()
    published: LayerRecord | None = None
    allotment: concurrency.Allotment | None = None
    limit: LimitRecord | None = None
    provision: ProvisionRecord | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The row of a namespace, key, layer version, limit or provision is deleted."""

    key: str


Row = NamespaceRecord | KeyRecord | LayerRecord | LimitRecord | ProvisionRecord
Output = Row | Gone | Outcome
NEW: Final = TenantEntry()


def namespace_key(appid: str, name: str) -> str:
    """Key of a namespace's row."""
    return f"{appid}/{name}"


def row_key(row: Row) -> str:
    """Key of a row in its topic."""
    if isinstance(row, NamespaceRecord):
        return namespace_key(row.appid, row.name)
    if isinstance(row, KeyRecord):
        return row.secret_id
    if isinstance(row, LayerRecord):
        return layer_key(row.appid, row.name, row.version)
    if isinstance(row, LimitRecord):
        return limit_key(row.appid, row.namespace, row.function)
    return provision_key(row.appid, row.namespace, row.function, row.version)


def take(entry: TenantEntry, command: TenantCommand, offset: int) -> tuple[TenantEntry, tuple[Output, ...]]:
    """Take in one command that stands at `offset` of its topic, in the partition of its tenant.

    Total: never raises. An older one gives the entry itself and no outputs.
    """
    if offset < entry.applied:
        return entry, ()
    if offset > entry.applied:
        marked = replace(
            entry,
            seq=max(entry.seq, offset) + 1,
            applied=offset,
            unix_ms=command.unix_ms,
            moved="",
            outcomes=(),
            published=None,
            limit=None,
            provision=None,
        )
        decided = _DECISIONS.get(command.kind, _unknown)(marked, command)
        if isinstance(decided, Outcome):
            entry = replace(marked, outcomes=(decided,))
        else:
            result = "" if decided.published is None else str(decided.published.version)
            entry = replace(decided, outcomes=(Outcome(command.command_id, command.appid, result=result),))
    return entry, outputs(entry)


def outputs(entry: TenantEntry) -> tuple[Output, ...]:
    """All that the last command has to make known; the same each time it is asked."""
    if not entry.moved:
        return entry.outcomes
    made = (entry.published, entry.limit, entry.provision)
    rows = {row_key(row): row for row in (*entry.namespaces, *entry.keys, *made) if row is not None}
    return (rows.get(entry.moved, Gone(entry.moved)), *entry.outcomes)


def is_forgettable(entry: TenantEntry, now_ms: int) -> bool:
    """True for a tenant that has nothing left, when no command of it can come again."""
    has_nothing = not (entry.namespaces or entry.keys or entry.layers) and entry.allotment in (None, concurrency.NONE)
    return has_nothing and now_ms - entry.unix_ms > FORGET_AFTER_MS


def _put_namespace(entry: TenantEntry, command: TenantCommand, row: NamespaceRecord) -> TenantEntry:
    row = replace(
        row,
        appid=command.appid,
        seq=entry.seq,
        applied=entry.applied,
        command_id=command.command_id,
        modified_unix_ms=command.unix_ms,
    )
    others = tuple(n for n in entry.namespaces if n.name != row.name)
    return replace(entry, namespaces=(*others, row), moved=namespace_key(row.appid, row.name))


def _find_namespace(entry: TenantEntry, wanted: NamespaceRecord) -> NamespaceRecord | None:
    return next((n for n in entry.namespaces if n.name == wanted.name), None)


def _create_namespace(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.namespace
    if wanted is None:
        return _malformed(command)
    if wanted.name == DEFAULT_NAMESPACE or _find_namespace(entry, wanted) is not None:
        return _refusal(command, "ResourceInUse.Namespace", f"namespace {wanted.name!r} exists already")
    if sum(n.name != DEFAULT_NAMESPACE for n in entry.namespaces) + 1 >= NAMESPACES_PER_TENANT:
        return _refusal(
            command,
            "LimitExceeded.Namespace",
            f"a tenant has at most {NAMESPACES_PER_TENANT} namespaces, {DEFAULT_NAMESPACE} among them",
        )
    return _put_namespace(entry, command, wanted)


def _update_namespace(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.namespace
    if wanted is None:
        return _malformed(command)
    existing = _find_namespace(entry, wanted)
    if existing is None and wanted.name != DEFAULT_NAMESPACE:
        return _no_namespace(command, wanted)
    created_ms = wanted.created_unix_ms if existing is None else existing.created_unix_ms
    return _put_namespace(entry, command, replace(wanted, created_unix_ms=created_ms))


def _delete_namespace(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.namespace
    if wanted is None:
        return _malformed(command)
    if wanted.name == DEFAULT_NAMESPACE:
        return _refusal(command, "InvalidParameterValue.DefaultNamespace", "namespace default can't be deleted")
    if _find_namespace(entry, wanted) is None:
        return _no_namespace(command, wanted)
    left = tuple(n for n in entry.namespaces if n.name != wanted.name)
    return replace(entry, namespaces=left, moved=namespace_key(command.appid, wanted.name))


def _put_key(entry: TenantEntry, command: TenantCommand, row: KeyRecord) -> TenantEntry:
    row = replace(row, appid=command.appid, seq=entry.seq, applied=entry.applied, command_id=command.command_id)
    others = tuple(k for k in entry.keys if k.secret_id != row.secret_id)
    return replace(entry, keys=(*others, row), moved=row.secret_id)


def _create_key(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.key
    if wanted is None:
        return _malformed(command)
    if any(k.secret_id == wanted.secret_id for k in entry.keys):
        return _refusal(command, "ResourceInUse", f"key {wanted.secret_id} exists already")
    if len(entry.keys) >= KEYS_PER_TENANT:
        return _refusal(
            command, "LimitExceeded", f"a tenant has at most {KEYS_PER_TENANT} keys; delete one that is not used"
        )
    return _put_key(entry, command, wanted)


def _rotate_key(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.key
    if wanted is None:
        return _malformed(command)
    existing = next((k for k in entry.keys if k.secret_id == wanted.secret_id), None)
    if existing is None:
        return _no_key(command, wanted)
    if existing.applied != wanted.applied:
        # Both of two rotations at once would answer with a secret, and one of them would never work.
        return _refusal(command, "FailedOperation", f"key {wanted.secret_id} was changed by another call; try again")
    return _put_key(entry, command, wanted)


def _delete_key(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.key
    if wanted is None:
        return _malformed(command)
    left = tuple(k for k in entry.keys if k.secret_id != wanted.secret_id)
    if len(left) == len(entry.keys):
        return _no_key(command, wanted)
    if not command.last_too and not any(is_usable(k, command.unix_ms) for k in left):
        return _refusal(
            command, "FailedOperation", f"key {wanted.secret_id} is the last one of its tenant; make another one first"
        )
    return replace(entry, keys=left, moved=wanted.secret_id)


def _publish_layer(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.layer
    if wanted is None:
        return _malformed(command)
    decided = layers.publish(entry.layers, wanted.name)
    if isinstance(decided, layers.Refusal):
        return _refusal(command, decided.code, decided.message)
    shelves, number = decided
    made = replace(
        wanted,
        appid=command.appid,
        version=number,
        seq=entry.seq,
        applied=entry.applied,
        command_id=command.command_id,
        created_unix_ms=command.unix_ms,
    )
    return replace(entry, layers=shelves, published=made, moved=layer_key(made.appid, made.name, number))


def _delete_layer(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.layer
    if wanted is None:
        return _malformed(command)
    left = layers.delete(entry.layers, wanted.name, wanted.version)
    if isinstance(left, layers.Refusal):
        return _refusal(command, left.code, left.message)
    return replace(entry, layers=left, moved=layer_key(command.appid, wanted.name, wanted.version))


def _put_limit(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.limit
    if wanted is None:
        return _malformed(command)
    is_total = command.kind == "put-total"
    grant = concurrency.Grant(
        wanted.namespace, "" if is_total else wanted.function, wanted.memory_mib, applied=entry.applied
    )
    decide = concurrency.put_total if is_total else concurrency.put_reserved
    allotment = decide(entry.allotment or concurrency.NONE, grant)
    if isinstance(allotment, layers.Refusal):
        return _refusal(command, allotment.code, allotment.message)
    row = replace(
        wanted, appid=command.appid, seq=entry.seq, applied=entry.applied, command_id=command.command_id,
        function=TOTAL if is_total else wanted.function,
    )  # fmt: skip
    return replace(entry, allotment=allotment, limit=row, moved=row_key(row))


def _delete_limit(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.limit
    if wanted is None:
        return _malformed(command)
    function = "" if wanted.function == TOTAL else wanted.function
    grant = concurrency.Grant(wanted.namespace, function, 0, applied=wanted.applied)
    before = entry.allotment or concurrency.NONE
    left = concurrency.delete_grant(before, grant)
    if left == before:
        return entry
    return replace(entry, allotment=left, moved=limit_key(command.appid, wanted.namespace, wanted.function))


def _provision(wanted: ProvisionRecord, applied: int) -> concurrency.Provision:
    return concurrency.Provision(
        wanted.namespace, wanted.function, wanted.version, wanted.target, wanted.config.memory_mib, applied
    )


def _put_provision(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.provision
    if wanted is None:
        return _malformed(command)
    allotment = concurrency.put_provision(entry.allotment or concurrency.NONE, _provision(wanted, entry.applied))
    if isinstance(allotment, layers.Refusal):
        return _refusal(command, allotment.code, allotment.message)
    row = replace(
        wanted,
        appid=command.appid,
        seq=entry.seq,
        applied=entry.applied,
        command_id=command.command_id,
        modified_unix_ms=command.unix_ms,
    )
    return replace(entry, allotment=allotment, provision=row, moved=row_key(row))


def _delete_provision(entry: TenantEntry, command: TenantCommand) -> TenantEntry | Outcome:
    wanted = command.provision
    if wanted is None:
        return _malformed(command)
    before = entry.allotment or concurrency.NONE
    left = concurrency.delete_provision(before, _provision(wanted, wanted.applied))
    if left == before:
        return entry
    key = provision_key(command.appid, wanted.namespace, wanted.function, wanted.version)
    return replace(entry, allotment=left, moved=key)


def _no_namespace(command: TenantCommand, wanted: NamespaceRecord) -> Outcome:
    return _refusal(command, "ResourceNotFound.Namespace", f"namespace {wanted.name!r} does not exist")


def _no_key(command: TenantCommand, wanted: KeyRecord) -> Outcome:
    return _refusal(command, "ResourceNotFound", f"there is no key {wanted.secret_id}")


def _malformed(command: TenantCommand) -> Outcome:
    return _refusal(command, "InternalError", f"the {command.kind} command does not say what it is about")


def _unknown(_entry: TenantEntry, command: TenantCommand) -> Outcome:
    return _refusal(command, "UnsupportedOperation", f"this release of streams does not know {command.kind!r} commands")


def _refusal(command: TenantCommand, code: str, message: str) -> Outcome:
    return Outcome(command.command_id, command.appid, code, message)


_DECISIONS: Final = {
    "create-namespace": _create_namespace,
    "update-namespace": _update_namespace,
    "delete-namespace": _delete_namespace,
    "create-key": _create_key,
    "rotate-key": _rotate_key,
    "delete-key": _delete_key,
    "publish-layer": _publish_layer,
    "delete-layer": _delete_layer,
    "put-reserved": _put_limit,
    "put-total": _put_limit,
    "delete-limit": _delete_limit,
    "put-provision": _put_provision,
    "delete-provision": _delete_provision,
}
