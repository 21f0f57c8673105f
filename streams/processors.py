"""From a record of a source topic to durable state and acknowledged outputs: the order in which things are made safe. No Faust here.

For every record: decode, decide in the pure core, make the new state durable, write the outputs, and only then let the record go (its
offset may be committed). A crash between any two of these repeats the rest and skips nothing. Records that can't be read are logged and
let go. Callers run one record of a key at a time (`streams.lanes`).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

from infra import clock, telemetry
from infra.faults import fault
from schemas import avro
from schemas.errors import WireError
from schemas.records import (
    AliasRecord,
    Command,
    FunctionRecord,
    InvocationWindow,
    Outcome,
    StepCommand,
    StepResult,
    TriggerRecord,
    VersionRecord,
    WorkflowRecord,
)
from schemas.topics import (
    ACTIVITY,
    ALIASES,
    COMMANDS,
    FUNCTIONS,
    HISTORY,
    OUTCOMES,
    STEP_TOPICS,
    TRIGGERS,
    VERSIONS,
)
from streams import activity, registry, versions
from streams.entries import Entry, Output, Tombstone

_log = telemetry.get_logger("streams.processors")
T = TypeVar("T")
VIEWS_AT_ONCE: Final = 500
TIMERS_AT_ONCE: Final = 200
SWEEP_KEYS: Final = 100


class Input(NamedTuple):
    """One record of a source topic. `done` lets it go: call it once, when all that follows from it is safe."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    done: Callable[[], None]


class Publication(NamedTuple):
    """One record to write. `partition` None: by the producer's own choice."""

    topic: str
    partition: int | None
    key: bytes
    value: bytes | None


class Journal(Protocol):
    """Durable state by key, held in memory too."""

    def get(self, key: bytes) -> bytes | None:
        """The newest state."""
        ...

    def partition(self, key: bytes) -> int:
        """The partition that the key's state is kept in; raises KeyError for a key without state."""
        ...

    def keys(self) -> Collection[bytes]:
        """All keys that have state."""
        ...

    async def put(self, partition: int, key: bytes, value: bytes | None, *, version: int) -> None:
        """Set or (None) drop a key's state; durable on return. `version` grows with every state of a key. Raises BrokerUnavailable."""
        ...


class Sweep:
    """Goes through a journal's keys, a few at each call, again and again."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._left: list[bytes] = []

    def some(self) -> list[bytes]:
        """The next few; some may have lost their state since they were listed."""
        self._left = self._left or list(self._journal.keys())
        some, self._left = self._left[:SWEEP_KEYS], self._left[SWEEP_KEYS:]
        return some


class Timers:
    """Which keys want to be looked at, and when; a key has one time, the newest that was set."""

    def __init__(self) -> None:
        self._at: dict[bytes, int] = {}
        self._heap: list[tuple[int, bytes]] = []

    def set(self, key: bytes, unix_ms: int | None) -> None:
        """Look at the key at this time; None: not at all."""
        if unix_ms is None:
            self._at.pop(key, None)
        elif self._at.get(key) != unix_ms:
            self._at[key] = unix_ms
            heapq.heappush(self._heap, (unix_ms, key))

    def due(self, now_ms: int, limit: int) -> list[bytes]:
        """Keys whose time has come, each once; their times are gone."""
        found: list[bytes] = []
        while self._heap and self._heap[0][0] <= now_ms and len(found) < limit:
            unix_ms, key = heapq.heappop(self._heap)
            if self._at.get(key) == unix_ms:
                del self._at[key]
                found.append(key)
        return found


class Outbox(Protocol):
    """Way out."""

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Write all, in order; all are acknowledged on return. Raises BrokerUnavailable."""
        ...


