"""The registry's decisions: commands and step results in; the new state of a function or trigger, and what must be written out.

Pure: no Faust, no clock, no I/O. Everything that follows from the last event stands in the entry itself, so outputs are a function of it:
the edge makes the entry durable first, then writes `outputs(entry)`, then lets the event go. After a crash the event comes again, is
recognised by its offset, and says the same again; an older one says nothing.

What this core can't see: whether the function of a trigger exists. The two have different keys, so different owners; the gateway checks
it before it sends create-trigger, and sends delete-trigger for each trigger of a function that it deletes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from schemas.ids import FunctionKey, TriggerKey
from schemas.lifecycle import FunctionMove, FunctionStatus, after
from schemas.records import (
    AliasRecord,
    Command,
    FunctionRecord,
    Outcome,
    StepCommand,
    StepResult,
    TriggerRecord,
    VersionRecord,
)
from streams import versions
from streams.sagas import Saga, advance, begin, step_out

FORGET_AFTER_MS: Final = 3_600_000
"""How long the mark of a deleted key is kept: far longer than an event can still come again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """State of one key; both records None: deleted, or never made.

    `seq` is that of the last record written and survives a deletion. `applied` and `answered` are the offsets of the last command and the
    last step result taken in; -1 is none. `unix_ms` is the time of the last event, by its own clock. `moved` says that this event changed
    the record, `outcomes` which commands it ended.
    """

    seq: int = 0
    applied: int = -1
    answered: int = -1
    unix_ms: int = 0
    moved: bool = False
    function: FunctionRecord | None = None
    trigger: TriggerRecord | None = None
    saga: Saga | None = None
    outcomes: tuple[Outcome, ...] = ()
    ledger: versions.Ledger | None = None

    @property
    def version(self) -> int:
        """Grows with every event that changes the entry."""
        return self.applied + self.answered + 2


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The record of a key is deleted in its registry topic."""

    key: str
    is_function: bool


Output = (
    FunctionRecord | TriggerRecord | VersionRecord | AliasRecord | versions.Removed | Tombstone | StepCommand | Outcome
)
NEW: Final = Entry()


def key_of(event: Command | StepResult) -> str:
    """The registry key that an event changes: `appid/namespace/function`, for triggers with `/name` behind."""
    if isinstance(event, StepResult):
        return event.key
    function = FunctionKey(event.appid, event.namespace, event.function)
    if event.trigger is not None and event.kind.endswith("-trigger"):
        return str(TriggerKey(function, event.trigger.name))
    return str(function)


def take(entry: Entry, event: Command | StepResult, offset: int) -> tuple[Entry, tuple[Output, ...]]:
    """Take in one event that stands at `offset` of its topic, in the partition of its key.

    Total: never raises. An event that changes nothing (older, stale) gives the entry itself and no outputs.
    """
    mark = entry.applied if isinstance(event, Command) else entry.answered
    if offset < mark:
        return entry, ()
    key = key_of(event)
    if offset > mark:
        rest = replace(entry, ledger=versions.at_rest(entry.ledger))
        if isinstance(event, Command):
            # A command's offset lifts seq over that of an entry that was forgotten.
            decided = replace(_command(rest, event, key), seq=max(entry.seq, offset), applied=offset)
        elif (answered := _result(rest, event, key)) is not None:
            decided = replace(answered, answered=offset)
        else:
            return entry, ()
        if decided.function is None:
            decided = replace(decided, ledger=versions.dropped(decided.ledger))
        entry = _numbered(replace(decided, unix_ms=event.unix_ms))
    return entry, outputs(entry, key)


def outputs(entry: Entry, key: str) -> tuple[Output, ...]:
    """All that the last event of this key has to make known; the same each time it is asked."""
    made: list[Output] = [*versions.outputs(entry.ledger, key)]
    if entry.moved:
        made.append(entry.function or entry.trigger or Tombstone(key, is_function=key.count("/") == 2))
        if entry.saga is not None:
            made.append(step_out(entry.saga, key))
    return (*made, *entry.outcomes)


def is_forgettable(entry: Entry, now_ms: int) -> bool:
    """True for what is left of a deleted (or never made) key when no event of it can come again."""
    return entry.function is None and entry.trigger is None and now_ms - entry.unix_ms > FORGET_AFTER_MS


def _numbered(entry: Entry) -> Entry:
    """The next `seq` for a record that moved, and both marks inside it, where readers look for them."""
    seq, applied = entry.seq + 1, entry.applied
    if entry.ledger is not None and entry.ledger.moved:
        entry = replace(entry, seq=seq, ledger=versions.numbered(entry.ledger, seq, applied))
    if not entry.moved:
        return entry
    function, trigger = entry.function, entry.trigger
    return replace(
        entry,
        seq=seq,
        function=replace(function, seq=seq, applied=applied) if function else None,
        trigger=replace(trigger, seq=seq, applied=applied) if trigger else None,
    )


def _result(entry: Entry, result: StepResult, key: str) -> Entry | None:
    record, saga = entry.function, entry.saga
    if record is None or saga is None or (then := advance(saga, result)) is None:
        return None
    if isinstance(then, Saga):
        return replace(entry, moved=True, saga=then, outcomes=())
    failed = bool(then.reasons)
    status = after(FunctionStatus(record.status), FunctionMove.FAIL if failed else FunctionMove.SUCCEED)
    assert status is not None, f"a saga runs while {record.status}"
    record = replace(
        record,
        status=status,
        modified_unix_ms=result.unix_ms,
        serving=record.serving if failed else record.proposed,
        # What a failed create was to be is all there is to show, and what an update starts from.
        proposed=record.proposed if failed and record.serving is None else None,
        reasons=then.reasons,
    )
    ledger = versions.ended(entry.ledger, saga.saga_id, record, result.unix_ms)
    outcomes = (_saga_outcome(saga, key, record),)
    return replace(entry, moved=True, function=record, saga=None, ledger=ledger, outcomes=outcomes)


def _saga_outcome(saga: Saga, key: str, record: FunctionRecord) -> Outcome:
    if not record.reasons:
        return Outcome(saga.saga_id, key)
    code = "FailedOperation.CreateFunction" if saga.workflow == "create-function" else "FailedOperation"
    return Outcome(saga.saga_id, key, code, "; ".join(f"{r.code}: {r.message}" for r in record.reasons))


def _command(entry: Entry, command: Command, key: str) -> Entry:
    decided = _DECISIONS.get(command.kind, _unknown)(entry, command, key)
    return replace(entry, moved=False, outcomes=(decided,)) if isinstance(decided, Outcome) else decided


def _create_function(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    if entry.function is not None:
        return Outcome(
            command.command_id,
            key,
            "ResourceInUse.FunctionName",
            f"function {command.function!r} exists in namespace {command.namespace!r} (it is {entry.function.status})",
        )
    if command.config is None:
        return _malformed(command, key, "no configuration")
    record = FunctionRecord(
        seq=0,
        appid=command.appid,
        uin=command.uin,
        namespace=command.namespace,
        name=command.function,
        function_id=function_id(command.command_id),
        status=FunctionStatus.CREATING,
        description=command.description or "",
        created_unix_ms=command.unix_ms,
        modified_unix_ms=command.unix_ms,
        applied=-1,
        command_id=command.command_id,
        proposed=command.config,
    )
    return replace(entry, moved=True, function=record, saga=begin(command), outcomes=())


def function_id(command_id: str) -> str:
    """FunctionId of the function that a command creates: `lam-` and eight characters."""
    return f"lam-{sha256(command_id.encode()).hexdigest()[:8]}"


def _update_function(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    record = entry.function
    if record is None:
        return _no_function(command, key)
    record = replace(
        record,
        description=record.description if command.description is None else command.description,
        modified_unix_ms=command.unix_ms,
        command_id=command.command_id,
    )
    if command.config is None:  # nothing to check or prepare
        return replace(entry, moved=True, function=record, outcomes=(Outcome(command.command_id, key),))
    if command.publish and entry.ledger is not None and entry.ledger.is_full:
        return versions.too_many_versions(record.name).outcome(command, key)
    status = after(FunctionStatus(record.status), FunctionMove.UPDATE)
    if status is None and record.status == FunctionStatus.UPDATING:
        status = FunctionStatus.UPDATING  # the newest wins; the saga before it is given up
    if status is None:
        return _wrong_status(command, key, record)
    record = replace(record, status=status, proposed=command.config, reasons=())
    given_up = _given_up(entry, key, "a newer update took its place")
    ledger = versions.began(entry.ledger, command)
    return replace(entry, moved=True, function=record, saga=begin(command), ledger=ledger, outcomes=given_up)


def _delete_function(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    record = entry.function
    if record is None:
        return _no_function(command, key)
    if after(FunctionStatus(record.status), FunctionMove.DELETE) is None:
        return _wrong_status(command, key, record)
    outcomes = (*_given_up(entry, key, "the function was deleted"), Outcome(command.command_id, key))
    return replace(entry, moved=True, function=None, saga=None, outcomes=outcomes)


def _given_up(entry: Entry, key: str, why: str) -> tuple[Outcome, ...]:
    if entry.saga is None:
        return ()
    return (Outcome(entry.saga.saga_id, key, "FailedOperation", f"{why} before this was done"),)


def _on_ledger(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    if entry.function is None:
        return _no_function(command, key)
    ledger, outcome = versions.decide(entry.ledger or versions.EMPTY, entry.function, command, key)
    return outcome if outcome.code else replace(entry, moved=False, ledger=ledger, outcomes=(outcome,))


def _create_trigger(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    wanted = command.trigger
    if wanted is None:
        return _malformed(command, key, "no trigger")
    if entry.trigger is not None:
        return Outcome(
            command.command_id,
            key,
            "ResourceInUse.Trigger",
            f"function {command.function!r} has a trigger {wanted.name!r} already",
        )
    return _with_trigger(entry, command, key, wanted)


def _update_trigger(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    wanted, record = command.trigger, entry.trigger
    if wanted is None:
        return _malformed(command, key, "no trigger")
    if record is None:
        return _no_trigger(command, key, wanted)
    return _with_trigger(entry, command, key, replace(wanted, created_unix_ms=record.created_unix_ms))


def _delete_trigger(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    if command.trigger is None:
        return _malformed(command, key, "no trigger")
    if entry.trigger is None:
        return _no_trigger(command, key, command.trigger)
    return replace(entry, moved=True, trigger=None, outcomes=(Outcome(command.command_id, key),))


def _with_trigger(entry: Entry, command: Command, key: str, wanted: TriggerRecord) -> Entry:
    record = replace(wanted, modified_unix_ms=command.unix_ms, command_id=command.command_id)
    return replace(entry, moved=True, trigger=record, outcomes=(Outcome(command.command_id, key),))


def _no_function(command: Command, key: str) -> Outcome:
    message = f"function {command.function!r} does not exist in namespace {command.namespace!r}"
    return Outcome(command.command_id, key, "ResourceNotFound.FunctionName", message)


def _no_trigger(command: Command, key: str, wanted: TriggerRecord) -> Outcome:
    message = f"function {command.function!r} has no trigger {wanted.name!r}"
    return Outcome(command.command_id, key, "ResourceNotFound.Trigger", message)


def _wrong_status(command: Command, key: str, record: FunctionRecord) -> Outcome:
    message = f"function {command.function!r} is {record.status}; wait until that is over, then try again"
    return Outcome(command.command_id, key, "FailedOperation.FunctionStatusError", message)


def _malformed(command: Command, key: str, what: str) -> Outcome:
    return Outcome(command.command_id, key, "InternalError", f"the {command.kind} command has {what}")


def _unknown(_entry: Entry, command: Command, key: str) -> Outcome:
    message = f"this release of streams does not know {command.kind!r} commands"
    return Outcome(command.command_id, key, "UnsupportedOperation", message)


_DECISIONS: Final = {
    "create-function": _create_function,
    "update-function": _update_function,
    "delete-function": _delete_function,
    "create-trigger": _create_trigger,
    "update-trigger": _update_trigger,
    "delete-trigger": _delete_trigger,
    **dict.fromkeys(versions.KINDS, _on_ledger),
}
