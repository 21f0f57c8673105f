"""What a function's windows add up to: totals, rates of the last ten seconds, what runs now. Pure: no Faust, no clock.

A window is absolute for its gateway, term and number; one that was seen, or an older one, changes nothing. State is bounded: ten panes of a
second, and the gateways heard of within a minute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from schemas.records import LEVELS, FunctionActivity, InvocationWindow

PANE_MS = 1_000
PANES = 10
GAUGE_STALE_MS = 10_000
GATEWAY_FORGOTTEN_MS = 60_000


@dataclass(frozen=True, slots=True)
class Pane:
    """Counts of one second, `second` of Unix time."""

    second: int
    arrivals: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest window of one gateway."""

    gateway: str
    term: int
    window: int
    unix_ms: int
    in_flight: int
    queued: int


@dataclass(frozen=True, slots=True)
class Activity:
    """State of one function. Sums are over all time, in microseconds."""

    key: str
    seq: int = 0
    arrivals: int = 0
    completed: int = 0
    failed: int = 0
    throttled: int = 0
    retried: int = 0
    dead: int = 0
    duration_sum_us: int = 0
    duration_max_us: int = 0
    wait_sum_us: int = 0
    cold: tuple[int, ...] = (0,) * LEVELS
    panes: tuple[Pane, ...] = ()
    gateways: tuple[Heard, ...] = ()


def take_window(state: Activity, window: InvocationWindow) -> tuple[Activity, FunctionActivity | None]:
    """Fold one window in; the second part is what to publish, None when the window was already in."""
    last = next((g for g in state.gateways if g.gateway == window.gateway), None)
    if last is not None and (window.term, window.window) <= (last.term, last.window):
        return state, None
    heard = Heard(window.gateway, window.term, window.window, window.unix_ms, window.in_flight, window.queued)
    state = replace(
        state,
        seq=state.seq + 1,
        arrivals=state.arrivals + window.arrivals,
        completed=state.completed + window.completed,
        failed=state.failed + window.failed,
        throttled=state.throttled + window.throttled,
        retried=state.retried + window.retried,
        dead=state.dead + window.dead,
        duration_sum_us=state.duration_sum_us + window.duration_sum_us,
        duration_max_us=max(state.duration_max_us, window.duration_max_us),
        wait_sum_us=state.wait_sum_us + window.wait_sum_us,
        cold=tuple(a + b for a, b in zip(state.cold, window.cold, strict=True)),
        panes=_panes(state.panes, window),
        gateways=(
            *(g for g in state.gateways if g is not last and window.unix_ms - g.unix_ms < GATEWAY_FORGOTTEN_MS),
            heard,
        ),
    )
    return state, publish(state, window.unix_ms)


def _panes(panes: tuple[Pane, ...], window: InvocationWindow) -> tuple[Pane, ...]:
    second = window.unix_ms // PANE_MS
    by_second = {p.second: p for p in panes if p.second > second - PANES}
    pane = by_second.get(second, Pane(second))
    by_second[second] = Pane(
        second, pane.arrivals + window.arrivals, pane.completed + window.completed, pane.failed + window.failed
    )
    return tuple(by_second[s] for s in sorted(by_second))[-PANES:]


def publish(state: Activity, unix_ms: int) -> FunctionActivity:
    """The state as others see it at a time."""
    now = unix_ms // PANE_MS
    panes = [p for p in state.panes if now - PANES < p.second <= now]
    span_s = PANES * PANE_MS / 1000
    live = [g for g in state.gateways if unix_ms - g.unix_ms < GAUGE_STALE_MS]
    done = max(1, state.completed + state.failed)
    return FunctionActivity(
        seq=state.seq,
        key=state.key,
        unix_ms=unix_ms,
        arrivals=state.arrivals,
        completed=state.completed,
        failed=state.failed,
        throttled=state.throttled,
        retried=state.retried,
        dead=state.dead,
        in_flight=sum(g.in_flight for g in live),
        queued=sum(g.queued for g in live),
        arrivals_per_s=sum(p.arrivals for p in panes) / span_s,
        completed_per_s=sum(p.completed for p in panes) / span_s,
        failed_per_s=sum(p.failed for p in panes) / span_s,
        duration_mean_us=state.duration_sum_us // done,
        duration_max_us=state.duration_max_us,
        wait_mean_us=state.wait_sum_us // done,
        cold=state.cold,
    )
