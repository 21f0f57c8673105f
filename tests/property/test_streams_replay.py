"""Crashes of the stream processors, in any place: what was decided once stays decided, and all of it becomes known.

The first half replays recorded history through the pure cores. The second drives the processors over a journal and topics in memory that
fail at a drawn operation, as a killed process would; the next one starts from what was durable and from the committed offsets.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import avro
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
    ALIASES,
    COMMANDS,
    FUNCTIONS,
    HISTORY,
    OUTCOMES,
    STEP_RESULTS,
    STEP_TOPICS,
    TRIGGERS,
    VERSIONS,
)
from streams import activity, registry, versions
from streams.entries import Entry, Output
from streams.processors import Input, Publication, RegistryProcessor
from streams.replay import replay
from streams.sagas import WORKFLOWS
from tests.commands import FAILURE, alias_record, answer, command

KINDS = ("create-function", "update-function", "delete-function")
TRIGGER_KINDS = ("create-trigger", "update-trigger", "delete-trigger")
Event = Command | StepResult


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Commands on two functions and two triggers, and answers to any step that any of them may have begun."""
    events: list[Event] = []
    begun: list[tuple[str, str]] = []
    answered: Counter[str] = Counter()
    for number in range(draw(st.integers(1, 20))):
        function = draw(st.sampled_from(["f1", "f2"]))
        choice = draw(st.sampled_from(["command", "command", "version", "trigger", "answer", "answer"]))
        if choice == "answer" and begun:
            command_id, function = draw(st.sampled_from(begun))
            reasons = draw(st.sampled_from([(), (), (), FAILURE]))
            step = answered[command_id]
            answered[command_id] += draw(st.sampled_from([0, 1, 1, 1]))
            events.append(answer(command_id, function=function, step=step, reasons=reasons, unix_ms=number))
        elif choice == "version":
            made = command(draw(st.sampled_from(versions.KINDS)), f"c{number}", function=function, unix_ms=number)
            version = draw(st.sampled_from(["1", "2", "$LATEST"]))
            name = draw(st.sampled_from(["prod", "$DEFAULT"]))
            qualifier = version if made.kind == "delete-version" else name
            events.append(replace(made, qualifier=qualifier, alias=alias_record(name, version)))
        elif choice == "trigger":
            events.append(
                command(
                    draw(st.sampled_from(TRIGGER_KINDS)), f"c{number}", function=function, trigger="t", unix_ms=number
                )
            )
        else:
            made = command(draw(st.sampled_from(KINDS)), f"c{number}", function=function, unix_ms=number)
            events.append(replace(made, publish=draw(st.booleans())))
            begun.append((f"c{number}", function))
    return events


@st.composite
def replays(draw: st.DrawFn) -> tuple[list[tuple[Event, int]], list[tuple[Event, int]]]:
    """A history with offsets, and the same with redelivered stretches: after any event either topic may go back to any offset."""
    offsets = {Command: 0, StepResult: 0}
    once: list[tuple[Event, int]] = []
    for event in draw(histories()):
        once.append((event, offsets[type(event)]))
        offsets[type(event)] += 1
    again: list[tuple[Event, int]] = []
    for number, item in enumerate(once, 1):
        again.append(item)
        if draw(st.booleans()):
            kind = draw(st.sampled_from([Command, StepResult]))
            seen = [(event, offset) for event, offset in once[:number] if isinstance(event, kind)]
            again += seen[draw(st.integers(0, len(seen))) :]
    return once, again


def run(history: Sequence[tuple[Event, int]]) -> tuple[dict[str, Entry], list[Output]]:
    entries: dict[str, Entry] = {}
    said: list[Output] = []
    for event, offset in history:
        key = registry.key_of(event)
        entries[key], outputs = registry.take(entries.get(key, registry.NEW), event, offset)
        said += outputs
    return entries, said


@given(replays())
def test_history_with_redelivered_stretches_leads_to_the_same_state_and_says_nothing_new(
    both: tuple[list[tuple[Event, int]], list[tuple[Event, int]]],
) -> None:
    once, again = both
    entries, said = run(once)
    assert run(again)[0] == entries
    assert _distinct(run(again)[1]) == _distinct(said)
    assert run(once) == (entries, said), "the same history, the same words"


def _distinct(said: Sequence[Output]) -> list[Output]:
    seen: list[Output] = []
    for output in said:
        if output not in seen:
            seen.append(output)
    return seen


@given(histories())
def test_every_command_ends_exactly_once_or_still_runs(history: list[Event]) -> None:
    offsets = {Command: -1, StepResult: -1}
    once = []
    for event in history:
        offsets[type(event)] += 1
        once.append((event, offsets[type(event)]))
    entries, said = run(once)
    ended = [output.command_id for output in said if isinstance(output, Outcome)]
    running = [entry.saga.saga_id for entry in entries.values() if entry.saga is not None]
    running += [entry.pending.command_id for entry in entries.values() if entry.pending is not None]
    assert sorted(ended + running) == sorted(event.command_id for event in history if isinstance(event, Command))


