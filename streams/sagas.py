"""Sagas: which steps a change of a resource takes, and what follows from each answer, silence or change of mind. Pure: no Faust, no clock.

A workflow is data (`WORKFLOWS`): a list of steps, each an operation of one sub-resource module, with the operation that undoes it. Steps go one by one. What
can be tried again is, with back-off, until the step's deadline; a step that failed for good has all before it undone in reverse order. All that
a saga was given and what it decided stands in its events, so that a history can be run through `take` again (`streams.replay`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from schemas.records import (
    Command,
    FunctionConfig,
    StatusReason,
    StepCommand,
    StepResult,
    TriggerRecord,
    WorkflowEvent,
    WorkflowRecord,
)

ANSWER_MS: Final = 30_000
"""How long a module may be silent before its step is sent again; doubles with each attempt."""
ANSWER_MAX_MS: Final = 240_000
REST_MS: Final = 200
"""Pause after the first failed attempt; doubles with each."""
REST_MAX_MS: Final = 30_000
STEP_MS: Final = 900_000
"""What a step may take with all its attempts."""
BIND_MS: Final = 2_500
"""Somebody waits for the answer."""
UNBIND_MS: Final = 600_000
"""Then a consumer group is left to its cluster, which forgets it some days after its last member."""
EVENTS_KEPT: Final = 200
Reasons = tuple[StatusReason, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of one sub-resource module, and the one that undoes it (empty: there is nothing to undo)."""

    module: str
    operation: str
    undo: str = ""


@dataclass(frozen=True, slots=True)
class Workflow:
    """Steps in their order, each with `step_ms` for all its attempts (what undoes one has `STEP_MS`). One that does not give up tries a step again for ever, and ends at a
    failure without undoing anything.
    """

    steps: tuple[Step, ...]
    gives_up: bool = True
    step_ms: int = STEP_MS


STORE_CODE: Final = Step("code", "store")
CHECK_CODE: Final = Step("code", "check")
ATTACH: Final = Step("network", "attach", undo="detach")
PREPARE: Final = Step("compute", "prepare")
PUBLISH: Final = Step("route", "publish")
BIND: Final = Step("trigger", "bind", undo="unbind")
UNBIND: Final = Step("trigger", "unbind")
_BRING_UP: Final = (STORE_CODE, CHECK_CODE, ATTACH, PREPARE, PUBLISH)

WORKFLOWS: Final[Mapping[str, Workflow]] = {
    "create-function": Workflow(_BRING_UP),
    "update-function": Workflow(_BRING_UP),
    "delete-function": Workflow(
        (Step("route", "withdraw"), Step("compute", "release"), Step("network", "detach")), gives_up=False
    ),
    "create-trigger": Workflow((BIND,), step_ms=BIND_MS),
    "delete-trigger": Workflow((UNBIND,), step_ms=UNBIND_MS),
}


class Kind(StrEnum):
    """What a saga can be given."""

    BEGIN = "begin"
    DONE = "done"
    FAILED = "failed"
    RETRYABLE = "retryable"
    TIMER = "timer"
    ABANDON = "abandon"
    LEAVE = "leave"
    """End as it is: what is not done, or not undone, is left."""


@dataclass(frozen=True, slots=True)
class Given:
    """Something that a saga is told. `step_id` and `attempt` are of the step that an answer is to."""

    kind: Kind
    unix_ms: int
    step_id: str = ""
    attempt: int = 0
    reasons: Reasons = ()


