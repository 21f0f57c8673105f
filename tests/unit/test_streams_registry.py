"""The registry's decisions: each command and step result, in each state it can meet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from schemas import avro
from schemas.records import (
    Command,
    FunctionRecord,
    Outcome,
    StatusReason,
    StepCommand,
    StepResult,
    TriggerRecord,
    WorkflowRecord,
)
from streams import registry, sagas
from streams.entries import Entry, Output, Tombstone
from streams.registry import NEW, take
from streams.replay import replay
from tests.commands import CONFIG, FAILURE, NOW_MS, answer, answers, command, other_config, trigger_record

KEY = "1250000000/default/hello"
TRIGGER_KEY = f"{KEY}/t"


def feed(*events: Command | StepResult, entry: Entry = NEW, first: int = 0) -> tuple[Entry, tuple[Output, ...]]:
    """Events at ascending offsets (of both topics); the last one's outputs."""
    outputs: tuple[Output, ...] = ()
    for offset, event in enumerate(events, first):
        entry, outputs = take(entry, event, offset)
    return entry, outputs


def one(outputs: tuple[Output, ...], kind: type) -> Any:
    [found] = [output for output in outputs if isinstance(output, kind)]
    return found


def active() -> Entry:
    return feed(command("create-function", "c1"), *answers("c1"))[0]


def test_create_makes_the_function_creating_and_sends_its_first_step() -> None:
    _, outputs = take(NEW, command("create-function", "c1", description="says hello", config=CONFIG), 7)
    record, step = one(outputs, FunctionRecord), one(outputs, StepCommand)
    assert one(outputs, WorkflowRecord).state == "running"
    assert len(outputs) == 3
    assert (record.status, record.proposed, record.serving) == ("Creating", CONFIG, None)
    assert (record.applied, record.command_id, record.description, record.uin) == (
        7,
        "c1",
        "says hello",
        "100000000001",
    )
    assert (record.created_unix_ms, record.modified_unix_ms) == (NOW_MS, NOW_MS)
    assert (step.module, step.operation, step.key, step.saga_id, step.config) == ("code", "store", KEY, "c1", CONFIG)


def test_the_function_id_follows_from_the_command_id() -> None:
    first = one(take(NEW, command("create-function", "c1"), 0)[1], FunctionRecord).function_id
    again = one(take(NEW, command("create-function", "c1"), 9)[1], FunctionRecord).function_id
    other = one(take(NEW, command("create-function", "c2"), 0)[1], FunctionRecord).function_id
    assert first == again != other
    assert first.startswith("lam-")
    assert len(first) == 12


def test_a_good_answer_makes_the_function_active_and_ends_its_command() -> None:
    _, outputs = feed(command("create-function", "c1"), *answers("c1"))
    record = one(outputs, FunctionRecord)
    assert (record.status, record.serving, record.proposed, record.reasons) == ("Active", CONFIG, None, ())
    assert one(outputs, Outcome) == Outcome("c1", KEY)
    assert one(outputs, WorkflowRecord).state == "succeeded"
    assert len(outputs) == 3


def test_a_bad_answer_to_a_create_says_why_and_keeps_what_was_proposed() -> None:
    _, outputs = feed(command("create-function", "c1"), answer("c1", reasons=FAILURE))
    record, outcome = one(outputs, FunctionRecord), one(outputs, Outcome)
    assert (record.status, record.serving, record.proposed, record.reasons) == ("CreateFailed", None, CONFIG, FAILURE)
    assert outcome.code == "FailedOperation.CreateFunction"
    assert "index.py has no main_handler" in outcome.message


def test_a_bad_answer_to_an_update_leaves_what_serves() -> None:
    _, outputs = feed(
        command("update-function", "c2", config=other_config()), answer("c2", reasons=FAILURE), entry=active(), first=9
    )
    record = one(outputs, FunctionRecord)
    assert (record.status, record.serving, record.proposed, record.reasons) == ("UpdateFailed", CONFIG, None, FAILURE)


