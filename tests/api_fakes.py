"""A fabric in memory behind the ports of the cloud API: commands are worked off as streams would, on the same loop."""

from __future__ import annotations

import asyncio
import base64
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from infra import clock
from infra.credentials import Credentials
from infra.metrics import MetricRegistry
from infra.sealing import Seal
from infra.steps import StepRetry
from ingest.api.background import BackgroundWork
from ingest.api.calls import Api
from ingest.api.keystore import TenantKeys
from ingest.api.ports import KeyPair, LaneState, LogPage, Owner, Position
from ingest.api.registry import Registry
from ingest.api.server import ApiServer
from ingest.api.services import Services
from ingest.api.upkeep import LimitUpkeep
from ingest.events.runner import status_of
from ingest.trigger_steps import TriggerModule
from schemas.concurrency import LimitRecord, ProvisionRecord, ProvisionStatus
from schemas.errors import BadPackage, BrokerUnavailable, ObjectNotFound
from schemas.events import AsyncEvent, EventState, EventStatus, Termination
from schemas.frames import WANT_LOG_TAIL, Flow, Result
from schemas.ids import FunctionKey, TriggerKey
from schemas.lifecycle import FunctionStatus
from schemas.records import (
    AliasRecord,
    Command,
    FunctionActivity,
    FunctionRecord,
    LanePartition,
    LogLine,
    Member,
    Outcome,
    StatusReason,
    StepCommand,
    TriggerRecord,
    VersionRecord,
    WorkflowRecord,
)
from schemas.runerror import error_body
from schemas.runstatus import RunStatus
from schemas.tenants import KeyRecord, LayerRecord, NamespaceRecord, TenantCommand
from schemas.topics import KEYS, LAYERS, LIMITS, NAMESPACES, PROVISIONS
from streams import tenants
from streams import versions as ledger
from streams.tenancy import publication

T = TypeVar("T")
SECRET_ID, SECRET_KEY, APPID, UIN = "AKIDtest", "secretfortests", "1250000001", "100000000001"
SINCE_MS = 1_700_000_000_000
FABRIC_SERVERS = "127.0.0.1:9092"


def zip_of(files: Mapping[str, str | bytes] | None = None) -> bytes:
    """A package; by default one with index.main_handler."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files or {"index.py": "def main_handler(event, context):\n    return event\n"}).items():
            archive.writestr(name, content)
    return out.getvalue()


def creation(name: str = "hello", **more: Any) -> dict[str, Any]:
    """Fields of a CreateFunction that is fine."""
    return {
        "FunctionName": name,
        "Runtime": "Python3.10",
        "Handler": "index.main_handler",
        "Code": {"ZipFile": base64.b64encode(zip_of()).decode()},
        **more,
    }


class FakeView(Generic[T]):
    """A table reader's view that tests write to."""

    def __init__(self) -> None:
        self.rows: dict[str, T] = {}
        self._callbacks: list[Callable[[str, T | None], None]] = []

    def get(self, key: str) -> T | None:
        return self.rows.get(key)

    def items(self) -> Mapping[str, T]:
        return self.rows

    def subscribe(self, callback: Callable[[str, T | None], None]) -> None:
        self._callbacks.append(callback)

    def put(self, key: str, row: T | None) -> None:
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row
        for callback in self._callbacks:
            callback(key, row)


class FakeTicket:
    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def outcome(self, timeout_s: float) -> Outcome | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self.answer)
        except TimeoutError:
            return None


