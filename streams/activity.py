"""What a function's windows add up to: totals, rates of the last ten seconds, what runs now. Pure: no Faust, no I/O; times are parameters.

A window is absolute for its gateway, term and number: one that was taken in, or an older one, changes nothing, so redelivery does no harm.
State is bounded: panes of a second for the sliding ten seconds, and the newest gauges of `GATEWAYS` gateways at most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from schemas.records import LEVELS, FunctionActivity, InvocationWindow

PANE_MS: Final = 1_000
SPAN_PANES: Final = 10
SPAN_MS: Final = SPAN_PANES * PANE_MS
GAUGE_STALE_MS: Final = 10_000
"""A gateway that said nothing for so long counts as gone, and what it had in flight with it."""
FORGET_AFTER_MS: Final = 3_600_000
GATEWAYS: Final = 64
"""Gateways remembered per function; beyond that the one that was silent longest is forgotten."""


@dataclass(frozen=True, slots=True)
class Pane:
    """Counts of one second of Unix time; sums in microseconds."""

    second: int
    arrivals: int = 0
    completed: int = 0
    failed: int = 0
    duration_sum_us: int = 0
    duration_max_us: int = 0
    wait_sum_us: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest window of one gateway: its number, and its gauges."""

    gateway: str
    term: int
    window: int
    unix_ms: int
    in_flight: int
    queued: int


@dataclass(frozen=True, slots=True)
class Activity:
    """State of one function; counts are over all time. `windows` counts those taken in: it grows with every change."""

    key: str
    windows: int = 0
    arrivals: int = 0
    completed: int = 0
    failed: int = 0
    throttled: int = 0
    retried: int = 0
    dead: int = 0
    cold: tuple[int, ...] = (0,) * LEVELS
    panes: tuple[Pane, ...] = ()
    gateways: tuple[Heard, ...] = ()


def take(state: Activity, window: InvocationWindow, now_ms: int) -> Activity:
    """Fold one window in; the state itself when it was in already.

    `now_ms` only bounds how far ahead a gateway's clock can put its counts.
    """
    last = next((heard for heard in state.gateways if heard.gateway == window.gateway), None)
    if last is not None and (window.term, window.window) <= (last.term, last.window):
        return state
    at_ms = min(window.unix_ms, now_ms)
    heard = Heard(window.gateway, window.term, window.window, at_ms, window.in_flight, window.queued)
    others = sorted((h for h in state.gateways if h is not last), key=lambda h: (h.unix_ms, h.gateway))
    return replace(
        state,
        windows=state.windows + 1,
        arrivals=state.arrivals + window.arrivals,
        completed=state.completed + window.completed,
        failed=state.failed + window.failed,
        throttled=state.throttled + window.throttled,
        retried=state.retried + window.retried,
        dead=state.dead + window.dead,
        cold=tuple(a + b for a, b in zip(_levels(state.cold), _levels(window.cold), strict=True)),
        panes=_panes(state.panes, window, (at_ms - window.span_ms // 2) // PANE_MS),
        gateways=(*others[-(GATEWAYS - 1) :], heard),
    )


def _levels(cold: tuple[int, ...]) -> tuple[int, ...]:
    return (*cold, *(0,) * LEVELS)[:LEVELS]


def _panes(panes: tuple[Pane, ...], window: InvocationWindow, second: int) -> tuple[Pane, ...]:
    by_second = {pane.second: pane for pane in panes}
    pane = by_second.get(second, Pane(second))
    by_second[second] = Pane(
        second,
        pane.arrivals + window.arrivals,
        pane.completed + window.completed,
        pane.failed + window.failed,
        pane.duration_sum_us + window.duration_sum_us,
        max(pane.duration_max_us, window.duration_max_us),
        pane.wait_sum_us + window.wait_sum_us,
    )
    newest = max(by_second)
    return tuple(by_second[s] for s in sorted(by_second) if s >= newest - SPAN_PANES)


def view(state: Activity, now_ms: int, *, last_seq: int = 0) -> FunctionActivity:
    """What is published of a function at a time.

    Rates slide over the ten seconds before `now_ms`; durations are those of the last ten seconds in which the function ran; gauges are
    of gateways heard of within ten seconds. `seq` is the time, so that it also grows over restarts, and always above `last_seq`.
    """
    live = [heard for heard in state.gateways if now_ms - heard.unix_ms < GAUGE_STALE_MS]
    finished = max(1, sum(pane.completed + pane.failed for pane in state.panes))
    return FunctionActivity(
        seq=max(last_seq + 1, now_ms),
        key=state.key,
        unix_ms=now_ms,
        arrivals=state.arrivals,
        completed=state.completed,
        failed=state.failed,
        throttled=state.throttled,
        retried=state.retried,
        dead=state.dead,
        in_flight=sum(heard.in_flight for heard in live),
        queued=sum(heard.queued for heard in live),
        arrivals_per_s=_rate([(pane.second, pane.arrivals) for pane in state.panes], now_ms),
        completed_per_s=_rate([(pane.second, pane.completed) for pane in state.panes], now_ms),
        failed_per_s=_rate([(pane.second, pane.failed) for pane in state.panes], now_ms),
        duration_mean_us=sum(pane.duration_sum_us for pane in state.panes) // finished,
        duration_max_us=max((pane.duration_max_us for pane in state.panes), default=0),
        wait_mean_us=sum(pane.wait_sum_us for pane in state.panes) // finished,
        cold=_levels(state.cold),
    )


def _rate(counts: list[tuple[int, int]], now_ms: int) -> float:
    """Per second over the last ten; the pane that is partly out of them counts by the part that is in."""
    total = 0.0
    for second, count in counts:
        inside_ms = second * PANE_MS + PANE_MS - (now_ms - SPAN_MS)
        total += count * min(max(inside_ms / PANE_MS, 0.0), 1.0)
    return total * 1000 / SPAN_MS


def is_forgettable(state: Activity, now_ms: int) -> bool:
    """True when no gateway spoke of the function for an hour; whether it still exists is for the caller to say."""
    return all(now_ms - heard.unix_ms > FORGET_AFTER_MS for heard in state.gateways)


def is_at_rest(shown: FunctionActivity) -> bool:
    """True when this view stays true as time goes by, until another window comes."""
    return not (shown.in_flight or shown.queued or shown.arrivals_per_s or shown.completed_per_s or shown.failed_per_s)