def test_a_good_answer_to_an_update_makes_the_new_configuration_serve() -> None:
    _, outputs = feed(command("update-function", "c2", config=other_config()), *answers("c2"), entry=active(), first=9)
    record = one(outputs, FunctionRecord)
    assert (record.status, record.serving, record.proposed) == ("Active", other_config(), None)


def test_a_failed_create_can_be_updated_into_life() -> None:
    entry, _ = feed(command("create-function", "c1"), answer("c1", reasons=FAILURE))
    entry, outputs = feed(command("update-function", "c2", config=other_config()), entry=entry, first=5)
    assert one(outputs, FunctionRecord).status == "Creating"
    assert one(feed(*answers("c2"), entry=entry, first=6)[1], FunctionRecord).status == "Active"


def test_the_newest_of_two_updates_wins_and_the_older_one_is_told() -> None:
    entry, _ = feed(command("update-function", "c2", config=other_config("index.a")), entry=active(), first=9)
    entry, outputs = feed(command("update-function", "c3", config=other_config("index.b")), entry=entry, first=10)
    assert one(outputs, FunctionRecord).proposed == other_config("index.b")
    assert one(outputs, StepCommand).saga_id == "c3"
    told = one(outputs, Outcome)
    assert told.command_id == "c2"
    assert told.code == "FailedOperation"
    assert feed(answer("c2"), entry=entry, first=11) == (entry, ()), "the answer to the older one changes nothing"
    assert one(feed(*answers("c3"), entry=entry, first=12)[1], FunctionRecord).serving == other_config("index.b")


def test_a_new_description_alone_needs_no_saga() -> None:
    entry, outputs = feed(command("update-function", "c2", description="new"), entry=active(), first=9)
    record = one(outputs, FunctionRecord)
    assert (record.status, record.description, record.command_id) == ("Active", "new", "c2")
    assert one(outputs, Outcome) == Outcome("c2", KEY)
    assert entry.saga is None


@pytest.mark.parametrize(
    ("events", "refused", "code"),
    [
        ([command("create-function", "c1")], command("create-function", "x"), "ResourceInUse.FunctionName"),
        ([], command("update-function", "x"), "ResourceNotFound.FunctionName"),
        ([], command("delete-function", "x"), "ResourceNotFound.FunctionName"),
        ([command("create-function", "c1")], command("update-function", "x"), "FailedOperation.FunctionStatusError"),
        ([command("create-trigger", "c1", trigger="t")], command("create-trigger", "x", trigger="t"), "ResourceInUse.Trigger"),
        ([], command("update-trigger", "x", trigger="t"), "ResourceNotFound.Trigger"),
        ([], command("delete-trigger", "x", trigger="t"), "ResourceNotFound.Trigger"),
        ([], command("create-trigger", "x"), "InternalError"),
        ([], command("create-function", "x", description="no configuration"), "InternalError"),
        ([], command("fold-function", "x"), "UnsupportedOperation"),
    ],
)  # fmt: skip
def test_a_command_that_can_not_be_is_refused_with_its_code_and_changes_no_record(
    events: list[Command], refused: Command, code: str
) -> None:
    entry, _ = feed(*events)
    then, outputs = feed(refused, entry=entry, first=5)
    [outcome] = outputs
    assert isinstance(outcome, Outcome)
    assert (outcome.command_id, outcome.code) == ("x", code)
    assert outcome.message
    assert (then.function, then.trigger, then.saga) == (entry.function, entry.trigger, entry.saga)


def test_delete_is_a_workflow_and_writes_its_tombstone_at_the_end() -> None:
    entry, outputs = feed(command("delete-function", "c2"), entry=active(), first=9)
    assert one(outputs, FunctionRecord).status == "Deleting"
    assert (one(outputs, StepCommand).module, one(outputs, StepCommand).operation) == ("route", "withdraw")
    entry, outputs = feed(*answers("c2", kind="delete-function"), entry=entry, first=9)
    assert Tombstone(KEY, is_function=True) in outputs
    assert one(outputs, Outcome) == Outcome("c2", KEY)
    assert feed(answer("c1"), entry=entry, first=19) == (entry, ())


