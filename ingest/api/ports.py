"""What the cloud API stands on, as its handlers see it. Real ones are in `ingest.api.adapters`; tests have fakes in memory.

All calls are made on the event loop. Coroutines may raise DependencyError (BrokerUnavailable, StoreUnavailable, DeadlineExceeded); the
server answers it with a coded error that says to try again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from schemas.concurrency import ProvisionStatus
from schemas.events import AsyncEvent, EventStatus, Termination
from schemas.frames import Flow, Result
from schemas.ids import FunctionKey, TriggerKey
from schemas.records import (
    Command,
    FunctionActivity,
    FunctionRecord,
    LanePartition,
    LogLine,
    Member,
    Outcome,
    TriggerRecord,
    WorkflowRecord,
)
from schemas.tenants import CarriedOut, KeyRecord, NamespaceRecord, TenantCommand

T_co = TypeVar("T_co", covariant=True)


class Clock(Protocol):
    """Wall time and a clock that only goes forward; the module `infra.clock` is one."""

    def unix_ms(self) -> int:
        """Milliseconds since 1970."""
        ...

    def mono_s(self) -> float:
        """Seconds since some start; never goes back."""
        ...


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One pair of API keys and whose it is. `token` is set for temporary keys only; `earlier_secret` is the one before a rotation, as
    long as it is good.
    """

    secret_id: str
    secret_key: str
    appid: str
    uin: str
    token: str = ""
    earlier_secret: str = ""

    def __repr__(self) -> str:
        return f"KeyPair({self.secret_id}, appid={self.appid})"


class KeyStore(Protocol):
    """Where key pairs are looked up."""

    def find(self, secret_id: str) -> KeyPair | None:
        """The pair of this id as it may be used now, or None; local and quick."""
        ...


@dataclass(frozen=True, slots=True)
class Owner:
    """The tenant of the fabric's credentials file, which may manage other tenants' keys. `since_unix_ms`: when that file was made."""

    secret_id: str
    appid: str
    uin: str
    since_unix_ms: int


class Seal(Protocol):
    """Encryption of secrets at rest; `owner` names what a secret belongs to, and is part of what is authenticated."""

    def seal(self, secret: str, *, owner: str) -> bytes:
        """The sealed form, different each time."""
        ...

    def open(self, sealed: bytes, *, owner: str) -> str:
        """The secret. Raises PlatformError when it does not open."""
        ...


class View(Protocol[T_co]):
    """A table reader's view of one compacted topic; local, follows the topic."""

    def get(self, key: str) -> T_co | None:
        """The newest state, or None."""
        ...

    def items(self) -> Mapping[str, T_co]:
        """All states by key; a live mapping."""
        ...

    def subscribe(self, callback: Callable[[str, T_co | None], None]) -> None:
        """Called on the loop for every later change; None is a tombstone."""
        ...


FunctionsView = View[FunctionRecord]
TriggersView = View[TriggerRecord]
NamespacesView = View[NamespaceRecord]
KeysView = View[KeyRecord]
ActivityView = View[FunctionActivity]
MembersView = View[Member]
ProvisionStatusView = View[ProvisionStatus]


class Ticket(Protocol):
    """One command that the broker has acknowledged."""

    @property
    def offset(self) -> int:
        """Its offset in its partition of the command topic."""
        ...

    async def outcome(self, timeout_s: float) -> Outcome | None:
        """How it ended, or None when that is not known after `timeout_s`."""
        ...


class Commands(Protocol):
    """Way to the workflow processor."""

    async def send(self, key: str, command: Command | TenantCommand) -> Ticket:
        """Produce with acks=all. Raises BrokerUnavailable; then it is not known whether the command is in."""
        ...

    def subscribe(self, callback: Callable[[Outcome], None]) -> None:
        """Called on the loop for every outcome, whoever sent its command."""
        ...


class CodeStore(Protocol):
    """The fabric's object store, as far as code packages go."""

    async def put_package(self, sha256: str, package: bytes) -> None:
        """Store a package under its hash; writing it again does no harm."""
        ...

    async def package_url(self, sha256: str, *, valid_s: int) -> str:
        """A URL by which anybody may download a stored package for so many seconds."""
        ...

    async def read_object(self, bucket: str, name: str, *, limit_bytes: int) -> bytes:
        """Raises ObjectNotFound, or BadPackage when it is larger than the limit."""
        ...