@dataclass(frozen=True, slots=True)
class Saga:
    """A running workflow. `saga_id` is the id of its command; `position` the step that is out, first sent at `unix_ms`.

    `resting`: nothing is out until `due_ms`, when the step goes out again; otherwise it does when there is no answer by then. `undoing`: the
    step that is out is the one that undoes `position`, because of `reasons`. `left_out` events did not fit.
    """

    saga_id: str
    workflow: str
    position: int
    unix_ms: int
    config: FunctionConfig | None = None
    attempt: int = 1
    due_ms: int = 0
    resting: bool = False
    undoing: bool = False
    reasons: Reasons = ()
    began_ms: int = 0
    events: tuple[WorkflowEvent, ...] = ()
    left_out: int = 0
    trigger: TriggerRecord | None = None

    @property
    def step_id(self) -> str:
        """Idempotency key of the step that is out: the same for each attempt."""
        return f"{self.saga_id}/{self.position}" + ("/undo" if self.undoing else "")

    @property
    def step(self) -> Step:
        """The step that is out, or that is being undone."""
        return WORKFLOWS[self.workflow].steps[self.position]

    @property
    def operation(self) -> str:
        """What the module is to do."""
        return self.step.undo if self.undoing else self.step.operation


@dataclass(frozen=True, slots=True)
class Ended:
    """A saga is over; no reasons means that it succeeded."""

    saga: Saga
    reasons: Reasons = ()


def begin(command: Command, config: FunctionConfig | None = None, trigger: TriggerRecord | None = None) -> Saga:
    """The saga of a command whose kind is in `WORKFLOWS`, with its first step out."""
    return start(command.command_id, command.kind, command.unix_ms, config, trigger)


def start(
    saga_id: str,
    workflow: str,
    now_ms: int,
    config: FunctionConfig | None = None,
    trigger: TriggerRecord | None = None,
) -> Saga:
    """A saga with its first step out."""
    saga = Saga(saga_id, workflow, 0, now_ms, config, began_ms=now_ms, trigger=trigger)
    return _noted(_sent(saga, now_ms), Given(Kind.BEGIN, now_ms))


def step_out(saga: Saga, key: str) -> StepCommand:
    """The step that is out, as its module gets it: equal each time it is asked."""
    return StepCommand(
        saga.step_id,
        saga.saga_id,
        saga.step.module,
        saga.operation,
        key,
        saga.unix_ms,
        saga.config,
        saga.attempt,
        saga.trigger,
    )


def given_by(result: StepResult) -> Given:
    """A module's answer, as a saga takes it."""
    kind = Kind.DONE if not result.reasons else Kind.RETRYABLE if result.retryable else Kind.FAILED
    return Given(kind, result.unix_ms, result.step_id, result.attempt, result.reasons)


def take(saga: Saga, given: Given) -> Saga | Ended | None:
    """What follows: the saga as it goes on, its end, or None when this changes nothing (a stale answer, a timer before its time)."""
    then = _decide(saga, given)
    if then is None:
        return None
    return _noted(then, given) if isinstance(then, Saga) else replace(then, saga=_noted(then.saga, given, then))


def history(saga: Saga, key: str, ended: Ended | None = None) -> WorkflowRecord:
    """What is known of a saga, from its begin to now."""
    last_ms = saga.events[-1].unix_ms if saga.events else saga.began_ms
    return WorkflowRecord(
        seq=len(saga.events) + saga.left_out,
        saga_id=saga.saga_id,
        key=key,
        workflow=saga.workflow,
        state=_state(saga, ended),
        began_unix_ms=saga.began_ms,
        unix_ms=last_ms,
        events=saga.events,
        left_out=saga.left_out,
    )


def _state(saga: Saga, ended: Ended | None) -> str:
    if ended is not None:
        return "failed" if ended.reasons else "succeeded"
    return "undoing" if saga.undoing else "running"


def _decide(saga: Saga, given: Given) -> Saga | Ended | None:
    if given.kind is Kind.TIMER:
        return _timer(saga, given.unix_ms)
    if given.kind is Kind.ABANDON:
        return None if saga.undoing else _undo(saga, saga.position, given)
    if given.kind is Kind.LEAVE:
        return Ended(saga, saga.reasons + given.reasons)
    if given.step_id != saga.step_id:
        return None
    if given.kind is Kind.DONE:
        return _go_on(saga, given.unix_ms)
    if given.kind is Kind.FAILED and not saga.undoing:
        if not WORKFLOWS[saga.workflow].gives_up:
            return Ended(saga, given.reasons)
        # An earlier attempt, whose answer did not come, may have had its effect.
        return _undo(saga, saga.position if saga.attempt > 1 else saga.position - 1, given)
    if given.attempt != saga.attempt or saga.resting:
        return None
    if _is_late(saga, given.unix_ms):
        return _give_up(saga, given)
    pause_ms = min(REST_MS << min(saga.attempt - 1, 16), REST_MAX_MS)
    return replace(saga, resting=True, due_ms=given.unix_ms + pause_ms)


