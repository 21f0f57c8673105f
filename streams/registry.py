"""The registry's decisions: commands and step results in; the new state of a function or trigger, and what must be written out.

Pure: no Faust, no clock, no I/O. Everything that follows from the last event stands in the entry itself, so outputs are a function of it:
the edge makes the entry durable first, then writes `outputs(entry)`, then lets the event go. After a crash the event comes again, is
recognised by its offset, and says the same again; an older one says nothing.

What this core can't see: whether the function of a trigger exists. The two have different keys, so different owners; the gateway checks
it before it sends create-trigger, and sends delete-trigger for each trigger of a function that it deletes.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Final

from schemas.ids import FunctionKey, TriggerKey
from schemas.lifecycle import FunctionMove, FunctionStatus, after
from schemas.records import (
    Command,
    FunctionRecord,
    Outcome,
    StatusReason,
    StepResult,
)
from streams import sagas, triggers, versions
from streams.entries import Entry, Output, Tombstone
from streams.sagas import Ended, Given, Kind, Saga, begin

FORGET_AFTER_MS: Final = 3_600_000
"""How long the mark of a deleted key is kept: far longer than an event can still come again."""


NEW: Final = Entry()


def key_of(event: Command | StepResult) -> str:
    """The registry key that an event changes: `appid/namespace/function`, for triggers with `/name` behind."""
    if isinstance(event, StepResult):
        return event.key
    function = FunctionKey(event.appid, event.namespace, event.function)
    if event.trigger is not None and event.kind.endswith("-trigger"):
        return str(TriggerKey(function, event.trigger.name))
    return str(function)


def take(entry: Entry, event: Command | StepResult, offset: int, now_ms: int = 0) -> tuple[Entry, tuple[Output, ...]]:
    """Take in one event that stands at `offset` of its topic, in the partition of its key.

    Total: never raises. An event that changes nothing (older, stale) gives the entry itself and no outputs. `now_ms` is the time by the clock of
    who takes it: the steps of a command that has waited long are not late by that.
    """
    mark = entry.applied if isinstance(event, Command) else entry.answered
    if offset < mark:
        return entry, ()
    key = key_of(event)
    if offset > mark:
        rest = _at_rest(entry)
        if isinstance(event, Command):
            command = replace(event, unix_ms=max(event.unix_ms, now_ms))
            # A command's offset lifts seq over that of an entry that was forgotten.
            decided = replace(_command(rest, command, key), seq=max(entry.seq, offset), applied=offset)
        elif (answered := _given(rest, sagas.given_by(event), key, now_ms)) is not None:
            decided = replace(answered, answered=offset)
        else:
            return entry, ()
        entry = _finished(decided, max(event.unix_ms, now_ms))
    return entry, outputs(entry, key)


def tick(entry: Entry, key: str, now_ms: int) -> tuple[Entry, tuple[Output, ...]]:
    """The time may have come for the saga's next move (see `due_ms`); the entry itself and no outputs when it has not."""
    decided = _given(_at_rest(entry), Given(Kind.TIMER, now_ms), key, now_ms)
    if decided is None:
        return entry, ()
    entry = _finished(replace(decided, ticks=entry.ticks + 1, timed=True), now_ms)
    return entry, outputs(entry, key)


def due_ms(entry: Entry) -> int | None:
    """When `tick` has something to decide, if nothing comes before it."""
    return None if entry.saga is None else entry.saga.due_ms


def outputs(entry: Entry, key: str) -> tuple[Output, ...]:
    """All that the last event of this key has to make known; the same each time it is asked."""
    made: list[Output] = [*versions.outputs(entry.ledger, key)]
    if entry.moved:
        made.append(entry.function or entry.trigger or Tombstone(key, is_function=key.count("/") == 2))
    made += entry.ended
    if entry.touched and entry.saga is not None:
        made.append(sagas.history(entry.saga, key))
        if not entry.saga.resting:
            made.append(sagas.step_out(entry.saga, key))
    return (*made, *entry.outcomes)


