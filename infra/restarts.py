"""When a supervised process is started again: pure decisions, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EXIT_CONFIG: Final = 78
"""Exit status (EX_CONFIG of sysexits.h) with which a process says that starting it again would not help."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Waits of `first_s`, then `factor` times as long each, at most `limit_s`; a life that was ready and lasted `steady_s` begins the row anew."""

    first_s: float = 0.1
    factor: float = 2.0
    limit_s: float = 10.0
    steady_s: float = 30.0

    def delay_s(self, streak: int) -> float:
        """The wait after `streak` short lives in a row."""
        delay = self.first_s
        for _ in range(streak):  # not a power: that overflows in a long row
            if delay >= self.limit_s:
                break
            delay *= self.factor
        return min(delay, self.limit_s)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a life ended. `code` is as in subprocess (minus the signal's number); None means that it could not be started."""

    code: int | None
    lived_s: float
    reason: str = ""
    was_ready: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `delay_s`; `streak` is to be passed to the next decision."""

    delay_s: float
    streak: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start it again."""

    reason: str


def after_exit(policy: RestartPolicy, ended: Exit, *, streak: int) -> Restart | GiveUp:
    """What follows an end that nobody asked for.

    Args:
        policy: the waits.
        ended: the life that just ended.
        streak: from the decision before, 0 at first.
    """
    if ended.code == EXIT_CONFIG:
        return GiveUp("a setting or this machine must change before it can run")
    if ended.was_ready and ended.lived_s >= policy.steady_s:
        streak = 0
    return Restart(policy.delay_s(streak), streak + 1)
