"""The stream processors over a journal and an outbox in memory, and the lanes that order their work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from infra import clock
from schemas import avro
from schemas.records import FunctionActivity, FunctionRecord, InvocationWindow, StepCommand
from schemas.topics import ACTIVITY, COMMANDS, FUNCTIONS, HISTORY, INVOCATIONS, OUTCOMES, STEP_RESULTS, STEPS_CODE
from streams.activity import Activity
from streams.entries import Entry
from streams.lanes import KeyLanes
from streams.processors import SWEEP_KEYS, ActivityProcessor, Input, Publication, RegistryProcessor
from streams.registry import FORGET_AFTER_MS
from streams.sagas import ANSWER_MS
from tests.commands import NOW_MS, answers, command

KEY = b"1250000000/default/hello"


class Memory:
    """Journal and outbox; `log` has every step in its order."""

    def __init__(self) -> None:
        self.states: dict[bytes, tuple[int, bytes]] = {}
        self.published: list[Publication] = []
        self.log: list[str] = []

    def get(self, key: bytes) -> bytes | None:
        return self.states[key][1] if key in self.states else None

    def partition(self, key: bytes) -> int:
        return self.states[key][0]

    def keys(self) -> list[bytes]:
        return list(self.states)

    async def put(self, partition: int, key: bytes, value: bytes | None, *, version: int) -> None:
        self.log.append("put")
        if value is None:
            del self.states[key]
        else:
            self.states[key] = (partition, value)

    async def publish(self, publications: Sequence[Publication]) -> None:
        self.log += [f"publish {p.topic}" for p in publications]
        self.published += publications

    def record(self, topic: str, event: Any, *, offset: int = 0, partition: int = 2, key: bytes | None = KEY) -> Input:
        value = event if isinstance(event, bytes) or event is None else avro.encode(event)
        return Input(topic, partition, offset, key, value, lambda: self.log.append("done"))


@pytest.fixture
def memory() -> Memory:
    return Memory()


async def test_state_is_durable_before_outputs_and_outputs_before_the_record_goes(memory: Memory) -> None:
    await RegistryProcessor(memory, memory).handle(memory.record(COMMANDS, command("create-function")))
    assert memory.log == ["put", *(f"publish {topic}" for topic in (FUNCTIONS, HISTORY, STEPS_CODE)), "done"]


async def test_outputs_go_to_the_partition_of_their_command_and_outcomes_under_its_id(memory: Memory) -> None:
    processor = RegistryProcessor(memory, memory)
    await processor.handle(memory.record(COMMANDS, command("create-function", "c1")))
    for offset, result in enumerate(answers("c1")):
        await processor.handle(memory.record(STEP_RESULTS, result, offset=offset))
    where = [(p.topic, p.partition, p.key) for p in memory.published]
    begun = [(FUNCTIONS, 2, KEY), (HISTORY, 2, b"c1"), (STEPS_CODE, 2, KEY)]
    assert where[:3] == begun
    assert where[-3:] == [(FUNCTIONS, 2, KEY), (HISTORY, 2, b"c1"), (OUTCOMES, None, b"c1")]


@pytest.mark.parametrize("value", [None, b"", b"\xc3\x01 not avro at all", b"{}"], ids=repr)
async def test_what_can_not_be_read_is_let_go_and_changes_nothing(memory: Memory, value: bytes | None) -> None:
    for topic in (COMMANDS, STEP_RESULTS):
        await RegistryProcessor(memory, memory).handle(memory.record(topic, value))
    window = memory.record(INVOCATIONS, value)
    await ActivityProcessor(memory, memory, is_registered=lambda _: True).handle(window)
    assert memory.log == ["done"] * 3


@pytest.mark.parametrize("key", [None, b"", b"1250000000/default/other"], ids=repr)
async def test_a_record_under_another_key_than_its_own_is_let_go(memory: Memory, key: bytes | None) -> None:
    await RegistryProcessor(memory, memory).handle(memory.record(COMMANDS, command("create-function"), key=key))
    processor = ActivityProcessor(memory, memory, is_registered=lambda _: True)
    await processor.handle(memory.record(INVOCATIONS, window(1), key=key))
    assert memory.log == ["done"] * 2


async def test_after_a_restart_the_last_outputs_are_said_again_before_anything_else(memory: Memory) -> None:
    await RegistryProcessor(memory, memory).handle(memory.record(COMMANDS, command("create-function", "c1")))
    said = list(memory.published)
    restarted = RegistryProcessor(memory, memory)
    restarted.recovered(KEY)
    await restarted.handle(memory.record(COMMANDS, command("create-function", "c2"), offset=1))
    assert memory.published[len(said) : 2 * len(said)] == said
    assert [p.topic for p in memory.published[2 * len(said) :]] == [OUTCOMES]


async def test_a_saga_whose_time_comes_is_taken_on_and_after_a_restart_at_once(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = RegistryProcessor(memory, memory)
    await processor.handle(memory.record(COMMANDS, command("create-function", "c1")))
    assert processor.awake() == []
    now_ms = clock.unix_ms()
    monkeypatch.setattr(clock, "unix_ms", lambda: now_ms + ANSWER_MS + 1_000)
    assert processor.awake() == [KEY]
    assert processor.awake() == [], "it is being seen to"
    await processor.wake(KEY)
    steps = [avro.decode(StepCommand, p.value) for p in memory.published if p.topic == STEPS_CODE and p.value]
    assert [step.attempt for step in steps] == [1, 2]
    assert {p.partition for p in memory.published if p.topic == STEPS_CODE} == {2}
    restarted = RegistryProcessor(memory, memory)
    restarted.recovered(KEY)
    assert restarted.awake() == [KEY]
    await restarted.wake(KEY)
    assert memory.published[-1].value == avro.encode(steps[-1]), "what may not have been written is written again"
    assert restarted.awake() == [], "and its time is as it was"


async def test_a_key_at_rest_is_not_woken_after_a_restart(memory: Memory) -> None:
    processor = RegistryProcessor(memory, memory)
    await processor.handle(memory.record(COMMANDS, command("create-function", "c1")))
    for offset, result in enumerate(answers("c1")):
        await processor.handle(memory.record(STEP_RESULTS, result, offset=offset))
    restarted = RegistryProcessor(memory, memory)
    restarted.recovered(KEY)
    assert restarted.awake() == []


async def test_the_mark_of_a_deletion_is_dropped_after_an_hour(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = RegistryProcessor(memory, memory)
    await processor.handle(memory.record(COMMANDS, command("create-function", "c1")))
    monkeypatch.setattr(clock, "unix_ms", lambda: NOW_MS + FORGET_AFTER_MS + 1)
    assert processor.due() == []
    await processor.handle(memory.record(COMMANDS, command("delete-function", "c2"), offset=1))
    for offset, result in enumerate(answers("c2", kind="delete-function")):
        await processor.handle(memory.record(STEP_RESULTS, result, offset=offset))
    assert processor.due() == []
    monkeypatch.setattr(clock, "unix_ms", lambda: NOW_MS + 2 * FORGET_AFTER_MS + 2)
    [due] = processor.due()
    await processor.forget(due)
    assert not processor.knows(KEY)


async def test_a_sweep_looks_at_few_keys_at_a_time_and_at_all_in_turn(memory: Memory) -> None:
    for number in range(3 * SWEEP_KEYS):
        memory.states[b"%d" % number] = (0, avro.encode(Entry()))
    processor = RegistryProcessor(memory, memory)
    seen = [processor.due() for _ in range(3)]
    assert [len(keys) for keys in seen] == [SWEEP_KEYS] * 3
    assert {key for keys in seen for key in keys} == set(memory.states)


def window(number: int, *, arrivals: int = 1, in_flight: int = 0) -> InvocationWindow:
    now_ms = clock.unix_ms()
    return InvocationWindow(
        KEY.decode(), "g1", 1, number, now_ms, 200, arrivals, arrivals, 0, 0, 0, 0, in_flight, 0, 0, 0, 0
    )


def shown(memory: Memory) -> list[FunctionActivity]:
    return [avro.decode(FunctionActivity, p.value) for p in memory.published if p.topic == ACTIVITY and p.value]


async def test_a_running_function_is_shown_at_every_tick_until_it_is_at_rest(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = ActivityProcessor(memory, memory, is_registered=lambda _: True)
    await processor.handle(memory.record(INVOCATIONS, window(1, arrivals=20, in_flight=3)))
    now_ms = clock.unix_ms()
    for passed_s in (0, 5, 12, 13, 14):
        monkeypatch.setattr(clock, "unix_ms", lambda passed_s=passed_s: now_ms + passed_s * 1000)
        await processor.tick()
    views = shown(memory)
    assert [v.in_flight for v in views] == [3, 3, 0]
    assert views[0].arrivals_per_s > 0
    assert views[-1].arrivals_per_s == 0.0
    assert [v.seq for v in views] == sorted({v.seq for v in views})
    assert memory.published[0].partition == 2


async def test_after_a_restart_a_function_is_shown_once_more(memory: Memory) -> None:
    await ActivityProcessor(memory, memory, is_registered=lambda _: True).handle(memory.record(INVOCATIONS, window(1)))
    restarted = ActivityProcessor(memory, memory, is_registered=lambda _: True)
    restarted.recovered(KEY)
    await restarted.tick()
    assert [v.arrivals for v in shown(memory)] == [1]


async def test_a_window_delivered_twice_is_written_once(memory: Memory) -> None:
    processor = ActivityProcessor(memory, memory, is_registered=lambda _: True)
    record = memory.record(INVOCATIONS, window(1))
    await processor.handle(record)
    await processor.handle(record)
    assert memory.log == ["put", "done", "done"]


async def test_activity_of_a_function_that_is_gone_is_forgotten_with_its_view(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = True
    processor = ActivityProcessor(memory, memory, is_registered=lambda _: registered)
    await processor.handle(memory.record(INVOCATIONS, window(1)))
    much_later_ms = clock.unix_ms() + FORGET_AFTER_MS + 1
    monkeypatch.setattr(clock, "unix_ms", lambda: much_later_ms)
    assert processor.due() == []
    registered = False
    [due] = processor.due()
    await processor.forget(due)
    assert memory.states == {}
    assert memory.published[-1] == Publication(ACTIVITY, 2, KEY, None)


async def test_jobs_of_a_key_run_in_order_and_other_keys_beside_them() -> None:
    lanes, ran = KeyLanes(), []
    gate = asyncio.Event()

    async def job(name: str, waits: bool) -> None:
        if waits:
            await gate.wait()
        ran.append(name)

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(lanes.run())
        await lanes.put(b"a", lambda: job("a1", True))
        await lanes.put(b"a", lambda: job("a2", False))
        await lanes.put(b"b", lambda: job("b1", False))
        while not ran:
            await asyncio.sleep(0)
        assert ran == ["b1"]
        gate.set()
        async with asyncio.timeout(5):
            await lanes.drained()
        assert ran == ["b1", "a1", "a2"]
        running.cancel()


async def test_a_full_lane_makes_its_feeder_wait() -> None:
    lanes = KeyLanes(width=1, depth=2)

    async def job() -> None: ...

    for _ in range(2):
        await lanes.put(b"a", job)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await lanes.put(b"a", job)


async def test_a_job_that_fails_ends_the_lanes() -> None:
    lanes = KeyLanes()

    async def job() -> None:
        raise ZeroDivisionError

    await lanes.put(b"a", job)
    with pytest.raises(ExceptionGroup) as caught:
        await lanes.run()
    assert caught.group_contains(ZeroDivisionError)


def test_the_encoding_of_state_does_not_change_unseen() -> None:
    """A new fingerprint makes the changelogs of running fabrics unreadable, unless the old schema is kept as a known one."""
    headers = {type(state).__name__: avro.encode(state)[2:10].hex() for state in (Entry(), Activity("k"))}
    assert headers == {"Entry": "8830b1a31d1199af", "Activity": "74da3973c6ff2d85"}


async def test_a_published_record_is_what_readers_decode(memory: Memory) -> None:
    await RegistryProcessor(memory, memory).handle(memory.record(COMMANDS, command("create-function", "c1"), offset=9))
    value = memory.published[0].value
    assert value is not None
    assert avro.decode(FunctionRecord, value).applied == 9