def _at_rest(entry: Entry) -> Entry:
    """The entry before the next event, which has done nothing yet."""
    ledger = versions.at_rest(entry.ledger)
    return replace(entry, ledger=ledger, moved=False, touched=False, timed=False, ended=(), outcomes=())


def _finished(decided: Entry, unix_ms: int) -> Entry:
    if decided.function is None:
        decided = replace(decided, ledger=versions.dropped(decided.ledger))
    return _numbered(replace(decided, unix_ms=unix_ms))


def is_forgettable(entry: Entry, now_ms: int) -> bool:
    """True for what is left of a deleted (or never made) key when no event of it can come again."""
    nothing = entry.function is None and entry.trigger is None and entry.saga is None
    return nothing and now_ms - entry.unix_ms > FORGET_AFTER_MS


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


def _given(entry: Entry, given: Given, key: str, now_ms: int) -> Entry | None:
    if entry.saga is None:
        return None
    then = sagas.take(entry.saga, replace(given, unix_ms=max(given.unix_ms, now_ms)))
    return None if then is None else _gone_on(entry, then, key)


def _gone_on(entry: Entry, then: Saga | Ended, key: str) -> Entry:
    if triggers.is_of_trigger(then if isinstance(then, Saga) else then.saga):
        return triggers.gone_on(entry, then, key)
    if isinstance(then, Saga):
        return replace(entry, saga=then, touched=True)
    saga, record = then.saga, entry.function
    assert record is not None, "a saga runs without its function"
    now_ms = saga.events[-1].unix_ms
    record = None if saga.workflow == "delete-function" and not then.reasons else _record_after(record, then, now_ms)
    over = replace(
        entry,
        moved=True,
        function=record,
        saga=None,
        pending=None,
        ledger=entry.ledger if record is None else versions.ended(entry.ledger, saga.saga_id, record, now_ms),
        ended=(*entry.ended, sagas.history(saga, key, then)),
        outcomes=(*entry.outcomes, _saga_outcome(then, key)),
    )
    return over if entry.pending is None else _command(over, replace(entry.pending, unix_ms=now_ms), key)


def _record_after(record: FunctionRecord, then: Ended, now_ms: int) -> FunctionRecord:
    failed = bool(then.reasons)
    status = after(FunctionStatus(record.status), FunctionMove.FAIL if failed else FunctionMove.SUCCEED)
    assert status is not None, f"a saga runs while {record.status}"
    return replace(
        record,
        status=status,
        modified_unix_ms=now_ms,
        serving=record.serving if failed else record.proposed,
        # What a failed create was to be is all there is to show, and what an update starts from.
        proposed=record.proposed if failed and record.serving is None else None,
        reasons=then.reasons,
    )


def _saga_outcome(then: Ended, key: str) -> Outcome:
    saga = then.saga
    if not then.reasons:
        return Outcome(saga.saga_id, key)
    code = {"create-function": "FailedOperation.CreateFunction", "delete-function": "FailedOperation.DeleteFunction"}
    said = "; ".join(f"{reason.code}: {reason.message}" for reason in then.reasons)
    return Outcome(saga.saga_id, key, code.get(saga.workflow, "FailedOperation"), said)


def _command(entry: Entry, command: Command, key: str) -> Entry:
    decided = _DECISIONS.get(command.kind, _unknown)(entry, command, key)
    return replace(entry, outcomes=(*entry.outcomes, decided)) if isinstance(decided, Outcome) else decided


def _begun(entry: Entry, record: FunctionRecord, command: Command) -> Entry:
    """The command's saga runs, on what the function is to be, or on what it was."""
    saga = begin(command, record.proposed or record.serving)
    return replace(entry, moved=True, touched=True, function=record, saga=saga)


