"""What every handler gets: the ports, the registry with its overlay, and the one way to send a command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar
from uuid import uuid4

from ingest.api.auth import Caller
from ingest.api.ports import (
    ActivityView,
    Clock,
    CodeStore,
    Commands,
    DeadCounts,
    EventLog,
    Invoker,
    LaneStates,
    LogReader,
    MembersView,
    Owner,
    ProvisionStatusView,
    Seal,
    SourceAdmin,
    Ticket,
    WorkflowLog,
)
from ingest.api.registry import Registry
from schemas.concurrency import LimitRecord, ProvisionRecord
from schemas.errors import BadRequest
from schemas.ids import DEFAULT_NAMESPACE, FunctionKey, TriggerKey, layer_key
from schemas.records import AliasRecord, Command, FunctionRecord, Outcome, TriggerRecord, VersionRecord
from schemas.tenants import KeyRecord, LayerRecord, NamespaceRecord, TenantCommand

T = TypeVar("T", NamespaceRecord, KeyRecord, LayerRecord)
L = TypeVar("L", VersionRecord, AliasRecord, LimitRecord, ProvisionRecord)
C = TypeVar("C", LimitRecord, ProvisionRecord)
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
    namespaces: Registry[NamespaceRecord]
    keys: Registry[KeyRecord]
    layers: Registry[LayerRecord]
    limits: Registry[LimitRecord]
    provisions: Registry[ProvisionRecord]
    versions: Registry[VersionRecord]
    aliases: Registry[AliasRecord]
    owner: Owner
    seal: Seal
    commands: Commands
    code: CodeStore
    invoker: Invoker
    sources: SourceAdmin
    lanes: LaneStates
    dead: DeadCounts
    logs: LogReader
    workflows: WorkflowLog
    events: EventLog
    activity: ActivityView
    members: MembersView
    kept: ProvisionStatusView
    clock: Clock
    region: str
    bootstrap_servers: str
    in_creation: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.commands.subscribe(self._settled)

    def _settled(self, outcome: Outcome) -> None:
        self.functions.settled(outcome)
        self.triggers.settled(outcome)

    def namespace(self, appid: str, name: str) -> str:
        """Scope of the functions of a namespace that exists; raises ResourceNotFound.Namespace.

        One that holds a function exists, whatever else is known of it: what was made is never out of its owner's reach.
        """
        scope = f"{appid}/{name}"
        if name == DEFAULT_NAMESPACE or self.namespaces.get(scope) is not None or self.functions.within(scope):
            return scope
        raise BadRequest("ResourceNotFound.Namespace", f"namespace {name!r} does not exist; CreateNamespace makes it")

    def function(self, key: FunctionKey) -> FunctionRecord:
        """The state of a function; raises ResourceNotFound.FunctionName or ResourceNotFound.Namespace."""
        record = self.functions.get(str(key))
        if record is None:
            self.namespace(key.appid, key.namespace)
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

    async def change_tenant(
        self, registry: Registry[T], key: str, command: TenantCommand, shown: T | None, *, failed_code: str, what: str
    ) -> None:
        """Send a command about a tenant, wait for its outcome, and show the row at once (None: gone).

        Raises BadRequest when it was refused, or its outcome is not known in time.
        """
        ticket = await self.commands.send(command.appid, command)
        await accepted(ticket, failed_code=failed_code, what=what)
        self._show(registry, key, command, shown, ticket.offset)

    async def publish_layer(self, wanted: LayerRecord, command: TenantCommand) -> LayerRecord:
        """Send, wait until it has its number, and show it; raises as `change_tenant` does."""
        ticket = await self.commands.send(command.appid, command)
        what = f"the version of layer {wanted.name!r}"
        outcome = await accepted(ticket, failed_code="FailedOperation.PublishLayerVersion", what=what)
        made = replace(wanted, version=int(outcome.result))
        self._show(self.layers, layer_key(made.appid, made.name, made.version), command, made, ticket.offset)
        return made

    def _show(self, registry: Registry[T], key: str, command: TenantCommand, shown: T | None, offset: int) -> None:
        if shown is None and registry.get(key) is None:
            return
        state = None if shown is None else replace(shown, applied=offset, command_id=command.command_id)
        registry.propose(key, command.command_id, state, ends=state is None)
        registry.sent(key, command.command_id, offset)
        registry.settled(Outcome(command.command_id, command.appid))

    async def change_ledger(
        self,
        registry: Registry[L],
        key: FunctionKey,
        command: Command,
        wanted: Callable[[str], tuple[str, Callable[[L | None], bool]]],
        *,
        failed_code: str,
        what: str,
    ) -> L | None:
        """Send a command about a function's versions or aliases, and wait until it is decided and this gateway shows it.

        `wanted` says, of the outcome's result, in which row and what is to be seen there. Gives that row. Raises BadRequest when it was
        refused, or is not seen in time.
        """
        began_s = self.clock.mono_s()
        ticket = await self.commands.send(str(key), command)
        outcome = await accepted(ticket, failed_code=failed_code, what=what, spent_s=self.clock.mono_s() - began_s)
        row, claim = wanted(outcome.result)
        await self._until_shown(registry, row, claim, began_s, failed_code=failed_code, what=what)
        return registry.get(row)

    async def change_limit(
        self, registry: Registry[C], row: str, command: TenantCommand, *, gone: bool, what: str
    ) -> None:
        """Send a command about a tenant's concurrency, and wait until it is decided and this gateway goes by it.

        `row` is the key of what changes, or is gone then. Raises BadRequest when it was refused, or is not seen in time.
        """
        began_s, failed_code = self.clock.mono_s(), "FailedOperation"
        ticket = await self.commands.send(command.appid, command)
        await accepted(ticket, failed_code=failed_code, what=what, spent_s=self.clock.mono_s() - began_s)

        def is_shown(state: C | None) -> bool:
            return gone if state is None else state.applied >= ticket.offset

        await self._until_shown(registry, row, is_shown, began_s, failed_code=failed_code, what=what)

    async def _until_shown(
        self, registry: Registry[L], row: str, claim: Callable[[L | None], bool], began_s: float, *, failed_code: str,
        what: str,
    ) -> None:  # fmt: skip
        left_s = max(0.05, OUTCOME_S - (self.clock.mono_s() - began_s))
        if not await _is_shown(registry, row, claim, left_s):
            raise BadRequest(
                failed_code, f"{what} is done but not to be seen here after {OUTCOME_S:g} s; look again soon"
            )

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


async def _is_shown(registry: Registry[L], row: str, claim: Callable[[L | None], bool], timeout_s: float) -> bool:
    """Wait until the registry's view shows a state of the row that `claim` holds for; False when it does not in time."""
    shown = asyncio.Event()

    def seen(state: L | None) -> None:
        if claim(state):
            shown.set()

    end = registry.watch(row, seen)
    try:
        async with asyncio.timeout(timeout_s):
            await shown.wait()
    except TimeoutError:
        return False
    finally:
        end()
    return True


def new_command_id() -> str:
    """A fresh id of a command."""
    return uuid4().hex


async def accepted(ticket: Ticket, *, failed_code: str, what: str, spent_s: float = 0.0) -> Outcome:
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
    return outcome
