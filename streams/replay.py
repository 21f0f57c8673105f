"""Replay of a workflow: what stands in its record, run through the same core again. Pure: no Faust, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

from schemas.records import WorkflowEvent, WorkflowRecord
from streams import sagas


@dataclass(frozen=True, slots=True)
class Replayed:
    """One recorded event, and what the core decides on it now; they are equal unless the core or its workflows have changed."""

    recorded: WorkflowEvent
    decided: WorkflowEvent

    @property
    def is_same(self) -> bool:
        """True when the same decision comes out."""
        return self.recorded == self.decided


def replay(record: WorkflowRecord) -> list[Replayed]:
    """Every event of a record, decided again.

    Raises:
        ValueError: the record can't be replayed: it is not whole, or its workflow is not known here.
    """
    if record.left_out or not record.events:
        raise ValueError(f"{record.left_out} events of it were not kept, so it can't be replayed")
    if record.workflow not in sagas.WORKFLOWS:
        raise ValueError(f"this release knows no workflow {record.workflow!r}")
    first, *rest = record.events
    saga = sagas.start(record.saga_id, record.workflow, first.unix_ms)
    made = [Replayed(first, saga.events[-1])]
    for event in rest:
        given = sagas.Given(sagas.Kind(event.given), event.unix_ms, event.step_id, event.attempt, event.reasons)
        then = sagas.take(saga, given)
        if then is None:  # the core takes no notice of this now
            made.append(Replayed(event, replace(event, decided="nothing")))
            break
        saga = then if isinstance(then, sagas.Saga) else then.saga
        made.append(Replayed(event, saga.events[-1]))
    return made