def test_a_delete_amid_a_create_ends_that_first() -> None:
    entry, outputs = feed(command("create-function", "c1"), command("delete-function", "c2"))
    assert one(outputs, Outcome).command_id == "c1"
    assert one(outputs, Outcome).code == "FailedOperation.CreateFunction"
    assert one(outputs, FunctionRecord).status == "Deleting"
    assert one(outputs, StepCommand).saga_id == "c2"
    assert {r.saga_id: r.state for r in outputs if isinstance(r, WorkflowRecord)} == {"c1": "failed", "c2": "running"}
    assert entry.saga is not None
    assert entry.saga.workflow == "delete-function"


def test_a_delete_waits_until_what_a_create_has_done_is_undone() -> None:
    entry, _ = feed(command("create-function", "c1"), *answers("c1")[:4])
    entry, outputs = feed(command("delete-function", "c2"), entry=entry, first=9)
    assert not [o for o in outputs if isinstance(o, Outcome)]
    assert one(outputs, FunctionRecord).status == "Deleting"
    undo = one(outputs, StepCommand)
    assert (undo.module, undo.operation, undo.step_id) == ("network", "detach", "c1/2/undo")
    refused, said = feed(command("update-function", "x"), entry=entry, first=10)
    assert one(said, Outcome).code == "FailedOperation.FunctionStatusError"
    entry, outputs = feed(replace(answer("c1"), step_id="c1/2/undo"), entry=refused, first=10)
    assert one(outputs, Outcome).command_id == "c1"
    assert one(outputs, FunctionRecord).status == "Deleting"
    assert (one(outputs, StepCommand).saga_id, one(outputs, StepCommand).operation) == ("c2", "withdraw")
    entry, outputs = feed(*answers("c2", kind="delete-function"), entry=entry, first=11)
    assert Tombstone(KEY, is_function=True) in outputs


def test_of_updates_that_wait_for_an_undo_the_newest_is_begun() -> None:
    entry, _ = feed(command("update-function", "c2"), entry=active(), first=9)
    entry, _ = feed(*answers("c2")[:3], entry=entry, first=9)
    entry, outputs = feed(command("update-function", "c3", config=other_config("index.a")), entry=entry, first=13)
    assert one(outputs, StepCommand).operation == "detach"
    entry, outputs = feed(command("update-function", "c4", config=other_config("index.b")), entry=entry, first=14)
    assert one(outputs, Outcome).command_id == "c3"
    assert not [o for o in outputs if isinstance(o, StepCommand)], "what is out is not sent again"
    entry, outputs = feed(replace(answer("c2"), step_id="c2/2/undo"), entry=entry, first=15)
    assert one(outputs, Outcome).command_id == "c2"
    step = one(outputs, StepCommand)
    assert (step.saga_id, step.operation, step.config) == ("c4", "store", other_config("index.b"))
    record = one(feed(*answers("c4"), entry=entry, first=16)[1], FunctionRecord)
    assert (record.status, record.serving) == ("Active", other_config("index.b"))


def test_a_delete_that_fails_says_so_and_can_be_tried_again() -> None:
    entry, _ = feed(command("delete-function", "c2"), entry=active(), first=9)
    entry, outputs = feed(answer("c2", reasons=FAILURE), entry=entry, first=9)
    assert one(outputs, FunctionRecord).status == "DeleteFailed"
    assert one(outputs, Outcome).code == "FailedOperation.DeleteFunction"
    entry, _ = feed(command("delete-function", "c3"), entry=entry, first=11)
    _, outputs = feed(*answers("c3", kind="delete-function"), entry=entry, first=11)
    assert Tombstone(KEY, is_function=True) in outputs