def _timer(saga: Saga, now_ms: int) -> Saga | Ended | None:
    if now_ms < saga.due_ms:
        return None
    if not saga.resting and _is_late(saga, now_ms):
        silent_s = (now_ms - saga.unix_ms) // 1000
        why = f"module {saga.step.module} has not answered to {saga.operation} for {silent_s} s"
        return _give_up(saga, Given(Kind.TIMER, now_ms, reasons=(StatusReason("ResourceUnavailable", why),)))
    return _sent(saga, now_ms, attempt=saga.attempt + 1)


def _is_late(saga: Saga, now_ms: int) -> bool:
    workflow = WORKFLOWS[saga.workflow]
    return workflow.gives_up and now_ms - saga.unix_ms >= (STEP_MS if saga.undoing else workflow.step_ms)


def _give_up(saga: Saga, given: Given) -> Saga | Ended:
    """The step's time is over; when it was to undo something, that stays, and the others before it are undone all the same."""
    if not saga.undoing:
        return _undo(saga, saga.position, given)
    return _next_undo(replace(saga, reasons=saga.reasons + given.reasons), saga.position - 1, given.unix_ms)


def _go_on(saga: Saga, now_ms: int) -> Saga | Ended:
    if saga.undoing:
        return _next_undo(saga, saga.position - 1, now_ms)
    if saga.position + 1 == len(WORKFLOWS[saga.workflow].steps):
        return Ended(saga)
    return _sent(replace(saga, position=saga.position + 1), now_ms)


def _undo(saga: Saga, last: int, given: Given) -> Saga | Ended:
    """Undo the steps up to `last`. A step without an answer may have had its effect: its module takes the undo after it."""
    return _next_undo(replace(saga, undoing=True, reasons=given.reasons), last, given.unix_ms)


def _next_undo(saga: Saga, position: int, now_ms: int) -> Saga | Ended:
    steps = WORKFLOWS[saga.workflow].steps
    while position >= 0 and not steps[position].undo:
        position -= 1
    return Ended(saga, saga.reasons) if position < 0 else _sent(replace(saga, position=position), now_ms)


def _sent(saga: Saga, now_ms: int, *, attempt: int = 1) -> Saga:
    due_ms = now_ms + min(ANSWER_MS << min(attempt - 1, 16), ANSWER_MAX_MS)
    since_ms = now_ms if attempt == 1 else saga.unix_ms
    return replace(saga, attempt=attempt, unix_ms=since_ms, resting=False, due_ms=due_ms)


def _noted(saga: Saga, given: Given, ended: Ended | None = None) -> Saga:
    """The saga with one event more. Retries of very long sagas are counted, not kept."""
    event = WorkflowEvent(given.unix_ms, given.kind, "", given.step_id, given.attempt, given.reasons)
    if ended is not None:
        event = replace(event, decided=_state(saga, ended), reasons=given.reasons or ended.reasons)
    elif saga.resting:
        event = replace(event, decided="rest", due_unix_ms=saga.due_ms)
    else:
        event = replace(
            event,
            decided="send",
            module=saga.step.module,
            operation=saga.operation,
            sent_step_id=saga.step_id,
            sent_attempt=saga.attempt,
            due_unix_ms=saga.due_ms,
        )
    if len(saga.events) >= EVENTS_KEPT and given.kind in (Kind.TIMER, Kind.RETRYABLE) and ended is None:
        return replace(saga, left_out=saga.left_out + 1)
    return replace(saga, events=(*saga.events, event))