def publication(output: Output, *, partition: int) -> Publication:
    """Where an output of the registry goes. What belongs to a resource goes to the partition number that its commands come from."""
    if isinstance(output, FunctionRecord):
        key = f"{output.appid}/{output.namespace}/{output.name}"
        return Publication(FUNCTIONS, partition, key.encode(), avro.encode(output))
    if isinstance(output, TriggerRecord):
        key = f"{output.appid}/{output.namespace}/{output.function}/{output.name}"
        return Publication(TRIGGERS, partition, key.encode(), avro.encode(output))
    if isinstance(output, VersionRecord | AliasRecord):
        topic = VERSIONS if isinstance(output, VersionRecord) else ALIASES
        return Publication(topic, partition, versions.key_of(output).encode(), avro.encode(output))
    if isinstance(output, versions.Removed):
        return Publication(VERSIONS if output.is_version else ALIASES, partition, output.key.encode(), None)
    if isinstance(output, Tombstone):
        return Publication(FUNCTIONS if output.is_function else TRIGGERS, partition, output.key.encode(), None)
    if isinstance(output, StepCommand):
        return Publication(STEP_TOPICS[output.module], partition, output.key.encode(), avro.encode(output))
    if isinstance(output, WorkflowRecord):
        return Publication(HISTORY, partition, output.saga_id.encode(), avro.encode(output))
    assert isinstance(output, Outcome)
    return Publication(OUTCOMES, None, output.command_id.encode(), avro.encode(output))


class RegistryProcessor:
    """Feeds `streams.registry` with commands and step results."""

    def __init__(self, journal: Journal, outbox: Outbox) -> None:
        self._journal, self._outbox = journal, outbox
        self._unsure: set[bytes] = set()
        self._unseen: dict[bytes, None] = {}
        self._timers = Timers()
        self._sweep = Sweep(journal)

    def recovered(self, key: bytes) -> None:
        """The key's state was read back: whether its last outputs were written is not known, nor whether a saga waits."""
        self._unsure.add(key)
        self._unseen[key] = None

    def knows(self, key: bytes) -> bool:
        """True when the key has state, if only the mark of its deletion."""
        return self._journal.get(key) is not None

    def known(self) -> int:
        """How many keys have state here."""
        return len(self._journal.keys())

    async def handle(self, record: Input) -> None:
        """Take one command or step result through."""
        kind: type[Command | StepResult] = Command if record.topic == COMMANDS else StepResult
        event = decoded(kind, record, registry.key_of)
        if event is not None and record.key is not None:
            await self._take(record.key, event, record)
        record.done()

    async def _take(self, key: bytes, event: Command | StepResult, record: Input) -> None:
        entry = self._entry(key)
        # The record whose outputs may be missing comes again, but one from the other topic can come before it.
        await self._settle(key, entry, record.partition)
        then, outputs = registry.take(entry, event, record.offset, clock.unix_ms())
        await self._keep(key, entry, then, outputs, record.partition)

    async def wake(self, key: bytes) -> None:
        """The key's time has come: take its saga on."""
        if self.knows(key):
            entry, partition = self._entry(key), self._journal.partition(key)
            await self._settle(key, entry, partition)
            then, outputs = registry.tick(entry, key.decode(), clock.unix_ms())
            await self._keep(key, entry, then, outputs, partition)

    def awake(self) -> list[bytes]:
        """Some keys whose time has come (hand each to `wake`, in its lane)."""
        for key in list(islice(self._unseen, TIMERS_AT_ONCE)):
            del self._unseen[key]
            entry = self._entry(key)
            # A timer's outputs may be missing too, and a timer does not come again by itself.
            self._timers.set(key, 0 if entry.timed or entry.saga is not None else None)
        return self._timers.due(clock.unix_ms(), TIMERS_AT_ONCE)

    async def _settle(self, key: bytes, entry: Entry, partition: int) -> None:
        if key in self._unsure:
            await self._publish(registry.outputs(entry, key.decode()), partition)
            self._unsure.discard(key)

    async def _keep(
        self,
        key: bytes,
        entry: Entry,
        then: Entry,
        outputs: Sequence[Output],
        partition: int,
    ) -> None:
        if then is not entry:
            await self._journal.put(partition, key, avro.encode(then), version=then.version)
            fault(f"saga.{_point(then)}.kept")
        await self._publish(outputs, partition)
        fault(f"saga.{_point(then)}.published")
        self._timers.set(key, registry.due_ms(then))

    async def _publish(self, outputs: Iterable[Output], partition: int) -> None:
        publications = [publication(output, partition=partition) for output in outputs]
        if publications:
            await self._outbox.publish(publications)

    def _entry(self, key: bytes) -> Entry:
        stored = self._journal.get(key)
        return registry.NEW if stored is None else avro.decode(Entry, stored)

    def due(self) -> list[bytes]:
        """Some keys that can be forgotten (hand each to `forget`, in its lane); looks at a few at each call, in turn."""
        return [key for key in self._sweep.some() if registry.is_forgettable(self._entry(key), clock.unix_ms())]

    async def forget(self, key: bytes) -> None:
        """Drop the mark of a deleted key, if it still is one."""
        if self.knows(key) and registry.is_forgettable(self._entry(key), clock.unix_ms()):
            await self._journal.put(self._journal.partition(key), key, None, version=0)