def test_a_function_made_again_is_another_one_with_a_higher_seq() -> None:
    entry = active()
    before = entry.function
    entry, _ = feed(command("delete-function", "c2"), *answers("c2", kind="delete-function"), entry=entry, first=9)
    entry, outputs = feed(command("create-function", "c3"), entry=entry, first=20)
    record = one(outputs, FunctionRecord)
    assert before is not None
    assert record.seq > before.seq
    assert record.function_id != before.function_id


def test_seq_is_higher_also_when_the_deletion_was_forgotten() -> None:
    old = feed(command("delete-function", "c2"), *answers("c2", kind="delete-function"), entry=active(), first=9)[0]
    new = one(take(NEW, command("create-function", "c3"), 30)[1], FunctionRecord)
    assert new.seq > 30 > old.seq


def bound(entry: Entry = NEW, first: int = 3) -> tuple[Entry, tuple[Output, ...]]:
    return feed(command("create-trigger", "c1", trigger="t"), answered("c1"), entry=entry, first=first)


def answered(
    command_id: str, reasons: Any = (), *, unix_ms: int = NOW_MS + 1, undo: bool = False, **more: Any
) -> StepResult:
    step_id = f"{command_id}/0" + ("/undo" if undo else "")
    return StepResult(step_id, command_id, "trigger", TRIGGER_KEY, unix_ms, reasons, **more)


AWAY = (StatusReason("InternalError.Ckafka", "Kafka can't be used"),)


def test_a_trigger_is_shown_and_its_maker_told_when_it_is_bound() -> None:
    entry, outputs = take(NEW, command("create-trigger", "c1", trigger="t"), 3)
    step = one(outputs, StepCommand)
    assert (step.module, step.operation, step.trigger) == ("trigger", "bind", trigger_record())
    assert not [o for o in outputs if isinstance(o, TriggerRecord | Outcome | Tombstone)]
    again = one(take(entry, command("create-trigger", "c2", trigger="t"), 4)[1], Outcome)
    assert again.code == "ResourceInUse.Trigger"
    entry, outputs = take(entry, answered("c1"), 0)
    made = one(outputs, TriggerRecord)
    assert (made.applied, made.command_id, one(outputs, Outcome)) == (3, "c1", Outcome("c1", TRIGGER_KEY))
    assert one(outputs, WorkflowRecord).state == "succeeded"
    assert (entry.trigger, entry.saga) == (made, None)


def test_a_trigger_that_can_not_be_bound_is_refused_with_the_reason_and_leaves_nothing() -> None:
    entry, outputs = feed(command("create-trigger", "c1", trigger="t"), answered("c1", AWAY))
    assert one(outputs, Outcome) == Outcome("c1", TRIGGER_KEY, AWAY[0].code, AWAY[0].message)
    assert (entry.trigger, entry.saga) == (None, None)
    assert not [o for o in outputs if isinstance(o, TriggerRecord | Tombstone)]


def test_who_waits_for_a_trigger_is_told_before_what_was_begun_is_undone() -> None:
    retry = answered("c1", AWAY, retryable=True, unix_ms=NOW_MS + 100)
    entry, outputs = feed(command("create-trigger", "c1", trigger="t"), retry)
    assert [type(o) for o in outputs] == [WorkflowRecord]
    entry, outputs = registry.tick(entry, TRIGGER_KEY, NOW_MS + 300)
    assert one(outputs, StepCommand).attempt == 2
    late = answered("c1", AWAY, retryable=True, attempt=2, unix_ms=NOW_MS + 2_500)
    entry, outputs = take(entry, late, 7)
    assert (one(outputs, StepCommand).operation, one(outputs, Outcome).code) == ("unbind", AWAY[0].code)
    entry, outputs = take(entry, answered("c1", undo=True), 8)
    assert (one(outputs, WorkflowRecord).state, entry.saga) == ("failed", None)
    assert not [o for o in outputs if isinstance(o, Outcome)]
    assert one(bound(entry, 20)[1], TriggerRecord).name == "t"


