"""The registry's decisions: each command and step result, in each state it can meet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from schemas import avro
from schemas.lifecycle import FunctionStatus
from schemas.records import Command, FunctionRecord, Outcome, StepCommand, StepResult, TriggerRecord
from streams import registry, sagas
from streams.registry import NEW, Entry, Output, Tombstone, take
from tests.commands import CONFIG, FAILURE, NOW_MS, answer, command, other_config

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
    return feed(command("create-function", "c1"), answer("c1"))[0]


def test_create_makes_the_function_creating_and_sends_its_first_step() -> None:
    _, outputs = take(NEW, command("create-function", "c1", description="says hello", config=CONFIG), 7)
    record, step = one(outputs, FunctionRecord), one(outputs, StepCommand)
    assert len(outputs) == 2
    assert (record.status, record.proposed, record.serving) == ("Creating", CONFIG, None)
    assert (record.applied, record.command_id, record.description, record.uin) == (
        7,
        "c1",
        "says hello",
        "100000000001",
    )
    assert (record.created_unix_ms, record.modified_unix_ms) == (NOW_MS, NOW_MS)
    assert (step.module, step.operation, step.key, step.saga_id, step.config) == ("code", "check", KEY, "c1", CONFIG)


def test_the_function_id_follows_from_the_command_id() -> None:
    first = one(take(NEW, command("create-function", "c1"), 0)[1], FunctionRecord).function_id
    again = one(take(NEW, command("create-function", "c1"), 9)[1], FunctionRecord).function_id
    other = one(take(NEW, command("create-function", "c2"), 0)[1], FunctionRecord).function_id
    assert first == again != other
    assert first.startswith("lam-")
    assert len(first) == 12


def test_a_good_answer_makes_the_function_active_and_ends_its_command() -> None:
    _, outputs = feed(command("create-function", "c1"), answer("c1"))
    record = one(outputs, FunctionRecord)
    assert (record.status, record.serving, record.proposed, record.reasons) == ("Active", CONFIG, None, ())
    assert one(outputs, Outcome) == Outcome("c1", KEY)
    assert len(outputs) == 2


def test_a_bad_answer_to_a_create_says_why_and_keeps_what_was_proposed() -> None:
    _, outputs = feed(command("create-function", "c1"), answer("c1", reasons=FAILURE))
    record, outcome = one(outputs, FunctionRecord), one(outputs, Outcome)
    assert (record.status, record.serving, record.proposed, record.reasons) == ("CreateFailed", None, CONFIG, FAILURE)
    assert outcome.code == "FailedOperation.CreateFunction"
    assert "index.py has no main_handler" in outcome.message


def test_a_bad_answer_to_an_update_leaves_what_serves() -> None:
    _, outputs = feed(
        command("update-function", "c2", config=other_config()), answer("c2", reasons=FAILURE), entry=active(), first=5
    )
    record = one(outputs, FunctionRecord)
    assert (record.status, record.serving, record.proposed, record.reasons) == ("UpdateFailed", CONFIG, None, FAILURE)


def test_a_good_answer_to_an_update_makes_the_new_configuration_serve() -> None:
    _, outputs = feed(command("update-function", "c2", config=other_config()), answer("c2"), entry=active(), first=5)
    record = one(outputs, FunctionRecord)
    assert (record.status, record.serving, record.proposed) == ("Active", other_config(), None)


def test_a_failed_create_can_be_updated_into_life() -> None:
    entry, _ = feed(command("create-function", "c1"), answer("c1", reasons=FAILURE))
    entry, outputs = feed(command("update-function", "c2", config=other_config()), entry=entry, first=5)
    assert one(outputs, FunctionRecord).status == "Creating"
    assert one(feed(answer("c2"), entry=entry, first=6)[1], FunctionRecord).status == "Active"


def test_the_newest_of_two_updates_wins_and_the_older_one_is_told() -> None:
    entry, _ = feed(command("update-function", "c2", config=other_config("index.a")), entry=active(), first=5)
    entry, outputs = feed(command("update-function", "c3", config=other_config("index.b")), entry=entry, first=6)
    assert one(outputs, FunctionRecord).proposed == other_config("index.b")
    assert one(outputs, StepCommand).saga_id == "c3"
    told = one(outputs, Outcome)
    assert told.command_id == "c2"
    assert told.code == "FailedOperation"
    assert feed(answer("c2"), entry=entry, first=7) == (entry, ()), "the answer to the older one changes nothing"
    assert one(feed(answer("c3"), entry=entry, first=8)[1], FunctionRecord).serving == other_config("index.b")


def test_a_new_description_alone_needs_no_saga() -> None:
    entry, outputs = feed(command("update-function", "c2", description="new"), entry=active(), first=5)
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


def test_delete_writes_a_tombstone_and_ends_a_running_saga() -> None:
    entry, outputs = feed(command("create-function", "c1"), command("delete-function", "c2"))
    assert Tombstone(KEY, is_function=True) in outputs
    assert {o.command_id: o.code for o in outputs if isinstance(o, Outcome)} == {"c1": "FailedOperation", "c2": ""}
    assert feed(answer("c1"), entry=entry, first=2) == (entry, ())


def test_a_function_made_again_is_another_one_with_a_higher_seq() -> None:
    entry = active()
    before = entry.function
    entry, _ = feed(command("delete-function", "c2"), entry=entry, first=2)
    entry, outputs = feed(command("create-function", "c3"), entry=entry, first=3)
    record = one(outputs, FunctionRecord)
    assert before is not None
    assert record.seq > before.seq
    assert record.function_id != before.function_id


def test_seq_is_higher_also_when_the_deletion_was_forgotten() -> None:
    old = feed(command("create-function", "c1"), answer("c1"), command("delete-function", "c2"))[0]
    new = one(take(NEW, command("create-function", "c3"), 3)[1], FunctionRecord)
    assert new.seq > 3 > old.seq - 1


def test_triggers_are_made_changed_and_deleted_at_once() -> None:
    entry, outputs = take(NEW, command("create-trigger", "c1", trigger="t"), 3)
    made = one(outputs, TriggerRecord)
    assert (made.applied, made.command_id, one(outputs, Outcome)) == (3, "c1", Outcome("c1", TRIGGER_KEY))
    off = command("update-trigger", "c2", trigger="t", unix_ms=NOW_MS + 9)
    assert off.trigger is not None
    off = replace(off, trigger=replace(off.trigger, enabled=False, created_unix_ms=5))
    entry, outputs = take(entry, off, 4)
    changed = one(outputs, TriggerRecord)
    assert (changed.enabled, changed.created_unix_ms, changed.modified_unix_ms) == (False, NOW_MS, NOW_MS + 9)
    assert changed.seq > made.seq
    entry, outputs = take(entry, command("delete-trigger", "c3", trigger="t"), 5)
    assert outputs == (Tombstone(TRIGGER_KEY, is_function=False), Outcome("c3", TRIGGER_KEY))


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
    monkeypatch.setattr(sagas, "WORKFLOWS", {"create-function": steps})
    entry, outputs = take(NEW, command("create-function", "c1"), 0)
    asked = [one(outputs, StepCommand)]
    for position in (0, 1):
        entry, outputs = take(entry, answer("c1", step=position), position)
        assert one(outputs, FunctionRecord).status == "Creating"
        asked.append(one(outputs, StepCommand))
    _, outputs = take(entry, answer("c1", step=2), 2)
    assert [step.module for step in asked] == ["code", "network", "route"]
    assert len({step.step_id for step in asked}) == 3
    assert one(outputs, FunctionRecord).status == "Active"


def test_a_saga_without_an_answer_stays_and_can_be_seen_with_its_time() -> None:
    entry, _ = take(NEW, command("create-function", "c1"), 0)
    assert entry.function is not None
    assert entry.function.status == FunctionStatus.CREATING
    assert entry.saga == sagas.Saga("c1", "create-function", 0, NOW_MS, CONFIG)


def test_only_the_mark_of_a_deleted_key_is_forgotten_and_only_after_an_hour() -> None:
    live = active()
    gone, _ = feed(command("delete-function", "c2"), entry=live, first=2)
    refused, _ = feed(command("delete-function", "x"))
    much_later = NOW_MS + registry.FORGET_AFTER_MS + 1
    assert not registry.is_forgettable(live, much_later)
    assert not registry.is_forgettable(gone, NOW_MS + 60_000)
    assert registry.is_forgettable(gone, much_later)
    assert registry.is_forgettable(refused, much_later)


def test_an_entry_survives_its_encoding() -> None:
    entry, _ = feed(command("update-function", "c2"), entry=active(), first=5)
    assert avro.decode(Entry, avro.encode(entry)) == entry
