"""Which host runs an invocation: a pure choice over what the gateway knows of its agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostView:
    """One connected agent as the chooser sees it.

    `in_flight` invocations sent and not answered by this gateway, over all functions; `window` the most it accepts of this gateway;
    `warm` whether it ran this function within the keep-alive.
    """

    index: int
    in_flight: int
    window: int
    warm: bool


def place(hosts: Sequence[HostView]) -> int | None:
    """Index of the host to send to: a warm one with room before a cold one, then the least loaded; None when all are full.

    Pure and total. O(len(hosts)).
    """
    best: HostView | None = None
    for host in hosts:
        if host.in_flight >= host.window:
            continue
        if best is None or (not host.warm, host.in_flight, host.index) < (not best.warm, best.in_flight, best.index):
            best = host
    return None if best is None else best.index
