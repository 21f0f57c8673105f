"""How a trigger's lanes behave: order, batches, retries; and whose fault a failed run is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from schemas.runstatus import RunStatus


class Ordering(StrEnum):
    """What is kept in order. `KafkaSource.ordering` spells them."""

    KEY = "key"
    """Records of one partition with the same key. Records without a key have no order."""
    PARTITION = "partition"
    NONE = "none"


WAITING_FOR: Final[Mapping[int, str]] = {
    RunStatus.START_RATE: "waiting for a worker: too many starts at once",
    RunStatus.CONCURRENCY: "waiting for concurrency: the limit is reached",
    RunStatus.NO_FUNCTION: "function not found",
    RunStatus.FUNCTION_STATE: "function not active",
    RunStatus.NO_QUALIFIER: "function version or alias not found",
    RunStatus.NO_RESOURCES: "waiting for a host",
    RunStatus.CANCELLED: "waiting for a host: the run was cancelled",
    RunStatus.INTERNAL: "waiting for the platform: internal error",
}
"""Outcomes that are not the record's fault, each with what `why` says of it. Such a run is tried again without end and without counting:
what `schemas.runstatus.blames_platform` names, and a function that is missing or being redeployed, for else a bad minute of an operator
would send a whole topic to the dead letters."""

RETRY_FIRST_MS: Final = 100.0
WAIT_FIRST_MS: Final = 50.0
DELAY_LIMIT_MS: Final = 2_000.0
_JITTER: Final = 0.2


@dataclass(frozen=True, slots=True)
class LanePolicy:
    """A trigger's choices, all from its `KafkaSource`.

    `concurrency` invocations at once over the trigger; `batch` records at most in one; `retries` after the first try.
    """

    ordering: Ordering = Ordering.KEY
    concurrency: int = 32
    batch: int = 1
    retries: int = 3

    @property
    def tries(self) -> int:
        """Runs in all that a record's own failures may cost."""
        return self.retries + 1


def retry_delay_ms(failures: int, jitter: Callable[[], float]) -> float:
    """How long a lane waits after its record's run failed for the `failures`-th time: 100 ms × 2, ± 20 %, at most 2 s.

    Args:
        failures: >= 1.
        jitter: uniform in [0, 1); it spreads the retries of records that failed together.
    """
    base = RETRY_FIRST_MS * 2.0 ** min(failures - 1, 16)
    return min(base * (1 - _JITTER + 2 * _JITTER * jitter()), DELAY_LIMIT_MS)


def wait_delay_ms(waits: int) -> float:
    """How long a lane waits after the platform failed it for the `waits`-th time in a row: 50 ms × 2, at most 2 s."""
    return min(WAIT_FIRST_MS * 2.0 ** min(waits - 1, 16), DELAY_LIMIT_MS)
