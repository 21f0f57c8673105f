"""What to say of a trigger's partitions: where each stands, and why it does not move. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ingest.lanes.lanes import LaneSet
from ingest.lanes.policy import WAITING_FOR
from ingest.lanes.run import Owned, Run, Trouble
from schemas.records import LanePartition
from schemas.runstatus import ERROR_NAMES

_NAMES: Final = {int(status): name for status, name in ERROR_NAMES.items()}
_MESSAGE_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Around:
    """What the edge knows beside the lanes; each empty when all is well."""

    broker_error: str = ""
    dead_letter_error: str = ""
    is_held: bool = False
    """The consumer hands nothing over, for too much is buffered."""


def partition_states(lanes: LaneSet, around: Around) -> tuple[LanePartition, ...]:
    """One row for each partition that is ours, in order."""
    troubled: dict[int, list[Run]] = {}
    for run in lanes.troubled:
        if lanes.owned.get(run.partition) is run.lane.owner:
            troubled.setdefault(run.partition, []).append(run)
    return tuple(
        _state(lanes, owner, troubled.get(partition, ()), around) for partition, owner in sorted(lanes.owned.items())
    )


def _state(lanes: LaneSet, owner: Owned, troubled: Iterable[Run], around: Around) -> LanePartition:
    queued = sum(len(lane.queue) for lane in owner.lanes.values())
    worst = min(troubled, key=lambda run: run.records[0].offset, default=None)
    if owner.leaving:
        why = "handing the partition over"
    elif worst is not None and worst.trouble is not None:
        why = _of_trouble(worst, worst.trouble, lanes.policy.tries, around)
    elif around.broker_error:
        why = f"broker: {around.broker_error}"
    elif not owner.out and queued and lanes.in_flight >= lanes.policy.concurrency:
        why = f"waiting for concurrency: other partitions use the trigger's {lanes.policy.concurrency}"
    elif not owner.out and not queued and around.is_held:
        why = "back-pressure: records of other partitions fill the buffer"
    else:
        why = ""
    return LanePartition(
        partition=owner.partition,
        epoch=owner.epoch,
        next_offset=owner.tracker.committable,
        in_flight=owner.out,
        queued=queued,
        retrying=sum(1 for _ in troubled),
        parked=0,
        why=why,
    )


def _of_trouble(run: Run, trouble: Trouble, tries: int, around: Around) -> str:
    first, last = run.records[0].offset, run.records[-1].offset
    if trouble.condemned and trouble.waits:
        return (
            f"dead-letter topic unavailable: {around.dead_letter_error or 'not acknowledged'}; record at offset {first}"
        )
    if trouble.status in WAITING_FOR:
        said = _message(trouble.error)
        return f"{WAITING_FOR[trouble.status]}: {said}" if said else WAITING_FOR[trouble.status]
    what = f"poison record at offset {first}" if first == last else f"failing batch at offsets {first}-{last}"
    name = _NAMES.get(trouble.status, str(trouble.status))
    return f"{what}, attempt {trouble.failures} of {max(tries, trouble.failures)}: {name}"


def _message(error: bytes) -> str:
    try:
        return str(json.loads(error)["errorMessage"])[:_MESSAGE_CHARS]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
