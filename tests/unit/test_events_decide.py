"""What becomes of an asynchronous event: retries, platform failures, age, termination."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ingest.events.decide import AT_LIMIT, AT_LIMIT_MS, QUICK, Decision, Fate, after, before
from schemas.events import AsyncEvent
from schemas.records import EventPolicy
from schemas.runstatus import RunStatus, blames_platform

NOW, MINUTE = 10_000_000, 60_000
EVENT = AsyncEvent("r", "1", "2", "default", "f", "$LATEST", "$LATEST", b"{}", NOW)
POLICY = EventPolicy(retries=2, ttl_s=3_600)
OWN = [s for s in RunStatus if s != RunStatus.OK and not blames_platform(s) and s != RunStatus.FUNCTION_STATE]
PLATFORMS = [s for s in RunStatus if blames_platform(s)] + [RunStatus.FUNCTION_STATE]


def ended(event: AsyncEvent, status: int, **more: object) -> Decision:
    given: dict[str, object] = {
        "is_terminated": False,
        "quick": AT_LIMIT,
        "retry_ms": MINUTE,
        "policy": POLICY,
        "now_ms": NOW,
    }
    return after(event, status, **{**given, **more})  # type: ignore[arg-type]


def test_an_event_that_ran_well_is_finished_even_when_its_end_was_asked_for() -> None:
    assert ended(EVENT, RunStatus.OK, is_terminated=True).fate is Fate.FINISHED


@pytest.mark.parametrize("status", OWN)
def test_a_function_fails_an_event_as_often_as_its_policy_says_a_minute_apart(status: RunStatus) -> None:
    event, fates = EVENT, []
    for _ in range(3):
        decision = ended(event, status, quick=0)
        fates.append(decision.fate)
        event = decision.event
    if status in (RunStatus.NO_FUNCTION, RunStatus.NO_QUALIFIER):
        assert fates[0] is Fate.FAILED
        return
    assert fates == [Fate.LATER, Fate.LATER, Fate.FAILED]
    assert (event.failures, event.deferrals) == (3, 0)
    assert ended(EVENT, status).event.due_unix_ms == NOW + MINUTE


@pytest.mark.parametrize("status", PLATFORMS)
def test_what_the_platform_failed_is_tried_at_once_some_times_then_by_the_minute_and_never_counts(
    status: RunStatus,
) -> None:
    is_limit = status == RunStatus.CONCURRENCY
    soon = [ended(EVENT, status, quick=n) for n in range(AT_LIMIT if is_limit else QUICK)]
    assert {d.fate for d in soon} == {Fate.SOON}
    assert [d.delay_ms for d in soon] == ([AT_LIMIT_MS] * AT_LIMIT if is_limit else [50, 100, 200, 400, 800])
    event = EVENT
    for n in range(1, 50):
        decision = ended(event, status)
        assert (decision.fate, decision.event.failures, decision.event.deferrals) == (Fate.LATER, 0, n)
        event = decision.event


@pytest.mark.parametrize("status", [RunStatus.USER_EXCEPTION, RunStatus.CONCURRENCY])
def test_nothing_is_tried_again_that_would_be_too_old_then(status: RunStatus) -> None:
    last_ms = NOW + 3_600_000 - MINUTE
    assert ended(EVENT, status, now_ms=last_ms).fate is Fate.LATER
    assert ended(EVENT, status, now_ms=last_ms + 1).fate is Fate.FAILED


def test_before_a_run_only_age_and_termination_count() -> None:
    assert before(EVENT, POLICY, NOW + 3_600_000, is_terminated=False) is None
    assert before(EVENT, POLICY, NOW + 3_600_001, is_terminated=False) == Decision(Fate.FAILED, EVENT)
    assert before(EVENT, POLICY, NOW + 9_600_000, is_terminated=True) == Decision(Fate.ABORTED, EVENT)


@pytest.mark.parametrize("status", [RunStatus.CANCELLED, RunStatus.USER_EXCEPTION, RunStatus.INTERNAL])
def test_a_run_that_was_to_end_and_did_not_end_well_is_aborted(status: RunStatus) -> None:
    assert ended(EVENT, status, is_terminated=True, quick=0).fate is Fate.ABORTED


def test_a_policy_that_was_changed_counts_for_events_that_wait() -> None:
    waiting = replace(EVENT, failures=1)
    assert ended(waiting, RunStatus.USER_EXCEPTION, policy=EventPolicy(0, 3_600)).fate is Fate.FAILED
    assert ended(waiting, RunStatus.USER_EXCEPTION, policy=EventPolicy(2, 60), now_ms=NOW + 1).fate is Fate.FAILED