class Invoker(Protocol):
    """The router's dispatcher."""

    def submit(
        self,
        function: FunctionKey,
        qualifier: str,
        event: bytes,
        *,
        flow: Flow | None,
        attempt: int,
        flags: int,
        done: Callable[[Result], None],
        request_id: bytes | None = None,
        waits: bool = False,
    ) -> None:
        """Run one event. Never raises; `done` is called exactly once, on the loop, possibly before this returns.

        At a limit of concurrency one that `waits` does so for a moment, any other is refused at once.
        """
        ...

    def cancel(self, request_id: bytes) -> bool:
        """End a request's run, wherever it is; True when there was one. Its `done` is called as ever."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """Where a consumer group stands in one partition; `committed` is the partition's start when nothing is committed."""

    committed: int
    end: int


class SourceAdmin(Protocol):
    """Administration of Kafka clusters that triggers read, the fabric's own or others.

    Every call is bounded by about 5 s and raises BrokerUnavailable past it.
    """

    async def partitions(self, bootstrap_servers: str, topic: str) -> int | None:
        """How many partitions the topic has, or None when there is no such topic."""
        ...

    async def pin_offsets(self, bootstrap_servers: str, group: str, topic: str, start: str) -> None:
        """Commit where the group begins, in partitions where it has not begun: `latest`, `earliest`, or unix ms (the first record at or after it, else the end)."""
        ...

    async def positions(self, bootstrap_servers: str, group: str, topic: str) -> Mapping[int, Position]:
        """Committed and end offset of every partition, read from the broker now."""
        ...

    async def make_dead_letter_topic(self, topic: str, partitions: int) -> None:
        """Create it on the fabric's own cluster when it isn't there."""
        ...

    async def delete_group(self, bootstrap_servers: str, group: str) -> bool:
        """True when the group is gone; False while it still has members."""
        ...


@dataclass(frozen=True, slots=True)
class LaneState:
    """What the owners of a trigger's partitions say. `state` is empty when no gateway has said anything yet."""

    state: str
    partitions: Mapping[int, LanePartition]


class LaneStates(Protocol):
    """What is known of running triggers."""

    def of(self, key: TriggerKey) -> LaneState:
        """The newest state of one trigger over all gateways; local."""
        ...


class DeadCounts(Protocol):
    """Counts of dead letters."""

    async def dead(self, key: TriggerKey) -> Mapping[int, int]:
        """Distinct source offsets that are now in the trigger's dead-letter topic, by source partition."""
        ...


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some lines in arrival order. `cursor` goes on behind them; `at_end` says that nothing more is kept now."""

    lines: Sequence[LogLine]
    cursor: str
    at_end: bool


class LogReader(Protocol):
    """The log topic."""

    async def read(
        self, key: FunctionKey, *, cursor: str, since_unix_ms: int | None, limit: int, request_id: str, wait_s: float
    ) -> LogPage:
        """Up to `limit` lines of one function from `cursor`, else from `since_unix_ms`, else from the oldest kept.

        Reads a bounded amount, so a page may hold few lines though more follow. When there is nothing new it waits up to `wait_s`.
        Raises ValueError for a cursor that is none.
        """
        ...


class WorkflowLog(Protocol):
    """Histories of workflows."""

    async def of(self, appid: str, saga_id: str = "") -> list[WorkflowRecord]:
        """The tenant's workflows that are kept, in no order; with `saga_id` that one, if it is the tenant's. Raises BrokerUnavailable."""
        ...


class EventLog(Protocol):
    """Asynchronous events. What became of them is kept 72 h."""

    async def accept(self, event: AsyncEvent, now_ms: int) -> None:
        """It stands durably when this returns. Raises BrokerUnavailable; then it may, or not."""
        ...

    async def find(self, appid: str, request_id: str) -> EventStatus | None:
        """One event of the tenant, of any of its functions. Raises BrokerUnavailable."""
        ...

    async def of(self, key: FunctionKey, request_id: str = "") -> list[EventStatus]:
        """Events of a function in no order; with `request_id` that one. Raises BrokerUnavailable."""
        ...

    async def terminate(self, wish: Termination) -> None:
        """Tell every gateway. Raises BrokerUnavailable."""
        ...


class RequestLog(Protocol):
    """Signed requests that changed something, at any gateway of the fabric."""

    def note(self, request: CarriedOut) -> None:
        """Tell the others. Best effort, never waits."""
        ...

    def subscribe(self, callback: Callable[[CarriedOut], None]) -> None:
        """Called on the loop for every one, this gateway's own too, and first for those of the last hour."""
        ...


class Health(Protocol):
    """What /readyz answers from."""

    def parts(self) -> Mapping[str, bool]:
        """Each part that must be well, by name: tables, agent, streams."""
        ...


class Background(Protocol):
    """Work that goes on after an answer, bounded and best effort."""

    def later(self, what: str, work: Callable[[], Awaitable[bool]]) -> None:
        """Run `work` until it says True, with growing pauses, for a minute at most; `what` names it in the log."""
        ...
