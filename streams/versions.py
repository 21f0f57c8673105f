"""The decisions about versions and aliases of one function. They stand in the function's own entry, so they see it as it is.

Pure: no Faust, no clock, no I/O. A `Ledger` says which version numbers there are (their configurations are in the topic of versions, for a
thousand of them don't fit one record), holds all aliases, and what the last event moved, so that `outputs` says the same again after a crash.

What this core can't see: triggers, which have other keys. The gateway checks that none names a version or alias before it sends its deletion;
records of a trigger that slips through wait, as for any function that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from schemas.ids import DEFAULT_ALIAS, LATEST
from schemas.lifecycle import FunctionStatus
from schemas.limits import ALIASES_PER_FUNCTION, VERSIONS_PER_FUNCTION
from schemas.records import AliasRecord, Command, FunctionConfig, FunctionRecord, Outcome, VersionRecord


@dataclass(frozen=True, slots=True)
class Ledger:
    """Versions and aliases of one function.

    `last` is the highest number ever given, so that none comes twice. `publishing` is the id of the running saga that is to publish a version
    when it succeeds. `moved` names the versions and aliases that the last event made, changed or deleted; `written` is the version it made.
    """

    last: int = 0
    versions: tuple[int, ...] = ()
    aliases: tuple[AliasRecord, ...] = ()
    publishing: str = ""
    written: VersionRecord | None = None
    moved: tuple[str, ...] = ()

    @property
    def is_full(self) -> bool:
        """True when no version can be added."""
        return len(self.versions) >= VERSIONS_PER_FUNCTION

    def has(self, version: str) -> bool:
        """True for `$LATEST` and every version that there is."""
        return version == LATEST or (
            version.isdecimal() and version == str(int(version)) and int(version) in self.versions
        )

    def alias(self, name: str) -> AliasRecord | None:
        """An alias that was made (or `$DEFAULT`, once it was changed)."""
        return next((a for a in self.aliases if a.name == name), None)


@dataclass(frozen=True, slots=True)
class Removed:
    """The record of a version or alias is deleted in its registry topic; `key` is `appid/namespace/function/NAME`."""

    key: str

    @property
    def is_version(self) -> bool:
        """True for a version, whose name is a number; no alias begins with a digit."""
        return self.key.rpartition("/")[2].isdecimal()


Output = VersionRecord | AliasRecord | Removed
EMPTY: Final = Ledger()


def key_of(record: VersionRecord | AliasRecord) -> str:
    """Key of a record in its registry topic."""
    name = record.version if isinstance(record, VersionRecord) else record.name
    return f"{record.appid}/{record.namespace}/{record.function}/{name}"


def at_rest(ledger: Ledger | None) -> Ledger | None:
    """The ledger before the next event: nothing has moved yet."""
    if ledger is None or not ledger.moved:
        return ledger
    still = replace(ledger, moved=(), written=None)
    return None if still == EMPTY else still


def dropped(ledger: Ledger | None) -> Ledger | None:
    """The function is gone, and all of these with it."""
    if ledger is None:
        return None
    names = (*(str(n) for n in ledger.versions), *(a.name for a in ledger.aliases))
    return Ledger(moved=names) if names else None


def numbered(ledger: Ledger | None, seq: int, applied: int) -> Ledger | None:
    """Both marks inside the records that moved, where readers look for them."""
    if ledger is None or not ledger.moved:
        return ledger
    return replace(
        ledger,
        written=replace(ledger.written, seq=seq, applied=applied) if ledger.written is not None else None,
        aliases=tuple(replace(a, seq=seq, applied=applied) if a.name in ledger.moved else a for a in ledger.aliases),
    )


def outputs(ledger: Ledger | None, key: str) -> Iterator[Output]:
    """All that the last event has to make known of versions and aliases; `key` is the function's."""
    if ledger is None:
        return
    for name in ledger.moved:
        if ledger.written is not None and name == ledger.written.version:
            yield ledger.written
        else:
            yield ledger.alias(name) or Removed(f"{key}/{name}")


def began(ledger: Ledger | None, command: Command) -> Ledger | None:
    """An update starts: it publishes a version in the end, or the one before it does not any more."""
    publishing = command.command_id if command.publish else ""
    if ledger is None and not publishing:
        return None
    return replace(ledger or EMPTY, publishing=publishing)


def ended(ledger: Ledger | None, saga_id: str, record: FunctionRecord, unix_ms: int) -> Ledger | None:
    """A saga of the function is over: publish what now serves, if it was to be and succeeded."""
    if ledger is None or ledger.publishing != saga_id:
        return ledger
    over = replace(ledger, publishing="")
    if record.reasons or record.serving is None or over.is_full:
        return over
    return _published(over, record, record.serving, command_id=saga_id, description="", unix_ms=unix_ms)


def decide(ledger: Ledger, record: FunctionRecord, command: Command, key: str) -> tuple[Ledger, Outcome]:
    """Take in one command of a kind in `KINDS`; an outcome with a code means that the ledger stays as it is."""
    decided = _DECISIONS[command.kind](ledger, record, command)
    if isinstance(decided, Refusal):
        return ledger, decided.outcome(command, key)
    result = decided.written.version if decided.written is not None else ""
    return decided, Outcome(command.command_id, key, result=result)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command can't be."""

    code: str
    message: str

    def outcome(self, command: Command, key: str) -> Outcome:
        """How the command ends."""
        return Outcome(command.command_id, key, self.code, self.message)