@given(histories())
def test_the_seq_of_a_key_grows_with_every_record_and_its_version_with_every_change(history: list[Event]) -> None:
    entries: dict[str, Entry] = {}
    for offset, event in enumerate(history):
        key = registry.key_of(event)
        before = entries.get(key, registry.NEW)
        then, outputs = registry.take(before, event, offset)
        assert (then.version > before.version) == (then != before)
        records = [o for o in outputs if isinstance(o, FunctionRecord | TriggerRecord | VersionRecord | AliasRecord)]
        assert then.seq > before.seq or not records
        assert all(record.seq == then.seq for record in records)
        entries[key] = then


class Killed(BaseException):
    """The process ends here."""


@dataclass
class World:
    """What outlives a process: the changelog, the topics, the committed offsets. Every write may be the last one of its process."""

    budget: int
    now_ms: int = 1
    changelog: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    topics: dict[str, list[tuple[bytes, bytes | None]]] = field(default_factory=dict)
    committed: dict[str, int] = field(default_factory=lambda: {COMMANDS: 0, STEP_RESULTS: 0})

    def spend(self) -> None:
        self.budget -= 1
        if self.budget == 0:
            raise Killed

    def get(self, key: bytes) -> bytes | None:
        return self.changelog[key][1] if key in self.changelog else None

    def partition(self, key: bytes) -> int:
        return self.changelog[key][0]

    def keys(self) -> list[bytes]:
        return list(self.changelog)

    async def put(self, partition: int, key: bytes, value: bytes | None, *, version: int) -> None:
        self.spend()
        assert value is not None
        self.changelog[key] = (partition, value)
        self.spend()

    async def publish(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            self.spend()
            self.topics.setdefault(publication.topic, []).append((publication.key, publication.value))
        self.spend()

    def done(self, topic: str, offset: int) -> None:
        self.spend()
        self.committed[topic] = offset + 1


async def live(world: World, results: list[StepResult], commands: list[Command], order: st.DataObject) -> None:
    """One process: recovers, then takes records of both topics in a drawn order; modules answer each step they see once."""
    processor = RegistryProcessor(world, world)
    for key in world.changelog:
        processor.recovered(key)
    at = dict(world.committed)
    while True:
        _modules_work(world, results)
        waiting: dict[str, Sequence[Event]] = {COMMANDS: commands, STEP_RESULTS: results}
        ready = [topic for topic, events in waiting.items() if at[topic] < len(events)]
        if not ready:
            if not await _time_passes(world, processor):
                return
            continue
        topic = order.draw(st.sampled_from(ready)) if len(ready) > 1 else ready[0]
        offset = at[topic]
        event = waiting[topic][offset]
        at[topic] += 1
        key = registry.key_of(event).encode()
        done = partial(world.done, topic, offset)
        record = Input(topic, 0, offset, key, avro.encode(event), done)
        await processor.handle(record)


async def _time_passes(world: World, processor: RegistryProcessor) -> bool:
    """False when nothing waits for it."""
    world.now_ms += 600_000
    awake = processor.awake()
    for key in awake:
        await processor.wake(key)
    return bool(awake)


def _modules_work(world: World, results: list[StepResult]) -> None:
    """Some steps fail for good, some at their first attempt, some are lost the first time; nothing that undoes something fails for good."""
    answered = {(result.step_id, result.attempt) for result in results}
    for topic in STEP_TOPICS.values():
        for _, value in world.topics.get(topic, ()):
            assert value is not None
            step = avro.decode(StepCommand, value)
            if (step.step_id, step.attempt) in answered:
                continue
            answered.add((step.step_id, step.attempt))
            fate = zlib.crc32(step.step_id.encode()) % 8 if step.attempt == 1 else 7
            fails = fate == 0 and not step.step_id.endswith("undo")
            reasons = FAILURE if fails or fate == 1 else ()
            if fate != 2:
                made = StepResult(step.step_id, step.saga_id, step.module, step.key, step.unix_ms, reasons)
                results.append(replace(made, attempt=step.attempt, retryable=fate == 1))


@settings(deadline=None)
@given(histories(), st.lists(st.integers(1, 25), max_size=6), st.data())
def test_whatever_write_a_process_dies_at_nothing_is_lost_doubled_or_taken_back(
    history: list[Event], deaths: list[int], order: st.DataObject
) -> None:
    commands = [event for event in history if isinstance(event, Command)]
    results: list[StepResult] = []
    world = World(0)
    with patch("infra.clock.unix_ms", lambda: world.now_ms):
        for budget in [*deaths, 10**9]:
            world.budget = budget
            try:
                asyncio.run(live(world, results, commands, order))
            except Killed:
                continue
    entries = {key: avro.decode(Entry, value) for key, (_, value) in world.changelog.items()}
    assert all(entry.saga is None for entry in entries.values()), "a saga was left without its step"
    outcomes: dict[str, set[Outcome]] = {}
    for _, value in world.topics.get(OUTCOMES, ()):
        assert value is not None
        outcome = avro.decode(Outcome, value)
        outcomes.setdefault(outcome.command_id, set()).add(outcome)
    assert {command_id: len(said) for command_id, said in outcomes.items()} == {c.command_id: 1 for c in commands}
    for topic, kind in ((FUNCTIONS, FunctionRecord), (TRIGGERS, TriggerRecord)):
        _check_registry_topic(world.topics.get(topic, []), kind, entries)
    _check_versions_and_aliases(world, entries)
    _check_histories(world, {c.command_id for c in commands if c.kind in WORKFLOWS})


def _check_histories(world: World, commands: set[str]) -> None:
    """Each saga's history grows, ends once, and comes out the same when it is decided again."""
    newest: dict[str, WorkflowRecord] = {}
    for _, value in world.topics.get(HISTORY, ()):
        assert value is not None
        record = avro.decode(WorkflowRecord, value)
        before = newest.get(record.saga_id)
        if before is not None and record.seq >= before.seq:
            assert record.events[: len(before.events)] == before.events, "history was taken back"
        if before is None or record.seq >= before.seq:
            newest[record.saga_id] = record
    assert set(newest) <= commands
    for record in newest.values():
        assert record.state in ("succeeded", "failed")
        assert all(step.is_same for step in replay(record))


def _check_registry_topic(
    written: Sequence[tuple[bytes, bytes | None]],
    kind: type[FunctionRecord] | type[TriggerRecord],
    entries: dict[bytes, Entry],
) -> None:
    by_seq: dict[tuple[bytes, int], bytes] = {}
    newest: dict[bytes, bytes | None] = {}
    for key, value in written:
        newest[key] = value
        if value is not None:
            seq = avro.decode(kind, value).seq
            assert by_seq.setdefault((key, seq), value) == value, "two records with one seq"
    for key, value in newest.items():
        record = entries[key].function or entries[key].trigger
        assert (None if value is None else avro.decode(kind, value)) == record, "the topic does not end with the state"


def _check_versions_and_aliases(world: World, entries: dict[bytes, Entry]) -> None:
    """Both topics end with what the ledgers hold, and a number stands for one configuration as long as its function is."""
    wanted: set[bytes] = set()
    for key, entry in entries.items():
        ledger = entry.ledger or versions.EMPTY
        assert entry.function is not None or not (ledger.versions or ledger.aliases)
        wanted |= {key + b"/" + str(number).encode() for number in ledger.versions}
        wanted |= {key + b"/" + alias.name.encode() for alias in ledger.aliases}
    newest = {key: value for topic in (VERSIONS, ALIASES) for key, value in world.topics.get(topic, ())}
    assert {key for key, value in newest.items() if value is not None} == wanted
    first: dict[tuple[bytes, str], VersionRecord] = {}
    for key, value in world.topics.get(VERSIONS, ()):
        if value is not None:
            version = avro.decode(VersionRecord, value)
            assert first.setdefault((key, version.command_id), version) == version, "a published version changed"


@st.composite
def windows(draw: st.DrawFn) -> list[InvocationWindow]:
    numbers: dict[tuple[str, int], int] = {}
    made = []
    terms = {"g1": 1, "g2": 1}
    for at_ms in sorted(draw(st.lists(st.integers(0, 30_000), max_size=20))):
        gateway = draw(st.sampled_from(["g1", "g2"]))
        terms[gateway] += draw(st.sampled_from([0, 0, 0, 1]))
        number = numbers[gateway, terms[gateway]] = numbers.get((gateway, terms[gateway]), 0) + 1
        a, c, f = (draw(st.integers(0, 9)) for _ in range(3))
        made.append(
            InvocationWindow("k", gateway, terms[gateway], number, at_ms, 200, a, c, f, 0, 0, 0, a, 0, c * 10, 10, 0)
        )
    return made


@given(windows(), st.data())
def test_redelivered_windows_count_once(made: list[InvocationWindow], data: st.DataObject) -> None:
    state = once = activity.Activity("k")
    for number, window in enumerate(made, 1):
        once = activity.take(once, window, 10**9)
        state = activity.take(state, window, 10**9)
        for old in made[data.draw(st.integers(0, number)) : number]:
            state = activity.take(state, old, 10**9)
    assert state == once
    assert activity.view(once, 31_000).arrivals == sum(window.arrivals for window in made)


@given(windows(), st.integers(0, 45_000))
def test_a_rate_counts_what_came_within_ten_seconds_and_at_most_a_second_around_them(
    made: list[InvocationWindow], now_ms: int
) -> None:
    seen = [window for window in made if window.unix_ms <= now_ms]
    state = activity.Activity("k")
    for window in seen:
        state = activity.take(state, window, now_ms)
    total = activity.view(state, now_ms).arrivals_per_s * 10
    surely = sum(w.arrivals for w in seen if w.unix_ms - 100 >= now_ms - 9_000)
    perhaps = sum(w.arrivals for w in seen if w.unix_ms - 100 >= now_ms - 11_000)
    assert surely - 1e-6 <= total <= perhaps + 1e-6
