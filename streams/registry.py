"""The registry's decisions: commands and step results in, the new state of a function or trigger and what must be written out.

Pure: no Faust, no clock, no I/O. State is absolute: an entry holds the whole record and the offset of the last command it took in. An older
command changes nothing and says nothing; the same one again (a crash came between the state and its outputs) says the same again; so do
step results. Issue 4's workflow engine puts longer lists of steps where `_begin` sends the one step of today.

A trigger of a function that does not exist is refused by the gateway: the two have different keys, so this core can't see both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256

from schemas.ids import FunctionKey, TriggerKey
from schemas.lifecycle import FunctionMove, FunctionStatus, after
from schemas.records import Command, FunctionRecord, Outcome, StepCommand, StepResult, TriggerRecord

CODE_MODULE = "code"


@dataclass(frozen=True, slots=True)
class Entry:
    """State of one key. Both records None: deleted, or never made. `refusal` is how the last command ended, if it was refused."""

    applied: int = -1
    function: FunctionRecord | None = None
    trigger: TriggerRecord | None = None
    refusal: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is to be written, in this order. `tombstone` means that the record of the key is deleted in its topic."""

    step: StepCommand | None = None
    function: FunctionRecord | None = None
    trigger: TriggerRecord | None = None
    tombstone: bool = False
    outcome: Outcome | None = None


NOTHING = Outputs()
_IN_SAGA = (FunctionStatus.CREATING, FunctionStatus.UPDATING)


def key_of(command: Command) -> str:
    """The registry key that a command changes."""
    function = FunctionKey(command.appid, command.namespace, command.function)
    return str(TriggerKey(function, command.trigger.name)) if command.trigger is not None else str(function)


def take_command(entry: Entry, command: Command, offset: int) -> tuple[Entry, Outputs]:
    """Apply one command that stands at `offset` of its partition."""
    key = key_of(command)
    if offset < entry.applied:
        return entry, NOTHING
    if offset == entry.applied:
        return entry, _again(entry, command, key)
    decided = (
        _decide_trigger(entry, command, offset) if command.trigger is not None else _decide(entry, command, offset)
    )
    if isinstance(decided, Outcome):
        refused = replace(entry, applied=offset, refusal=decided)
        return refused, Outputs(outcome=decided)
    return decided, _again(decided, command, key)


def take_result(entry: Entry, result: StepResult) -> tuple[Entry, Outputs]:
    """Apply a module's answer. One of a saga that is not this key's newest is ignored."""
    record = entry.function
    if record is None or result.saga_id != record.command_id:
        return entry, NOTHING
    if record.status in _IN_SAGA:
        record = _ended(record, result)
        entry = replace(entry, function=record)
    reason = record.reasons[0] if record.reasons else None
    outcome = Outcome(record.command_id, result.key, reason.code if reason else "", reason.message if reason else "")
    return entry, Outputs(function=record, outcome=outcome)


def _ended(record: FunctionRecord, result: StepResult) -> FunctionRecord:
    move = FunctionMove.FAIL if result.reasons else FunctionMove.SUCCEED
    status = after(FunctionStatus(record.status), move)
    return replace(
        record,
        seq=record.seq + 1,
        status=str(status),
        modified_unix_ms=result.unix_ms,
        serving=record.serving if result.reasons else record.proposed,
        proposed=None if record.serving is not None or not result.reasons else record.proposed,
        reasons=result.reasons,
    )


def _again(entry: Entry, command: Command, key: str) -> Outputs:
    """Everything that follows from the entry's last command; the same each time it is asked."""
    if entry.refusal is not None:
        return Outputs(outcome=entry.refusal)
    if entry.function is not None:
        return Outputs(step=_step(entry.function, key), function=entry.function)
    if entry.trigger is not None:
        return Outputs(trigger=entry.trigger, outcome=Outcome(command.command_id, key))
    return Outputs(tombstone=True, outcome=Outcome(command.command_id, key))


def _step(record: FunctionRecord, key: str) -> StepCommand | None:
    if record.status not in _IN_SAGA:
        return None
    return StepCommand(
        step_id=f"{record.command_id}:{CODE_MODULE}",
        saga_id=record.command_id,
        module=CODE_MODULE,
        operation="check",
        key=key,
        unix_ms=record.modified_unix_ms,
        config=record.proposed,
    )


def _decide(entry: Entry, command: Command, offset: int) -> Entry | Outcome:
    record = entry.function
    if command.kind == "create-function":
        if record is not None:
            return _refuse(command, "ResourceInUse.FunctionName", f"function {command.function} exists")
        return Entry(applied=offset, function=_created(command, offset))
    if record is None:
        return _refuse(command, "ResourceNotFound.FunctionName", f"function {command.function} does not exist")
    move = FunctionMove.UPDATE if command.kind == "update-function" else FunctionMove.DELETE
    status = after(FunctionStatus(record.status), move)
    if status is None:
        return _refuse(
            command, "FailedOperation.FunctionStatusError", f"function {command.function} is {record.status}"
        )
    if move is FunctionMove.DELETE:
        return Entry(applied=offset)
    updated = replace(
        record,
        seq=record.seq + 1,
        status=str(status),
        description=record.description if command.description is None else command.description,
        modified_unix_ms=command.unix_ms,
        applied=offset,
        command_id=command.command_id,
        proposed=command.config or record.serving,
        reasons=(),
    )
    return Entry(applied=offset, function=updated)


def _created(command: Command, offset: int) -> FunctionRecord:
    return FunctionRecord(
        seq=offset + 1,  # grows over deletions too, so that a reader never takes an older incarnation for newer
        appid=command.appid,
        uin=command.uin,
        namespace=command.namespace,
        name=command.function,
        function_id="lam-" + sha256(command.command_id.encode()).hexdigest()[:8],
        status=FunctionStatus.CREATING,
        description=command.description or "",
        created_unix_ms=command.unix_ms,
        modified_unix_ms=command.unix_ms,
        applied=offset,
        command_id=command.command_id,
        proposed=command.config,
    )


def _decide_trigger(entry: Entry, command: Command, offset: int) -> Entry | Outcome:
    wanted, record = command.trigger, entry.trigger
    assert wanted is not None
    if command.kind == "create-trigger":
        if record is not None:
            return _refuse(command, "ResourceInUse.Trigger", f"trigger {wanted.name} exists")
        seq = offset + 1
    elif record is None:
        return _refuse(command, "ResourceNotFound.Trigger", f"trigger {wanted.name} does not exist")
    elif command.kind == "delete-trigger":
        return Entry(applied=offset)
    else:
        seq = record.seq + 1
    return Entry(applied=offset, trigger=replace(wanted, seq=seq, applied=offset, command_id=command.command_id))


def _refuse(command: Command, code: str, message: str) -> Outcome:
    return Outcome(command.command_id, key_of(command), code, message)