def _publish_version(ledger: Ledger, record: FunctionRecord, command: Command) -> Ledger | Refusal:
    if record.status != FunctionStatus.ACTIVE or record.serving is None:
        return Refusal(
            "FailedOperation.FunctionStatusError",
            f"function {record.name!r} is {record.status}; a version can be published when it is Active",
        )
    if ledger.is_full:
        return too_many_versions(record.name)
    return _published(
        ledger,
        record,
        record.serving,
        command_id=command.command_id,
        description=command.description or "",
        unix_ms=command.unix_ms,
    )


def too_many_versions(function: str) -> Refusal:
    """No more versions fit."""
    return Refusal(
        "LimitExceeded.FunctionVersions",
        f"function {function!r} has {VERSIONS_PER_FUNCTION} versions, which is the limit; delete some",
    )


def _published(
    ledger: Ledger, record: FunctionRecord, config: FunctionConfig, *, command_id: str, description: str, unix_ms: int
) -> Ledger:
    number = ledger.last + 1
    version = VersionRecord(
        seq=0,
        appid=record.appid,
        uin=record.uin,
        namespace=record.namespace,
        function=record.name,
        version=str(number),
        description=description,
        created_unix_ms=unix_ms,
        applied=-1,
        command_id=command_id,
        config=replace(config, version=str(number)),
    )
    return replace(ledger, last=number, versions=(*ledger.versions, number), written=version, moved=(str(number),))


def _delete_version(ledger: Ledger, record: FunctionRecord, command: Command) -> Ledger | Refusal:
    wanted = command.qualifier
    if wanted == LATEST or not ledger.has(wanted):
        return Refusal("ResourceNotFound.FunctionVersion", f"function {record.name!r} has no version {wanted!r}")
    using = [a.name for a in ledger.aliases if wanted in versions_of(a)]
    if using:
        return Refusal(
            "FailedOperation",
            f"version {wanted} of function {record.name!r} is in use by alias {', '.join(using[:3])}; point it elsewhere first",
        )
    return replace(ledger, versions=tuple(n for n in ledger.versions if str(n) != wanted), moved=(wanted,))


def versions_of(alias: AliasRecord) -> set[str]:
    """Every version that an alias may lead to."""
    extra = {alias.additional} if alias.additional else set()
    return {alias.version} | extra | {match.version for match in alias.matches}


def _create_alias(ledger: Ledger, record: FunctionRecord, command: Command) -> Ledger | Refusal:
    wanted = command.alias
    if wanted is None:
        return _malformed(command)
    if wanted.name == DEFAULT_ALIAS or ledger.alias(wanted.name) is not None:
        return Refusal("ResourceInUse.Alias", f"function {record.name!r} has an alias {wanted.name!r} already")
    if len(ledger.aliases) >= ALIASES_PER_FUNCTION:
        return Refusal("LimitExceeded.Alias", f"function {record.name!r} has {len(ledger.aliases)} aliases, the limit")
    return _with_alias(ledger, record, command, wanted)


def _update_alias(ledger: Ledger, record: FunctionRecord, command: Command) -> Ledger | Refusal:
    wanted = command.alias
    if wanted is None:
        return _malformed(command)
    existing = ledger.alias(wanted.name)
    if existing is None and wanted.name != DEFAULT_ALIAS:
        return _no_alias(record, wanted.name)
    created_ms = existing.created_unix_ms if existing is not None else record.created_unix_ms
    return _with_alias(ledger, record, command, replace(wanted, created_unix_ms=created_ms))


def _delete_alias(ledger: Ledger, record: FunctionRecord, command: Command) -> Ledger | Refusal:
    wanted = command.qualifier
    if wanted == DEFAULT_ALIAS:
        return Refusal("InvalidParameterValue.Alias", f"alias {DEFAULT_ALIAS} belongs to every function")
    if ledger.alias(wanted) is None:
        return _no_alias(record, wanted)
    return replace(ledger, aliases=tuple(a for a in ledger.aliases if a.name != wanted), moved=(wanted,))


def _with_alias(ledger: Ledger, record: FunctionRecord, command: Command, wanted: AliasRecord) -> Ledger | Refusal:
    for version in sorted(versions_of(wanted)):
        if not ledger.has(version):
            return Refusal("ResourceNotFound.FunctionVersion", f"function {record.name!r} has no version {version!r}")
    if len(versions_of(wanted)) > 2 or not 0.0 <= wanted.weight <= 1.0:
        return Refusal(
            "InvalidParameterValue.RoutingConfig",
            "an alias has at most one additional version, with a weight from 0 to 1",
        )
    alias = replace(
        wanted,
        appid=record.appid,
        namespace=record.namespace,
        function=record.name,
        modified_unix_ms=command.unix_ms,
        command_id=command.command_id,
    )
    others = tuple(a for a in ledger.aliases if a.name != alias.name)
    return replace(ledger, aliases=(*others, alias), moved=(alias.name,))


def _no_alias(record: FunctionRecord, name: str) -> Refusal:
    return Refusal("ResourceNotFound.Alias", f"function {record.name!r} has no alias {name!r}")


def _malformed(command: Command) -> Refusal:
    return Refusal("InternalError", f"the {command.kind} command does not say what it is about")


_DECISIONS: Final[dict[str, Callable[[Ledger, FunctionRecord, Command], Ledger | Refusal]]] = {
    "publish-version": _publish_version,
    "delete-version": _delete_version,
    "create-alias": _create_alias,
    "update-alias": _update_alias,
    "delete-alias": _delete_alias,
}
KINDS: Final = tuple(_DECISIONS)
