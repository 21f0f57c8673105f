"""The registry's decisions about triggers. Pure, as `streams.registry`, which asks them.

A trigger is shown when its workflow has bound it, and no longer as soon as it is deleted; its consumer group is cleaned up after that.
"""

from __future__ import annotations

from dataclasses import replace

from schemas.records import Command, Outcome, StatusReason, TriggerRecord
from streams import sagas
from streams.entries import Entry
from streams.sagas import Ended, Given, Kind, Saga, begin


def create(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    """Take in create-trigger."""
    wanted = command.trigger
    if wanted is None:
        return malformed(command, key, "no trigger")
    saga = entry.saga
    if entry.trigger is not None or (saga is not None and saga.workflow == "create-trigger" and not saga.undoing):
        return Outcome(
            command.command_id,
            key,
            "ResourceInUse.Trigger",
            f"function {command.function!r} has a trigger {wanted.name!r} already",
        )
    if saga is not None:  # it cleans up after an older one, whose group is another: what is not done of that is left
        why = StatusReason("FailedOperation", "a new trigger of this name was made before this was done")
        left = sagas.take(saga, Given(Kind.LEAVE, command.unix_ms, reasons=(why,)))
        assert left is not None
        entry = gone_on(entry, left, key)
    record = replace(wanted, modified_unix_ms=command.unix_ms, command_id=command.command_id)
    return replace(entry, touched=True, saga=begin(command, trigger=record))


def update(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    """Take in update-trigger."""
    wanted, record = command.trigger, entry.trigger
    if wanted is None:
        return malformed(command, key, "no trigger")
    if record is None:
        return _no_trigger(command, key, wanted)
    return _with_trigger(entry, command, key, replace(wanted, created_unix_ms=record.created_unix_ms))


def delete(entry: Entry, command: Command, key: str) -> Entry | Outcome:
    """Take in delete-trigger."""
    if command.trigger is None:
        return malformed(command, key, "no trigger")
    if entry.trigger is None:
        return _no_trigger(command, key, command.trigger)
    saga = begin(command, trigger=entry.trigger)
    return replace(
        entry, moved=True, touched=True, trigger=None, saga=saga, outcomes=(Outcome(command.command_id, key),)
    )


def _with_trigger(entry: Entry, command: Command, key: str, wanted: TriggerRecord) -> Entry:
    record = replace(wanted, modified_unix_ms=command.unix_ms, command_id=command.command_id)
    return replace(entry, moved=True, trigger=record, outcomes=(Outcome(command.command_id, key),))


def is_of_trigger(saga: Saga) -> bool:
    """True for the workflows of triggers."""
    return saga.trigger is not None


def gone_on(entry: Entry, then: Saga | Ended, key: str) -> Entry:
    """A trigger is shown when it is bound, and who waits for it is told when that has failed, not when all is undone."""
    assert entry.saga is not None
    saga = then if isinstance(then, Saga) else then.saga
    is_create, was_undoing = saga.workflow == "create-trigger", entry.saga.undoing
    told: tuple[Outcome, ...] = ()
    if is_create and not was_undoing and (saga.undoing or isinstance(then, Ended)):
        reasons = then.reasons
        told = (Outcome(saga.saga_id, key, reasons[0].code if reasons else "", reasons[0].message if reasons else ""),)
    entry = replace(entry, outcomes=(*entry.outcomes, *told))
    if isinstance(then, Saga):
        return replace(entry, saga=then, touched=True)
    made = saga.trigger if is_create and not then.reasons else None
    ended = (*entry.ended, sagas.history(saga, key, then))
    return replace(entry, saga=None, moved=made is not None, trigger=made or entry.trigger, ended=ended)


def _no_trigger(command: Command, key: str, wanted: TriggerRecord) -> Outcome:
    message = f"function {command.function!r} has no trigger {wanted.name!r}"
    return Outcome(command.command_id, key, "ResourceNotFound.Trigger", message)


def malformed(command: Command, key: str, what: str) -> Outcome:
    """A command that no gateway sends."""
    return Outcome(command.command_id, key, "InternalError", f"the {command.kind} command has {what}")
