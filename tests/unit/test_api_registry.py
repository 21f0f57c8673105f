"""Read your writes: what the answering gateway shows between a command and its return by the registry topic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ingest.api.registry import REFUSED_S, SETTLED_S, Registry
from schemas.records import Outcome, TriggerRecord
from tests.api_fakes import FakeView

KEY = "1/default/f/t"


def row(name: str = "t", *, command_id: str = "c0", applied: int = 0) -> TriggerRecord:
    return TriggerRecord(
        seq=1,
        appid="1",
        uin="2",
        namespace="default",
        function="f",
        name=name,
        type="ckafka",
        qualifier="$LATEST",
        enabled=True,
        trigger_desc="",
        custom_argument="",
        created_unix_ms=0,
        modified_unix_ms=0,
        applied=applied,
        command_id=command_id,
    )


class Clock:
    now_s = 100.0

    def mono_s(self) -> float:
        return self.now_s


@pytest.fixture
def view() -> FakeView[TriggerRecord]:
    return FakeView()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(view: FakeView[TriggerRecord], clock: Clock) -> Registry[TriggerRecord]:
    return Registry(view, clock.mono_s)


def names(registry: Registry[TriggerRecord]) -> list[str]:
    return [t.name for t in registry.within("1/default/f")]


def test_what_was_there_at_the_start_is_listed(view: FakeView[TriggerRecord], clock: Clock) -> None:
    view.put(KEY, row())
    assert names(Registry(view, clock.mono_s)) == ["t"]


def test_a_proposal_shows_until_its_record_comes(
    view: FakeView[TriggerRecord], registry: Registry[TriggerRecord]
) -> None:
    registry.propose(KEY, "c1", row(command_id="c1", applied=-1))
    registry.sent(KEY, "c1", 7)
    assert names(registry) == ["t"]
    view.put(KEY, row(command_id="c1", applied=7))
    assert registry.get(KEY) == view.get(KEY)


def test_an_older_record_does_not_end_a_proposal(
    view: FakeView[TriggerRecord], registry: Registry[TriggerRecord]
) -> None:
    view.put(KEY, row(command_id="c0", applied=3))
    proposed = row(command_id="c1", applied=-1)
    registry.propose(KEY, "c1", proposed)
    registry.sent(KEY, "c1", 7)
    view.put(KEY, row(command_id="c0b", applied=6))
    assert registry.get(KEY) == proposed
    later = row(command_id="c2", applied=9)
    view.put(KEY, later)
    assert registry.get(KEY) == later


def test_a_record_that_comes_before_the_acknowledgement_ends_the_proposal(
    view: FakeView[TriggerRecord], registry: Registry[TriggerRecord]
) -> None:
    registry.propose(KEY, "c1", row(command_id="c1"))
    changed = replace(row(command_id="c2", applied=8), enabled=False)
    view.put(KEY, changed)
    registry.sent(KEY, "c1", 7)
    assert registry.get(KEY) == changed


def test_a_refused_command_soon_shows_no_longer(clock: Clock, registry: Registry[TriggerRecord]) -> None:
    registry.propose(KEY, "c1", row(command_id="c1"))
    registry.settled(Outcome("c1", KEY, "ResourceInUse.Trigger", "exists"))
    assert registry.get(KEY) is not None
    clock.now_s += REFUSED_S + 0.1
    assert registry.get(KEY) is None


def test_a_failed_updates_outcome_that_overtakes_its_record_does_not_show_the_state_before(
    view: FakeView[TriggerRecord], registry: Registry[TriggerRecord]
) -> None:
    view.put(KEY, row(command_id="c0", applied=3))
    proposed = row(command_id="c1", applied=-1)
    registry.propose(KEY, "c1", proposed)
    registry.settled(Outcome("c1", KEY, "InvalidParameterValue.Handler", "no such handler"))
    assert registry.get(KEY) == proposed
    view.put(KEY, row(command_id="c1", applied=7))
    assert registry.get(KEY) == row(command_id="c1", applied=7)


def test_a_command_that_was_not_sent_shows_no_longer(registry: Registry[TriggerRecord]) -> None:
    registry.propose(KEY, "c1", row(command_id="c1"))
    registry.withdraw(KEY, "c0")
    assert registry.get(KEY) is not None
    registry.withdraw(KEY, "c1")
    assert registry.get(KEY) is None


def test_an_accepted_command_shows_for_some_seconds_at_most(clock: Clock, registry: Registry[TriggerRecord]) -> None:
    registry.propose(KEY, "c1", row(command_id="c1"))
    registry.settled(Outcome("c1", KEY))
    clock.now_s += SETTLED_S - 1
    assert names(registry) == ["t"]
    clock.now_s += 2
    assert registry.get(KEY) is None
    assert names(registry) == []


def test_a_deletion_hides_until_the_tombstone_comes(
    view: FakeView[TriggerRecord], registry: Registry[TriggerRecord]
) -> None:
    view.put(KEY, row())
    registry.propose(KEY, "c1", None, ends=True)
    assert (registry.get(KEY), names(registry)) == (None, [])
    view.put(KEY, None)
    view.put(KEY, row(command_id="c2", applied=9))
    assert names(registry) == ["t"]


def test_the_tombstone_of_an_older_deletion_does_not_hide_a_new_creation(
    view: FakeView[TriggerRecord], registry: Registry[TriggerRecord]
) -> None:
    view.put(KEY, row())
    registry.propose(KEY, "c1", None, ends=True)
    registry.propose(KEY, "c2", row(command_id="c2"))
    view.put(KEY, None)
    assert registry.get(KEY) == row(command_id="c2")


def test_listings_hold_their_scope_only(view: FakeView[TriggerRecord], registry: Registry[TriggerRecord]) -> None:
    view.put("1/default/f/b", row("b"))
    view.put("1/default/f/a", row("a"))
    view.put("1/default/g/c", row("c"))
    registry.propose("1/default/g/d", "c1", row("d", command_id="c1"))
    assert names(registry) == ["a", "b"]
    assert [t.name for t in registry.within("1/default/g")] == ["c", "d"]
    view.put("1/default/f/a", None)
    view.put("1/default/f/b", None)
    assert names(registry) == []
