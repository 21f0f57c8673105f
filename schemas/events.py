"""What stands in the topics of asynchronous events (`penstock.events.*`), as frozen dataclasses. Evolution as in `schemas.records`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.ids import FunctionKey


class EventState(StrEnum):
    """What became of an event, as SCF names it."""

    RUNNING = "RUNNING"
    """Accepted; it runs, or waits for a run."""
    FINISHED = "FINISHED"
    ABORTED = "ABORTED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class AsyncEvent:
    """One event that a function is to run for, whoever brought it; key: its request id.

    `version` runs, which `qualifier` was when it was accepted. `failures` are runs that the function failed, `deferrals` those that the platform
    did; `due_unix_ms` is when it may run next.
    """

    request_id: str
    appid: str
    uin: str
    namespace: str
    function: str
    qualifier: str
    version: str
    event: bytes
    accepted_unix_ms: int
    due_unix_ms: int = 0
    failures: int = 0
    deferrals: int = 0

    @property
    def key(self) -> FunctionKey:
        """The function."""
        return FunctionKey(self.appid, self.namespace, self.function)


@dataclass(frozen=True, slots=True)
class EventStatus:
    """What became of an event; compacted topic penstock.events.status.v1 by request id, in its function's partition, kept 72 h.

    `key` is the function's; `status_code` the run status of the last run, 0 when there was none. `ended_unix_ms` is 0 while it runs.
    """

    request_id: str
    key: str
    qualifier: str
    state: str
    accepted_unix_ms: int
    unix_ms: int
    status_code: int = 0
    ended_unix_ms: int = 0
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Termination:
    """Somebody's wish to end an event; topic penstock.events.terminations.v1, keyed by request id."""

    request_id: str
    key: str
    uin: str
    unix_ms: int
