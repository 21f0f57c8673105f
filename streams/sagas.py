"""Sagas: which steps a change of a resource takes, and what follows when one is answered. Pure: no Faust, no clock, no I/O.

A workflow is data: a list of steps, each an operation of one sub-resource module. They go one by one; a saga remembers which is out. The
answer to any other step (an older saga's, a step answered before) is stale and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from schemas.records import Command, FunctionConfig, StatusReason, StepCommand, StepResult


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of one sub-resource module."""

    module: str
    operation: str


CHECK_CODE: Final = Step("code", "check")

WORKFLOWS: Final[Mapping[str, tuple[Step, ...]]] = {
    "create-function": (CHECK_CODE,),
    "update-function": (CHECK_CODE,),
}


@dataclass(frozen=True, slots=True)
class Saga:
    """A running workflow. `saga_id` is the id of its command; `position` the step that is out, since `unix_ms`."""

    saga_id: str
    workflow: str
    position: int
    unix_ms: int
    config: FunctionConfig | None = None

    @property
    def step_id(self) -> str:
        """Idempotency key of the step that is out."""
        return f"{self.saga_id}/{self.position}"


@dataclass(frozen=True, slots=True)
class Ended:
    """A saga is over; no reasons means that it succeeded."""

    reasons: tuple[StatusReason, ...] = ()


def begin(command: Command) -> Saga:
    """The saga of a command whose kind is in `WORKFLOWS`, with its first step out."""
    return Saga(command.command_id, command.kind, 0, command.unix_ms, command.config)


def step_out(saga: Saga, key: str) -> StepCommand:
    """The step that is out, as its module gets it: equal each time it is asked."""
    step = WORKFLOWS[saga.workflow][saga.position]
    return StepCommand(saga.step_id, saga.saga_id, step.module, step.operation, key, saga.unix_ms, saga.config)


def advance(saga: Saga, result: StepResult) -> Saga | Ended | None:
    """What a step's answer leads to: the saga with its next step out, its end, or None when the answer is stale."""
    if (result.saga_id, result.step_id) != (saga.saga_id, saga.step_id):
        return None
    if result.reasons:
        return Ended(result.reasons)
    if saga.position + 1 == len(WORKFLOWS[saga.workflow]):
        return Ended()
    return replace(saga, position=saga.position + 1, unix_ms=result.unix_ms)