def test_a_trigger_is_made_while_an_earlier_try_is_still_being_undone() -> None:
    late = answered("c1", AWAY, retryable=True, unix_ms=NOW_MS + 2_500)
    entry, _ = feed(command("create-trigger", "c1", trigger="t"), late)
    assert entry.saga is not None
    assert entry.saga.undoing
    entry, outputs = take(entry, command("create-trigger", "c2", trigger="t"), 6)
    histories = [o for o in outputs if isinstance(o, WorkflowRecord)]
    assert {(o.saga_id, o.state) for o in histories} == {("c1", "failed"), ("c2", "running")}
    assert all(step.is_same for history in histories for step in replay(history))
    assert not [o for o in outputs if isinstance(o, Outcome)]
    assert one(take(entry, answered("c2"), 9)[1], TriggerRecord).command_id == "c2"


def test_a_trigger_is_changed_at_once() -> None:
    entry, outputs = bound()
    made = one(outputs, TriggerRecord)
    off = command("update-trigger", "c2", trigger="t", unix_ms=NOW_MS + 9)
    assert off.trigger is not None
    off = replace(off, trigger=replace(off.trigger, enabled=False, created_unix_ms=5))
    entry, outputs = take(entry, off, 4)
    changed = one(outputs, TriggerRecord)
    assert (changed.enabled, changed.created_unix_ms, changed.modified_unix_ms) == (False, NOW_MS, NOW_MS + 9)
    assert changed.seq > made.seq


def test_a_trigger_is_gone_at_once_and_its_group_after_it() -> None:
    entry, outputs = take(bound()[0], command("delete-trigger", "c3", trigger="t"), 5)
    assert one(outputs, Tombstone) == Tombstone(TRIGGER_KEY, is_function=False)
    assert one(outputs, Outcome) == Outcome("c3", TRIGGER_KEY)
    assert one(outputs, StepCommand).operation == "unbind"
    busy = (StatusReason("ResourceInUse", "has members"),)
    entry, outputs = take(entry, answered("c3", busy, retryable=True), 9)
    assert not registry.is_forgettable(entry, NOW_MS * 2)
    entry, outputs = registry.tick(entry, TRIGGER_KEY, NOW_MS + 300)
    entry, outputs = take(entry, answered("c3", attempt=2), 10)
    assert [type(o) for o in outputs] == [WorkflowRecord]
    assert one(outputs, WorkflowRecord).state == "succeeded"
    assert registry.is_forgettable(entry, NOW_MS * 2)


def test_a_trigger_is_made_anew_though_the_old_ones_group_is_still_there() -> None:
    entry, _ = take(bound()[0], command("delete-trigger", "c3", trigger="t"), 5)
    entry, outputs = take(entry, command("create-trigger", "c4", trigger="t"), 6)
    assert {(o.saga_id, o.state) for o in outputs if isinstance(o, WorkflowRecord)} == {
        ("c3", "failed"),
        ("c4", "running"),
    }
    assert one(outputs, StepCommand).step_id == "c4/0"
    entry, outputs = take(entry, answered("c3"), 9)
    assert outputs == ()
    assert one(take(entry, answered("c4"), 10)[1], TriggerRecord).command_id == "c4"


def test_an_older_command_says_nothing_and_the_same_one_says_the_same() -> None:
    entry, first = take(NEW, command("create-function", "c1"), 4)
    assert take(entry, command("create-function", "c1"), 4) == (entry, first)
    assert take(entry, command("delete-function", "c0"), 3) == (entry, ())


def test_a_result_delivered_twice_says_the_same_twice() -> None:
    entry, _ = take(NEW, command("create-function", "c1"), 4)
    entry, first = take(entry, answer("c1"), 11)
    assert take(entry, answer("c1"), 11) == (entry, first)
    assert take(entry, answer("c1"), 10) == (entry, ())


