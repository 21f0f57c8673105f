"""What every handler gets: the ports, the registry with its overlay, and the one way to send a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

from ingest.api.auth import Caller
from ingest.api.ports import (
    ActivityView,
    Background,
    Clock,
    CodeStore,
    Commands,
    DeadCounts,
    Invoker,
    LaneStates,
    LogReader,
    MembersView,
    SourceAdmin,
    Ticket,
)
from ingest.api.registry import Registry
from schemas.errors import BadRequest
from schemas.ids import FunctionKey, TriggerKey
from schemas.records import Command, FunctionRecord, Outcome, TriggerRecord

OUTCOME_S: Final = 5.0
"""How long an answer that carries a result waits for it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated call. `request_id` is the id that its answer carries."""

    caller: Caller
    request_id: str
    now_ms: int

    def function(self, namespace: str, name: str) -> FunctionKey:
        """Key of a function of the caller's own tenant: no request can name another's."""
        return FunctionKey(self.caller.appid, namespace, name)


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that handlers use. One per gateway."""

    functions: Registry[FunctionRecord]
    triggers: Registry[TriggerRecord]
    commands: Commands
    code: CodeStore
    invoker: Invoker
    sources: SourceAdmin
    lanes: LaneStates
    dead: DeadCounts
    logs: LogReader
    activity: ActivityView
    members: MembersView
    background: Background
    clock: Clock
    region: str
    bootstrap_servers: str
    in_creation: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.commands.subscribe(self._settled)

    def _settled(self, outcome: Outcome) -> None:
        self.functions.settled(outcome)
        self.triggers.settled(outcome)

    def function(self, key: FunctionKey) -> FunctionRecord:
        """The state of a function; raises ResourceNotFound.FunctionName."""
        record = self.functions.get(str(key))
        if record is None:
            raise BadRequest(
                "ResourceNotFound.FunctionName", f"function {key.name!r} does not exist in namespace {key.namespace!r}"
            )
        return record

    def triggers_of(self, key: FunctionKey) -> list[TriggerRecord]:
        """All triggers of a function, by name."""
        return self.triggers.within(str(key))

    async def send_function_command(
        self, key: FunctionKey, command: Command, shown: FunctionRecord, *, ends: bool = False
    ) -> None:
        """Send; `shown` is what this gateway shows for the function until the registry has caught up."""
        text = str(key)
        self.functions.propose(text, command.command_id, shown, ends=ends)
        try:
            ticket = await self.commands.send(text, command)
        except BaseException:
            self.functions.withdraw(text, command.command_id)
            raise
        self.functions.sent(text, command.command_id, ticket.offset)

    async def send_trigger_command(self, key: TriggerKey, command: Command) -> Ticket:
        """Send; what is shown does not change before the outcome (`trigger_accepted`)."""
        return await self.commands.send(str(key), command)

    def trigger_accepted(self, key: TriggerKey, ticket: Ticket, command_id: str, shown: TriggerRecord | None) -> None:
        """The outcome was good: show it from now on."""
        text = str(key)
        if shown is None and self.triggers.get(text) is None:
            return
        self.triggers.propose(text, command_id, shown, ends=shown is None)
        self.triggers.sent(text, command_id, ticket.offset)
        self.triggers.settled(Outcome(command_id, text))

    @contextmanager
    def creating(self, key: TriggerKey) -> Iterator[None]:
        """Hold a trigger's name while it is made, so that two calls at one gateway don't both pin its offsets."""
        text = str(key)
        if text in self.in_creation:
            raise BadRequest("ResourceInUse.Trigger", f"trigger {key.name!r} is being created by another call")
        self.in_creation.add(text)
        try:
            yield
        finally:
            self.in_creation.discard(text)


def new_command_id() -> str:
    """A fresh id of a command."""
    return uuid4().hex


async def accepted(ticket: Ticket, *, failed_code: str, what: str, spent_s: float = 0.0) -> None:
    """Wait for a command's outcome; raises BadRequest when it was refused, or is not known within `OUTCOME_S` less what is spent of it."""
    outcome = await ticket.outcome(max(0.05, OUTCOME_S - spent_s))
    if outcome is None:
        raise BadRequest(
            failed_code,
            f"{what} was taken in but is not confirmed after {OUTCOME_S:g} s (is streams running? see penstock status);"
            " it may still take effect",
        )
    if outcome.code:
        raise BadRequest(outcome.code, outcome.message)
