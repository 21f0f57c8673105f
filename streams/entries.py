"""The state of one key of the registry, and what can be written out of it."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.records import (
    AliasRecord,
    Command,
    FunctionRecord,
    Outcome,
    StepCommand,
    TriggerRecord,
    VersionRecord,
    WorkflowRecord,
)
from streams import versions
from streams.sagas import Saga


@dataclass(frozen=True, slots=True)
class Entry:
    """State of one key; both records None: deleted, or never made.

    `seq` is that of the last record written and survives a deletion. `applied` and `answered` are the offsets of the last command and the
    last step result taken in, -1 is none, and `ticks` counts the timers. `unix_ms` is the time of the last event. `pending` is a command that
    waits until the running saga is undone. What the last event did: `moved` says that it changed the record, `touched` that it began the saga or
    took it on, `timed` that it was a timer, `ended` has the sagas and `outcomes` the commands that it ended.
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
    pending: Command | None = None
    ticks: int = 0
    touched: bool = False
    timed: bool = False
    ended: tuple[WorkflowRecord, ...] = ()

    @property
    def version(self) -> int:
        """Grows with every event that changes the entry."""
        return self.applied + self.answered + self.ticks + 2


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The record of a key is deleted in its registry topic."""

    key: str
    is_function: bool


Output = (
    FunctionRecord
    | TriggerRecord
    | VersionRecord
    | AliasRecord
    | versions.Removed
    | Tombstone
    | StepCommand
    | WorkflowRecord
    | Outcome
)