@dataclass
class FakeStreams:
    """Takes commands; works them off by itself after `delay_s`, or when told (`delay_s` None)."""

    functions: FakeView[FunctionRecord]
    triggers: FakeView[TriggerRecord]
    delay_s: float | None = 0.0
    broken: bool = False
    refuse: Outcome | None = None
    sent: list[Command] = field(default_factory=list)
    sent_of_tenants: list[TenantCommand] = field(default_factory=list)
    waiting: list[tuple[str, Command | TenantCommand, FakeTicket]] = field(default_factory=list)
    namespaces: FakeView[NamespaceRecord] = field(default_factory=FakeView)
    keys: FakeView[KeyRecord] = field(default_factory=FakeView)
    layers: FakeView[LayerRecord] = field(default_factory=FakeView)
    limits: FakeView[LimitRecord] = field(default_factory=FakeView)
    provisions: FakeView[ProvisionRecord] = field(default_factory=FakeView)
    tenants: dict[str, tenants.TenantEntry] = field(default_factory=dict)
    versions: FakeView[VersionRecord] = field(default_factory=FakeView)
    aliases: FakeView[AliasRecord] = field(default_factory=FakeView)
    ledgers: dict[str, ledger.Ledger | None] = field(default_factory=dict)
    code_fails: tuple[StatusReason, ...] = ()
    callbacks: list[Callable[[Outcome], None]] = field(default_factory=list)
    binding: TriggerModule | None = None
    bindings: set[asyncio.Task[None]] = field(default_factory=set)

    async def close(self) -> None:
        """End what is still being bound or unbound."""
        for task in self.bindings:
            task.cancel()
        await asyncio.gather(*self.bindings, return_exceptions=True)

    async def send(self, key: str, command: Command | TenantCommand) -> FakeTicket:
        await asyncio.sleep(0)
        if self.broken:
            raise BrokerUnavailable("no broker answers")
        if isinstance(command, Command):
            ticket = FakeTicket(len(self.sent))
            self.sent.append(command)
        else:
            ticket = FakeTicket(len(self.sent_of_tenants))
            self.sent_of_tenants.append(command)
        self.waiting.append((key, command, ticket))
        if self.delay_s is not None:
            asyncio.get_running_loop().call_later(self.delay_s, self.work)
        return ticket

    def subscribe(self, callback: Callable[[Outcome], None]) -> None:
        self.callbacks.append(callback)

    def work(self) -> None:
        """Apply everything that waits."""
        while self.waiting:
            key, command, ticket = self.waiting.pop(0)
            if isinstance(command, TenantCommand):
                self._apply_to_tenant(command, ticket)
                continue
            outcome = self.refuse or Outcome(command.command_id, key)
            outcome = replace(outcome, command_id=command.command_id, key=key)
            if command.kind in ledger.KINDS and not outcome.code:
                outcome = self._decide(key, command)
            elif command.kind == "create-trigger" and not outcome.code:
                self._spawn(self._bind(key, command, ticket))
                continue
            elif not outcome.code:
                self._apply(key, command, ticket.offset)
                if command.kind == "delete-trigger":
                    self._spawn(self._unbind(key, command))
            self._show_ledger(key, ticket.offset)
            self._tell(outcome, ticket)

    def _tell(self, outcome: Outcome, ticket: FakeTicket) -> None:
        for callback in self.callbacks:
            callback(outcome)
        if not ticket.answer.done():
            ticket.answer.set_result(outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.bindings.add(task)
        task.add_done_callback(self.bindings.discard)

    async def _bind(self, key: str, command: Command, ticket: FakeTicket) -> None:
        """As the real module does; what it would try again has failed here."""
        assert self.binding is not None
        step = StepCommand(
            f"{command.command_id}/0", command.command_id, "trigger", "bind", key, 0, trigger=command.trigger
        )
        try:
            reasons = await self.binding.handle(step)
        except StepRetry as exc:
            reasons = (exc.reason,)
        if not reasons:
            self._apply(key, command, ticket.offset)
        why = reasons[0] if reasons else StatusReason("", "")
        self._tell(Outcome(command.command_id, key, why.code, why.message), ticket)

    async def _unbind(self, key: str, command: Command) -> None:
        assert self.binding is not None
        step = StepCommand("", "", "trigger", "unbind", key, 0, trigger=command.trigger)
        while True:
            try:
                await self.binding.handle(step)
                return
            except StepRetry:
                await asyncio.sleep(0.01)

    def _decide(self, key: str, command: Command) -> Outcome:
        """As the real core decides."""
        record = self.functions.get(key)
        if record is None:
            return Outcome(command.command_id, key, "ResourceNotFound.FunctionName", "it is gone")
        self.ledgers[key], outcome = ledger.decide(self.ledgers.get(key) or ledger.EMPTY, record, command, key)
        return outcome

    def _show_ledger(self, key: str, offset: int) -> None:
        then = ledger.numbered(self.ledgers.get(key), offset + 1, offset)
        for output in ledger.outputs(then, key):
            if isinstance(output, VersionRecord):
                self.versions.put(ledger.key_of(output), output)
            elif isinstance(output, AliasRecord):
                self.aliases.put(ledger.key_of(output), output)
            else:
                (self.versions if output.is_version else self.aliases).put(output.key, None)
        self.ledgers[key] = ledger.at_rest(then)

    def _apply_to_tenant(self, command: TenantCommand, ticket: FakeTicket) -> None:
        """As the real core decides."""
        entry, outputs = tenants.take(self.tenants.get(command.appid, tenants.NEW), command, ticket.offset)
        self.tenants[command.appid] = entry
        views: dict[str, FakeView[Any]] = {
            NAMESPACES: self.namespaces,
            KEYS: self.keys,
            LAYERS: self.layers,
            LIMITS: self.limits,
            PROVISIONS: self.provisions,
        }
        for output in outputs:
            if isinstance(output, Outcome):
                self._tell(output, ticket)
            else:
                is_gone = isinstance(output, tenants.Gone)
                key = output.key if isinstance(output, tenants.Gone) else tenants.row_key(output)
                views[publication(output, partition=0).topic].put(key, None if is_gone else output)

    def _apply(self, key: str, command: Command, offset: int) -> None:
        if command.trigger is not None:
            gone = command.kind == "delete-trigger"
            self.triggers.put(key, None if gone else replace(command.trigger, applied=offset, seq=offset + 1))
        elif command.kind == "delete-function":
            self.functions.put(key, None)
            self.ledgers[key] = ledger.dropped(self.ledgers.get(key))
        else:
            record = self._record(key, command, offset)
            self.functions.put(key, record)
            began = ledger.began(self.ledgers.get(key), command)
            self.ledgers[key] = ledger.ended(began, command.command_id, record, command.unix_ms)

    def _record(self, key: str, command: Command, offset: int) -> FunctionRecord:
        old = self.functions.get(key)
        ok = not self.code_fails
        failed = FunctionStatus.UPDATE_FAILED if old is not None else FunctionStatus.CREATE_FAILED
        return FunctionRecord(
            seq=offset + 1,
            appid=command.appid,
            uin=command.uin,
            namespace=command.namespace,
            name=command.function,
            function_id="lam-00000001",
            status=FunctionStatus.ACTIVE if ok else failed,
            description=command.description if command.description is not None else (old.description if old else ""),
            created_unix_ms=old.created_unix_ms if old else command.unix_ms,
            modified_unix_ms=command.unix_ms,
            applied=offset,
            command_id=command.command_id,
            serving=command.config if ok else (old.serving if old else None),
            proposed=None,
            reasons=self.code_fails,
        )


class FakeStore:
    def __init__(self) -> None:
        self.packages: dict[str, bytes] = {}
        self.objects: dict[tuple[str, str], bytes] = {}

    async def put_package(self, sha256: str, package: bytes) -> None:
        self.packages[sha256] = package

    async def package_url(self, sha256: str, *, valid_s: int) -> str:
        return f"http://store/{sha256}?valid_s={valid_s}"

    async def read_object(self, bucket: str, name: str, *, limit_bytes: int) -> bytes:
        data = self.objects.get((bucket, name))
        if data is None:
            raise ObjectNotFound(f"{bucket}/{name}")
        if len(data) > limit_bytes:
            raise BadPackage(f"{bucket}/{name} is larger than {limit_bytes} bytes")
        return data


@dataclass
class FakeInvoker:
    """Echoes; an event that is JSON text `"fail"` ends with 430."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    held: list[Callable[[], None]] | None = None

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
        self.calls.append({"function": function, "qualifier": qualifier, "event": event, "flags": flags, "flow": flow})
        tail = b"START\nhello\nEND\n" if flags & WANT_LOG_TAIL else b""
        status, body = (RunStatus.OK, event) if event != b'"fail"' else (RunStatus.USER_EXCEPTION, b"")
        if status != RunStatus.OK:
            body = error_body(status, "boom", request_id or bytes(16), stack="Traceback")
        result = Result(0, status, 0, 0, 1_500, 10, 2_048, tail, body)
        if self.held is not None:
            self.held.append(lambda: done(result))
        else:
            done(result)

    def cancel(self, request_id: bytes) -> bool:
        return False


@dataclass
class FakeSources:
    topics: dict[tuple[str, str], int] = field(default_factory=dict)
    pinned: list[tuple[str, str, str]] = field(default_factory=list)
    dead_letter_topics: dict[str, int] = field(default_factory=dict)
    deleted_groups: list[str] = field(default_factory=list)
    members_for: int = 0
    unreachable: bool = False

    def _ask(self) -> None:
        if self.unreachable:
            raise BrokerUnavailable("connection refused")

    async def partitions(self, bootstrap_servers: str, topic: str) -> int | None:
        self._ask()
        return self.topics.get((bootstrap_servers or FABRIC_SERVERS, topic))

    async def pin_offsets(self, bootstrap_servers: str, group: str, topic: str, start: str) -> None:
        self._ask()
        self.pinned.append((group, topic, start))

    async def positions(self, bootstrap_servers: str, group: str, topic: str) -> Mapping[int, Position]:
        self._ask()
        return {p: Position(10 * p, 10 * p + 7) for p in range(self.topics[bootstrap_servers or FABRIC_SERVERS, topic])}

    async def make_dead_letter_topic(self, topic: str, partitions: int) -> None:
        self.dead_letter_topics[topic] = partitions

    async def delete_group(self, bootstrap_servers: str, group: str) -> bool:
        if self.members_for:
            self.members_for -= 1
            return False
        self.deleted_groups.append(group)
        return True


class FakeLanes:
    def __init__(self) -> None:
        self.states: dict[TriggerKey, LaneState] = {}
        self.dead_by_trigger: dict[TriggerKey, dict[int, int]] = {}

    def of(self, key: TriggerKey) -> LaneState:
        return self.states.get(key, LaneState("", {}))

    async def dead(self, key: TriggerKey) -> Mapping[int, int]:
        return self.dead_by_trigger.get(key, {})


class FakeLogs:
    """Lines of every function, but for those that have their own."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.of: dict[FunctionKey, list[LogLine]] = {}

    async def read(
        self, key: FunctionKey, *, cursor: str, since_unix_ms: int | None, limit: int, request_id: str, wait_s: float
    ) -> LogPage:
        start = int(cursor) if cursor else 0
        lines = [
            line
            for line in self.of.get(key, self.lines)[start:]
            if (since_unix_ms is None or line.unix_ms >= since_unix_ms) and request_id in ("", line.request_id)
        ]
        taken = lines[:limit]
        return LogPage(taken, str(start + len(taken)), len(taken) == len(lines))


class FakeWorkflows:
    def __init__(self) -> None:
        self.records: list[WorkflowRecord] = []

    async def of(self, appid: str, saga_id: str = "") -> list[WorkflowRecord]:
        return [r for r in self.records if r.key.startswith(f"{appid}/") and saga_id in ("", r.saga_id)]


class FakeEvents:
    """Accepted events stay RUNNING, unless a test says otherwise."""

    def __init__(self) -> None:
        self.accepted: list[AsyncEvent] = []
        self.states: dict[str, EventStatus] = {}
        self.terminated: list[Termination] = []

    async def accept(self, event: AsyncEvent, now_ms: int) -> None:
        self.accepted.append(event)
        self.states[event.request_id] = status_of(event, EventState.RUNNING, now_ms)

    async def find(self, appid: str, request_id: str) -> EventStatus | None:
        status = self.states.get(request_id)
        return status if status is not None and status.key.startswith(f"{appid}/") else None

    async def of(self, key: FunctionKey, request_id: str = "") -> list[EventStatus]:
        return [s for s in self.states.values() if s.key == str(key) and request_id in ("", s.request_id)]

    async def terminate(self, wish: Termination) -> None:
        self.terminated.append(wish)


class FakeKeys:
    """The fabric's own keys, and more."""

    def __init__(self, own: TenantKeys, *pairs: KeyPair) -> None:
        self.own = own
        self.pairs = {pair.secret_id: pair for pair in pairs}

    def find(self, secret_id: str) -> KeyPair | None:
        return self.pairs.get(secret_id) or self.own.find(secret_id)


class FakeHealth:
    def __init__(self) -> None:
        self.state = {"tables": True, "agent": True, "streams": True}

    def parts(self) -> Mapping[str, bool]:
        return self.state


class FakeClock:
    """The machine's clock, shifted."""

    def __init__(self) -> None:
        self.shift_ms = 0

    def unix_ms(self) -> int:
        return clock.unix_ms() + self.shift_ms

    def mono_s(self) -> float:
        return clock.mono_s() + self.shift_ms / 1000


class FakeFabric:
    """All fakes, and the API over them. Make it on a running loop."""

    def __init__(self, *, delay_s: float | None = 0.0, more_keys: tuple[KeyPair, ...] = ()) -> None:
        self.functions: FakeView[FunctionRecord] = FakeView()
        self.triggers: FakeView[TriggerRecord] = FakeView()
        self.activity: FakeView[FunctionActivity] = FakeView()
        self.members: FakeView[Member] = FakeView()
        self.kept: FakeView[ProvisionStatus] = FakeView()
        self.streams = FakeStreams(self.functions, self.triggers, delay_s)
        self.store = FakeStore()
        self.invoker = FakeInvoker()
        self.sources = FakeSources({(FABRIC_SERVERS, "orders"): 3})
        self.streams.binding = TriggerModule(self.sources, FABRIC_SERVERS)
        self.lanes = FakeLanes()
        self.logs = FakeLogs()
        self.workflows = FakeWorkflows()
        self.events = FakeEvents()
        self.health = FakeHealth()
        self.clock = FakeClock()
        self.background = BackgroundWork()
        self.metrics = MetricRegistry()
        self.seal = Seal(bytes(32), purpose="keys")
        self.services = Services(
            functions=Registry(self.functions, self.clock.mono_s),
            triggers=Registry(self.triggers, self.clock.mono_s),
            namespaces=Registry(self.streams.namespaces, self.clock.mono_s),
            keys=Registry(self.streams.keys, self.clock.mono_s),
            layers=Registry(self.streams.layers, self.clock.mono_s),
            limits=Registry(self.streams.limits, self.clock.mono_s),
            provisions=Registry(self.streams.provisions, self.clock.mono_s),
            versions=Registry(self.streams.versions, self.clock.mono_s),
            aliases=Registry(self.streams.aliases, self.clock.mono_s),
            owner=Owner(SECRET_ID, APPID, UIN, SINCE_MS),
            seal=self.seal,
            commands=self.streams,
            code=self.store,
            invoker=self.invoker,
            sources=self.sources,
            lanes=self.lanes,
            dead=self.lanes,
            logs=self.logs,
            workflows=self.workflows,
            events=self.events,
            activity=self.activity,
            members=self.members,
            kept=self.kept,
            clock=self.clock,
            region="ap-guangzhou",
            bootstrap_servers=FABRIC_SERVERS,
        )
        self.upkeep = LimitUpkeep(
            self.functions, self.streams.versions, self.streams.namespaces, self.streams.limits,
            self.streams.provisions, self.streams, self.background, self.clock,
        )  # fmt: skip
        own = Credentials(SECRET_ID, SECRET_KEY, "ap-guangzhou", APPID, UIN)
        keys = TenantKeys(own, self.services.keys, self.seal, self.clock)
        self.api = Api(self.services, FakeKeys(keys, *more_keys), self.metrics)

    def trigger_key(self, function: str, name: str) -> TriggerKey:
        return TriggerKey(FunctionKey(APPID, "default", function), name)

    def lane(self, function: str, name: str, state: str, *partitions: LanePartition) -> None:
        self.lanes.states[self.trigger_key(function, name)] = LaneState(state, {p.partition: p for p in partitions})


@dataclass
class Served:
    fabric: FakeFabric
    port: int


@asynccontextmanager
async def served(fabric: FakeFabric) -> AsyncIterator[Served]:
    """The API on a free port of the loopback."""
    server = ApiServer(fabric.api, fabric.metrics, fabric.health)
    port = await server.start("127.0.0.1", 0)
    try:
        yield Served(fabric, port)
    finally:
        await server.close()
        await fabric.streams.close()