def _instead(entry: Entry, record: FunctionRecord, command: Command, key: str, why: str) -> Entry:
    """The command takes the place of the saga that runs, when that is undone; a command that waits for the same is given up."""
    assert entry.saga is not None
    dropped: tuple[Outcome, ...] = ()
    if entry.pending is not None:
        dropped = (Outcome(entry.pending.command_id, key, "FailedOperation", f"{why} before this was begun"),)
    reason = StatusReason("FailedOperation", f"{why} before this was done")
    waiting = replace(entry, moved=True, function=record, pending=command, outcomes=(*entry.outcomes, *dropped))
    then = sagas.take(entry.saga, Given(Kind.ABANDON, command.unix_ms, reasons=(reason,)))
    return waiting if then is None else _gone_on(waiting, then, key)


def _create_function(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    if entry.function is not None:
        return Outcome(
            command.command_id,
            key,
            "ResourceInUse.FunctionName",
            f"function {command.function!r} exists in namespace {command.namespace!r} (it is {entry.function.status})",
        )
    if command.config is None:
        return triggers.malformed(command, key, "no configuration")
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
    return _begun(entry, record, command)


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
        outcomes = (*entry.outcomes, Outcome(command.command_id, key))
        return replace(entry, moved=True, function=record, outcomes=outcomes)
    if command.publish and entry.ledger is not None and entry.ledger.is_full:
        return versions.too_many_versions(record.name).outcome(command, key)
    status = after(FunctionStatus(record.status), FunctionMove.UPDATE)
    if status is None and record.status == FunctionStatus.UPDATING:
        status = FunctionStatus.UPDATING  # the newest wins
    if status is None:
        return _wrong_status(command, key, record)
    record = replace(record, status=status, proposed=command.config, reasons=())
    if entry.saga is not None:
        return _instead(entry, record, command, key, "a newer update took its place")
    return _begun(replace(entry, ledger=versions.began(entry.ledger, command)), record, command)


def _set_event_policy(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    if entry.function is None:
        return _no_function(command, key)
    if command.events is None:
        return triggers.malformed(command, key, "no policy")
    record = replace(entry.function, events=command.events, command_id=command.command_id)
    return replace(entry, moved=True, function=record, outcomes=(*entry.outcomes, Outcome(command.command_id, key)))


def _delete_function(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    record = entry.function
    if record is None:
        return _no_function(command, key)
    status = after(FunctionStatus(record.status), FunctionMove.DELETE)
    if status is None:
        return _wrong_status(command, key, record)
    record = replace(record, status=status, modified_unix_ms=command.unix_ms, command_id=command.command_id, reasons=())
    if entry.saga is not None:
        return _instead(entry, record, command, key, "the function was deleted")
    return _begun(entry, record, command)


def _on_ledger(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    if entry.function is None:
        return _no_function(command, key)
    ledger, outcome = versions.decide(entry.ledger or versions.EMPTY, entry.function, command, key)
    return outcome if outcome.code else replace(entry, ledger=ledger, outcomes=(*entry.outcomes, outcome))


def _no_function(command: Command, key: str) -> Outcome:
    message = f"function {command.function!r} does not exist in namespace {command.namespace!r}"
    return Outcome(command.command_id, key, "ResourceNotFound.FunctionName", message)


def _wrong_status(command: Command, key: str, record: FunctionRecord) -> Outcome:
    message = f"function {command.function!r} is {record.status}; wait until that is over, then try again"
    return Outcome(command.command_id, key, "FailedOperation.FunctionStatusError", message)


def _unknown(_entry: Entry, command: Command, key: str) -> Outcome:
    message = f"this release of streams does not know {command.kind!r} commands"
    return Outcome(command.command_id, key, "UnsupportedOperation", message)


_DECISIONS: Final = {
    "create-function": _create_function,
    "update-function": _update_function,
    "delete-function": _delete_function,
    "set-event-policy": _set_event_policy,
    "create-trigger": triggers.create,
    "update-trigger": triggers.update,
    "delete-trigger": triggers.delete,
    **dict.fromkeys(versions.KINDS, _on_ledger),
}