@pytest.mark.parametrize(
    "stale", [answer("c0"), answer("c1", step=1), replace(answer("c1"), step_id="")], ids=["saga", "step", "empty"]
)
def test_the_answer_to_another_saga_or_step_changes_nothing(stale: StepResult) -> None:
    entry, _ = take(NEW, command("create-function", "c1"), 4)
    assert take(entry, stale, 0) == (entry, ())


def test_a_workflow_is_a_list_its_steps_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = tuple(sagas.Step(module, "do") for module in ("code", "network", "route"))
    monkeypatch.setattr(sagas, "WORKFLOWS", {"create-function": sagas.Workflow(steps)})
    entry, outputs = take(NEW, command("create-function", "c1"), 0)
    asked = [one(outputs, StepCommand)]
    for position in (0, 1):
        entry, outputs = take(entry, answer("c1", step=position), position)
        assert not [o for o in outputs if isinstance(o, FunctionRecord)], "the function is as it was"
        asked.append(one(outputs, StepCommand))
    _, outputs = take(entry, answer("c1", step=2), 2)
    assert [step.module for step in asked] == ["code", "network", "route"]
    assert len({step.step_id for step in asked}) == 3
    assert one(outputs, FunctionRecord).status == "Active"


def test_a_step_without_an_answer_is_sent_again_when_its_time_comes() -> None:
    entry, first = take(NEW, command("create-function", "c1"), 0)
    due_ms = registry.due_ms(entry)
    assert due_ms is not None
    assert registry.tick(entry, KEY, due_ms - 1) == (entry, ())
    then, outputs = registry.tick(entry, KEY, due_ms)
    sent, again = one(first, StepCommand), one(outputs, StepCommand)
    assert replace(again, attempt=1) == sent
    assert again.attempt == 2
    assert then.version == entry.version + 1
    assert registry.outputs(then, KEY) == outputs, "said again after a crash"
    assert one(take(then, answer("c1"), 0)[1], StepCommand).operation == "check", "the answer to the first counts"


def test_what_waited_long_before_it_was_taken_is_not_late_by_that() -> None:
    late_ms = NOW_MS + 10 * sagas.STEP_MS
    entry, _ = take(NEW, command("create-function", "c1"), 0, late_ms)
    due_ms = registry.due_ms(entry)
    assert due_ms is not None
    assert due_ms > late_ms


def test_a_saga_past_its_deadline_fails_and_says_which_module_was_silent() -> None:
    entry, _ = take(NEW, command("create-function", "c1"), 0)
    said: list[Output] = []
    while entry.saga is not None:
        due_ms = registry.due_ms(entry)
        assert due_ms is not None
        entry, outputs = registry.tick(entry, KEY, due_ms)
        said += outputs
    record, outcome = one(outputs, FunctionRecord), one(outputs, Outcome)
    assert record.status == "CreateFailed"
    assert "module code has not answered to store" in record.reasons[0].message
    assert outcome.code == "FailedOperation.CreateFunction"
    assert 3 < len([o for o in said if isinstance(o, StepCommand)]) < 10


def test_only_the_mark_of_a_deleted_key_is_forgotten_and_only_after_an_hour() -> None:
    live = active()
    gone, _ = feed(command("delete-function", "c2"), *answers("c2", kind="delete-function"), entry=live, first=9)
    refused, _ = feed(command("delete-function", "x"))
    much_later = NOW_MS + registry.FORGET_AFTER_MS + 2
    assert not registry.is_forgettable(live, much_later)
    assert not registry.is_forgettable(gone, NOW_MS + 60_000)
    assert registry.is_forgettable(gone, much_later)
    assert registry.is_forgettable(refused, much_later)


def test_an_entry_survives_its_encoding() -> None:
    entry, _ = feed(command("update-function", "c2"), entry=active(), first=9)
    assert avro.decode(Entry, avro.encode(entry)) == entry