def _point(entry: Entry) -> str:
    """Where a saga is, for fault points."""
    saga = entry.saga
    return "none" if saga is None else f"{saga.workflow}.{saga.step.module}.{saga.operation}"


class ActivityProcessor:
    """Feeds `streams.activity` with windows, and publishes the view of each function that runs at every `tick`."""

    def __init__(self, journal: Journal, outbox: Outbox, *, is_registered: Callable[[bytes], bool]) -> None:
        self._journal, self._outbox, self._is_registered = journal, outbox, is_registered
        self._live: dict[bytes, int] = {}  # the seq last published
        self._sweep = Sweep(journal)

    def recovered(self, key: bytes) -> None:
        """The key's state was read back: the view that others have may be older."""
        self._live.setdefault(key, 0)

    async def handle(self, record: Input) -> None:
        """Take one window through."""
        window = decoded(InvocationWindow, record, lambda window: window.key)
        if window is not None and record.key is not None:
            state = self._state(record.key)
            then = activity.take(state, window, clock.unix_ms())
            if then is not state:
                await self._journal.put(record.partition, record.key, avro.encode(then), version=then.windows)
                self._live.setdefault(record.key, 0)
        record.done()

    async def tick(self) -> None:
        """Publish the views of functions that are not at rest; those that have waited longest when there are very many."""
        publications = []
        for key in list(islice(self._live, VIEWS_AT_ONCE)):
            last_seq = self._live.pop(key)
            if self._journal.get(key) is None:
                continue
            shown = activity.view(self._state(key), clock.unix_ms(), last_seq=last_seq)
            publications.append(Publication(ACTIVITY, self._journal.partition(key), key, avro.encode(shown)))
            if not activity.is_at_rest(shown):
                self._live[key] = shown.seq
        if publications:
            await self._outbox.publish(publications)

    def _state(self, key: bytes) -> activity.Activity:
        stored = self._journal.get(key)
        return activity.Activity(key.decode()) if stored is None else avro.decode(activity.Activity, stored)

    def due(self) -> list[bytes]:
        """Some keys of functions that are gone (hand each to `forget`, in its lane); looks at a few at each call, in turn."""
        return [key for key in self._sweep.some() if self._is_gone(key)]

    async def forget(self, key: bytes) -> None:
        """Drop what is known of a function that is gone."""
        if self._is_gone(key):
            partition = self._journal.partition(key)
            await self._outbox.publish([Publication(ACTIVITY, partition, key, None)])
            await self._journal.put(partition, key, None, version=0)
            self._live.pop(key, None)

    def _is_gone(self, key: bytes) -> bool:
        if self._is_registered(key) or self._journal.get(key) is None:
            return False
        return activity.is_forgettable(self._state(key), clock.unix_ms())


def decoded(kind: type[T], record: Input, key_of: Callable[[T], str]) -> T | None:
    """What a record carries; None, with a word in the log, when it can't be read or stands under another key than its own."""
    try:
        value = avro.decode(kind, record.value or b"")
    except WireError as exc:
        why = str(exc)
    else:
        if key_of(value).encode() == record.key:
            return value
        why = f"its key {record.key!r} is not {key_of(value)!r}"
    _log.warning("record skipped", topic=record.topic, partition=record.partition, offset=record.offset, why=why)
    return None


async def every(period_s: float, work: Callable[[], object]) -> None:
    """Call `work` (await what it gives, if it is a coroutine) again and again, until cancelled."""
    while True:
        await asyncio.sleep(period_s)
        given = work()
        if asyncio.iscoroutine(given):
            await given
