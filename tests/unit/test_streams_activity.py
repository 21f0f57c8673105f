"""What windows of invocations add up to."""

from __future__ import annotations

from schemas import avro
from schemas.records import InvocationWindow
from streams.activity import GATEWAYS, SPAN_PANES, Activity, is_at_rest, is_forgettable, take, view

KEY = "1250000000/default/hello"
T0 = 1_700_000_000_000
LATER = T0 + 10**9


def window(
    number: int,
    *,
    gateway: str = "g1",
    term: int = 1,
    at_ms: int = T0,
    arrivals: int = 0,
    completed: int = 0,
    failed: int = 0,
    in_flight: int = 0,
    queued: int = 0,
    duration_us: int = 0,
    max_us: int = 0,
    cold: tuple[int, ...] = (0,) * 6,
) -> InvocationWindow:
    return InvocationWindow(
        KEY, gateway, term, number, at_ms, 200, arrivals, completed, failed, 1, 2, 3, in_flight, queued,
        duration_us, max_us, duration_us // 2, cold,
    )  # fmt: skip


def fold(*windows: InvocationWindow, state: Activity | None = None, now_ms: int = LATER) -> Activity:
    state = state or Activity(KEY)
    for one in windows:
        state = take(state, one, now_ms)
    return state


def test_totals_add_up_over_gateways_terms_and_windows() -> None:
    state = fold(
        window(1, arrivals=5, completed=3, failed=1, cold=(2, 1, 0, 0, 0, 1)),
        window(2, arrivals=1, completed=2),
        window(1, term=2, arrivals=10),
        window(1, gateway="g2", arrivals=100, cold=(1, 0, 0, 0, 0, 0)),
    )
    shown = view(state, T0)
    assert (shown.arrivals, shown.completed, shown.failed) == (116, 5, 1)
    assert (shown.throttled, shown.retried, shown.dead) == (4, 8, 12)
    assert shown.cold == (3, 1, 0, 0, 0, 1)


def test_a_window_that_was_seen_or_an_older_one_changes_nothing() -> None:
    state = fold(window(7, arrivals=5), window(8, arrivals=5))
    for old in (window(8, arrivals=5), window(7, arrivals=5), window(99, term=0, arrivals=5)):
        assert take(state, old, LATER) is state


def test_rates_are_per_second_over_ten_seconds_that_slide() -> None:
    state = fold(*(window(i, at_ms=T0 + 500 + i * 1_000, arrivals=20) for i in range(30)))
    assert view(state, T0 + 30_000).arrivals_per_s == 20.0
    assert view(state, T0 + 30_500).arrivals_per_s == 19.0
    assert view(state, T0 + 35_000).arrivals_per_s == 10.0
    assert view(state, T0 + 40_000).arrivals_per_s == 0.0


def test_gauges_are_the_newest_of_each_gateway_and_end_with_it() -> None:
    state = fold(window(1, in_flight=9, queued=1), window(2, in_flight=3, queued=2, at_ms=T0 + 1_000))
    state = fold(window(1, gateway="g2", in_flight=4, at_ms=T0 + 5_000), state=state)
    shown = view(state, T0 + 5_000)
    assert (shown.in_flight, shown.queued) == (7, 2)
    assert view(state, T0 + 11_001).in_flight == 4, "g1 has said nothing for ten seconds"
    assert view(state, T0 + 15_001).in_flight == 0


def test_durations_are_of_the_last_ten_seconds_in_which_it_ran() -> None:
    state = fold(window(1, completed=1, duration_us=1_000_000, max_us=1_000_000))
    state = fold(window(2, completed=3, failed=1, duration_us=4_000, max_us=2_500, at_ms=T0 + 60_000), state=state)
    shown = view(state, T0 + 3_600_000)
    assert (shown.duration_mean_us, shown.duration_max_us, shown.wait_mean_us) == (1_000, 2_500, 500)


def test_a_gateway_whose_clock_runs_ahead_does_not_hide_the_others() -> None:
    state = fold(window(1, arrivals=50, at_ms=T0), now_ms=T0)
    state = fold(window(1, gateway="g2", arrivals=50, at_ms=T0 + 3_600_000), state=state, now_ms=T0)
    assert view(state, T0).arrivals_per_s == 10.0


def test_state_is_bounded_and_the_longest_silent_gateway_goes_first() -> None:
    state = fold(
        *(window(1, gateway=f"g{i}", at_ms=T0 + i * 1_000, arrivals=1) for i in range(3 * GATEWAYS)),
        *(window(i, gateway="busy", at_ms=T0 + i * 1_000, arrivals=1) for i in range(500)),
    )
    assert len(state.gateways) == GATEWAYS
    assert len(state.panes) <= SPAN_PANES + 1
    assert {"busy", f"g{3 * GATEWAYS - 1}"} <= {heard.gateway for heard in state.gateways}
    assert "g0" not in {heard.gateway for heard in state.gateways}
    assert view(state, LATER).arrivals == 3 * GATEWAYS + 500


def test_a_function_is_at_rest_when_its_view_no_longer_changes() -> None:
    state = fold(window(1, arrivals=1, completed=1, in_flight=1))
    assert not is_at_rest(view(state, T0))
    assert not is_at_rest(view(state, T0 + 9_000))
    assert is_at_rest(view(state, T0 + 11_000))


def test_seq_is_the_time_and_never_falls_behind_the_last_one() -> None:
    state = fold(window(1))
    assert view(state, T0).seq == T0
    assert view(state, T0, last_seq=T0 + 5).seq == T0 + 6


def test_a_function_nobody_spoke_of_for_an_hour_can_be_forgotten() -> None:
    state = fold(window(1, in_flight=1))
    assert not is_forgettable(state, T0 + 3_000_000)
    assert is_forgettable(state, T0 + 3_600_001)


def test_state_survives_its_encoding() -> None:
    state = fold(window(1, arrivals=3, cold=(1, 2, 3, 4, 5, 6)), window(1, gateway="g2", in_flight=1))
    assert avro.decode(Activity, avro.encode(state)) == state
