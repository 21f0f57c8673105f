"""What becomes of an asynchronous event, before a run and after it (SCF.md 4.3). Pure.

A function's own failures are tried again `EventPolicy.retries` times, a minute apart. What the platform failed does not count: it is tried again at once a
few times, then once a minute. Nothing is tried once it is older than `EventPolicy.ttl_s`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from schemas.events import AsyncEvent
from schemas.records import EventPolicy
from schemas.runstatus import RunStatus, blames_platform

QUICK: Final = 5
"""Platform failures in a row that are tried again at once, before the event goes to wait."""
QUICK_FIRST_MS: Final = 50
AT_LIMIT: Final = 60
"""The same for runs that a limit of concurrency did not let in, each of which has waited its turn for a second."""
AT_LIMIT_MS: Final = 200


class Fate(StrEnum):
    """Where an event goes on."""

    FINISHED = "finished"
    FAILED = "failed"
    ABORTED = "aborted"
    SOON = "soon"
    """Again here, after `Decision.delay_ms`."""
    LATER = "later"
    """Again from the topic of those that wait, when its `due_unix_ms` has come."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`event` is as it goes on."""

    fate: Fate
    event: AsyncEvent
    delay_ms: int = 0


def before(event: AsyncEvent, policy: EventPolicy, now_ms: int, *, is_terminated: bool) -> Decision | None:
    """What becomes of an event that is not run any more; None when it is to run."""
    if is_terminated:
        return Decision(Fate.ABORTED, event)
    return Decision(Fate.FAILED, event) if _is_expired(event, policy, now_ms) else None


def after(
    event: AsyncEvent,
    status: int,
    policy: EventPolicy,
    now_ms: int,
    *,
    is_terminated: bool,
    quick: int,
    retry_ms: int,
) -> Decision:
    """What follows from a run that ended.

    Args:
        event: as it was run.
        status: the run's RunStatus.
        policy: its function's, as of now.
        now_ms: unix ms.
        is_terminated: somebody has asked for its end.
        quick: platform failures that were tried again at once before this one.
        retry_ms: the pause of those that wait.
    """
    if status == RunStatus.OK:
        return Decision(Fate.FINISHED, event)
    if is_terminated:
        return Decision(Fate.ABORTED, event)
    if _is_platforms(status):
        if status == RunStatus.CONCURRENCY and quick < AT_LIMIT:
            return Decision(Fate.SOON, event, AT_LIMIT_MS)
        if status != RunStatus.CONCURRENCY and quick < QUICK:
            return Decision(Fate.SOON, event, QUICK_FIRST_MS << quick)
        then = replace(event, deferrals=event.deferrals + 1, due_unix_ms=now_ms + retry_ms)
        return Decision(Fate.FAILED if _is_expired(event, policy, then.due_unix_ms) else Fate.LATER, then)
    then = replace(event, failures=event.failures + 1, due_unix_ms=now_ms + retry_ms)
    is_over = status in _FOR_GOOD or then.failures > policy.retries or _is_expired(event, policy, then.due_unix_ms)
    return Decision(Fate.FAILED if is_over else Fate.LATER, then)


_FOR_GOOD: Final = frozenset({RunStatus.NO_FUNCTION, RunStatus.NO_QUALIFIER})
"""The function or version is gone."""


def _is_platforms(status: int) -> bool:
    return status == RunStatus.FUNCTION_STATE or blames_platform(RunStatus(status))


def _is_expired(event: AsyncEvent, policy: EventPolicy, now_ms: int) -> bool:
    return now_ms > event.accepted_unix_ms + policy.ttl_s * 1000
