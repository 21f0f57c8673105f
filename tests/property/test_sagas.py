"""Sagas under modules that answer, fail, stay silent or answer twice: they end, undo what they did, and replay the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import avro
from schemas.records import StatusReason, WorkflowRecord
from streams import sagas
from streams.replay import replay
from streams.sagas import Ended, Given, Kind, Saga
from tests.commands import CONFIG, FAILURE

KEY = "1250000000/default/hello"
AWAY = (StatusReason("ResourceUnavailable", "the store is away"),)
FATES = ("done", "done", "done", "failed", "away", "silent", "late", "twice")


@dataclass
class Modules:
    """What the modules did: effects by step, each done or undone once whatever came twice."""

    effects: dict[int, str] = field(default_factory=dict)
    undone: list[int] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def work(self, saga: Saga, fate: str) -> list[Given]:
        """Answers to the step that is out."""
        step_id, now_ms = saga.step_id, saga.events[-1].unix_ms + 5
        self.asked.append((step_id, saga.attempt))
        if fate == "failed" and not saga.undoing:
            return [Given(Kind.FAILED, now_ms, step_id, saga.attempt, FAILURE)]
        if fate == "away":
            return [Given(Kind.RETRYABLE, now_ms, step_id, saga.attempt, AWAY)]
        if fate == "silent":
            return []
        self._effect(saga)
        done = Given(Kind.DONE, now_ms, step_id, saga.attempt)
        return {"late": [], "twice": [done, done]}.get(fate, [done])

    def _effect(self, saga: Saga) -> None:
        if saga.undoing:
            if self.effects.pop(saga.position, None) is not None:
                self.undone.append(saga.position)
        else:
            self.effects[saga.position] = saga.operation


def drive(saga: Saga, modules: Modules, fates: list[str], abandon_after: int) -> tuple[Ended, list[Given]]:
    """To the end; after the drawn fates all is done at once."""
    taken: list[Given] = []
    waiting: list[Given] = modules.work(saga, fates.pop() if fates else "done")
    while True:
        if abandon_after == len(taken):
            waiting = [Given(Kind.ABANDON, saga.events[-1].unix_ms + 1, reasons=AWAY)]
        told = waiting.pop(0) if waiting else Given(Kind.TIMER, saga.due_ms)
        then = sagas.take(saga, told)
        if then is None:
            abandon_after = -1 if told.kind is Kind.ABANDON else abandon_after
            continue
        taken.append(told)
        if isinstance(then, Ended):
            return then, taken
        sends = (then.step_id, then.attempt) != (saga.step_id, saga.attempt)
        saga = then
        if sends and not saga.resting:
            waiting += modules.work(saga, fates.pop() if fates else "done")


@pytest.mark.parametrize("workflow", list(sagas.WORKFLOWS))
@example(fates=["failed", "late", "done", "done"], abandon_after=-1)
@example(fates=["silent", "done"], abandon_after=0)
@given(fates=st.lists(st.sampled_from(FATES), max_size=30), abandon_after=st.integers(-1, 12))
def test_a_saga_ends_with_all_done_or_all_undone_and_replays_the_same(
    workflow: str, fates: list[str], abandon_after: int
) -> None:
    steps, gives_up = sagas.WORKFLOWS[workflow].steps, sagas.WORKFLOWS[workflow].gives_up
    modules = Modules()
    saga = sagas.start("s", workflow, 1_000, CONFIG)
    ended, _ = drive(saga, modules, fates, abandon_after if gives_up else -1)
    undoable = [position for position, step in enumerate(steps) if step.undo]
    if not ended.reasons:
        assert list(modules.effects) == list(range(len(steps)))
        assert modules.undone == []
    elif gives_up:
        assert [p for p in modules.effects if p in undoable] == [], "an effect is left"
        assert modules.undone == sorted(modules.undone, reverse=True), "in another order than the reverse"
    record = sagas.history(ended.saga, KEY, ended)
    assert avro.decode(WorkflowRecord, avro.encode(record)) == record
    assert record.state == ("failed" if ended.reasons else "succeeded")
    again = replay(record)
    assert len(again) == len(record.events)
    assert all(step.is_same for step in again)


def test_a_replay_of_an_altered_history_shows_the_first_decision_that_differs() -> None:
    ended, _ = drive(sagas.start("s", "create-function", 0, CONFIG), Modules(), ["failed"], -1)
    record = sagas.history(ended.saga, KEY, ended)
    from dataclasses import replace

    altered = replace(record, events=(*record.events[:-1], replace(record.events[-1], decided="succeeded")))
    assert [step.is_same for step in replay(altered)] == [True] * (len(record.events) - 1) + [False]


def test_a_history_that_is_not_whole_or_of_an_unknown_workflow_is_not_replayed() -> None:
    ended, _ = drive(sagas.start("s", "create-function", 0, CONFIG), Modules(), [], -1)
    record = sagas.history(ended.saga, KEY, ended)
    from dataclasses import replace

    for broken in (replace(record, left_out=3), replace(record, workflow="fold-function"), replace(record, events=())):
        with pytest.raises(ValueError, match=r"not kept|no workflow"):
            replay(broken)


def test_what_can_be_tried_again_is_with_growing_pauses_until_the_deadline() -> None:
    saga: Saga | Ended | None = sagas.start("s", "create-function", 0, CONFIG)
    pauses, now_ms = [], 0
    while isinstance(saga, Saga):
        if saga.resting:
            pauses.append(saga.due_ms - now_ms)
            now_ms = saga.due_ms
            saga = sagas.take(saga, Given(Kind.TIMER, now_ms))
        else:
            saga = sagas.take(saga, Given(Kind.RETRYABLE, now_ms, saga.step_id, saga.attempt, AWAY))
    assert isinstance(saga, Ended)
    assert saga.reasons == AWAY
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (sagas.REST_MS, sagas.REST_MAX_MS)
    assert sagas.STEP_MS <= now_ms <= sagas.STEP_MS + sagas.REST_MAX_MS


def test_a_workflow_that_does_not_give_up_tries_for_ever_and_keeps_a_bounded_history() -> None:
    saga = sagas.start("s", "delete-function", 0, CONFIG)
    for _ in range(2_000):
        then = sagas.take(saga, Given(Kind.TIMER, saga.due_ms))
        assert isinstance(then, Saga)
        saga = then
    assert len(saga.events) == sagas.EVENTS_KEPT
    assert saga.left_out == 2_001 - sagas.EVENTS_KEPT
    record = sagas.history(saga, KEY)
    assert (record.seq, record.state) == (2_001, "running")


def test_a_compensation_that_can_not_be_done_is_given_up_late_and_the_saga_says_so() -> None:
    saga: Saga | Ended | None = sagas.start("s", "create-function", 0, CONFIG)
    for position in range(3):
        assert isinstance(saga, Saga)
        saga = sagas.take(saga, Given(Kind.DONE, position, saga.step_id, 1))
    assert isinstance(saga, Saga)
    saga = sagas.take(saga, Given(Kind.FAILED, 10, saga.step_id, 1, FAILURE))
    now_ms = 10
    while isinstance(saga, Saga):
        assert saga.undoing
        now_ms = max(now_ms, saga.due_ms) if saga.resting else now_ms + 1
        kind = Kind.TIMER if saga.resting else Kind.FAILED
        saga = sagas.take(saga, Given(kind, now_ms, saga.step_id, saga.attempt, () if saga.resting else AWAY))
    assert isinstance(saga, Ended)
    assert saga.reasons == (*FAILURE, *AWAY)
    assert now_ms >= sagas.STEP_MS
