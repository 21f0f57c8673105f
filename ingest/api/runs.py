"""Single runs of a function, put together from the platform's own lines of its log (START, ERROR, END, REPORT). Pure.

What a function prints is never taken for one of these: only lines of the stream `platform` are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from schemas.records import LogLine
from schemas.runstatus import RunStatus

_ERROR: Final = re.compile(r"ERROR RequestId: \S+ Result: (.*)\Z", re.DOTALL)
_REPORT: Final = re.compile(
    r"REPORT RequestId: \S+ Duration: ([0-9]{1,12}) ms Billed Duration: ([0-9]{1,12}) ms"
    r" Memory Size: [0-9]{1,9} MB Max Memory Used: ([0-9]{1,9}) MB"
)
_STATUS: Final = re.compile(r'"statusCode": ?([0-9]{3})\b')


@dataclass(slots=True)
class Run:
    """One run. `status` is 0 while it lasts; `attempt` counts from 0 among the runs of its request that were seen."""

    request_id: str
    attempt: int
    started_unix_ms: int
    status: int = 0
    error: str = ""
    duration_ms: int = 0
    billed_ms: int = 0
    memory_mib: int = 0
    lines: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RunBuilder:
    """Takes a function's lines in arrival order. Lines of a run whose START was not among them are left out."""

    runs: list[Run] = field(default_factory=list)
    _newest: dict[str, Run] = field(default_factory=dict)

    def take(self, lines: Iterable[LogLine]) -> None:
        """The next lines."""
        for line in lines:
            self._take(line)

    def _take(self, line: LogLine) -> None:
        is_platform = line.stream == "platform"
        run = self._newest.get(line.request_id)
        if is_platform and line.line.startswith("START RequestId: "):
            attempt = 0 if run is None else run.attempt + 1
            run = self._newest[line.request_id] = Run(line.request_id, attempt, line.unix_ms)
            self.runs.append(run)
        if run is None:
            return
        run.lines.append(line.line)
        if not is_platform:
            return
        if (found := _ERROR.match(line.line)) is not None:
            run.error, run.status = found[1], status_of(found[1])
        elif (found := _REPORT.match(line.line)) is not None:
            run.status = run.status or RunStatus.OK
            run.duration_ms, run.billed_ms, run.memory_mib = map(int, found.groups())


def status_of(error: str) -> int:
    """The status in a failed run's error JSON, which may have been cut; 430 when it has none."""
    try:
        body = json.loads(error)
    except (ValueError, RecursionError):
        found = _STATUS.search(error)
        return int(found[1]) if found is not None else int(RunStatus.USER_EXCEPTION)
    status = body.get("statusCode") if isinstance(body, dict) else None
    if isinstance(status, int) and not isinstance(status, bool) and 400 <= status <= 599:
        return status
    return int(RunStatus.USER_EXCEPTION)


def passes(run: Run, wanted: str) -> bool:
    """Whether a run passes SCF's log filter by RetCode; an empty one lets all pass, any other those that ended."""
    if not wanted:
        return True
    if wanted == "is0":
        return run.status == RunStatus.OK
    if wanted == "not0":
        return run.status not in (0, RunStatus.OK)
    return run.status in _BY_FILTER[wanted]


_BY_FILTER: Final = {
    "TimeLimitExceeded": (RunStatus.TIMEOUT,),
    "ResourceLimitExceeded": (RunStatus.MEMORY, RunStatus.CONCURRENCY),
    "UserCodeException": (RunStatus.USER_EXCEPTION, RunStatus.PROCESS_EXIT, RunStatus.USER_CODE),
}
FILTERS: Final = ("", "not0", "is0", *_BY_FILTER)
