"""Laws of the decision when a supervised process is started again."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from infra.restarts import EXIT_CONFIG, Exit, GiveUp, Restart, RestartPolicy, after_exit

policies = st.builds(
    RestartPolicy,
    first_s=st.floats(0.001, 5),
    factor=st.floats(1, 10),
    limit_s=st.floats(5, 100),
    steady_s=st.floats(1, 100),
)
codes = st.one_of(st.none(), st.integers(-64, 255).filter(lambda code: code != EXIT_CONFIG))
lives = st.builds(Exit, code=codes, lived_s=st.floats(0, 1e6), was_ready=st.booleans())


@given(policies, st.lists(lives, max_size=200))
def test_waits_are_bounded_by_the_first_and_the_limit(policy: RestartPolicy, row: list[Exit]) -> None:
    streak = 0
    for ended in row:
        decision = after_exit(policy, ended, streak=streak)
        assert isinstance(decision, Restart)
        assert policy.first_s <= decision.delay_s <= policy.limit_s
        streak = decision.streak


@given(policies, st.lists(codes, min_size=2, max_size=50))
def test_waits_of_short_lives_never_shrink_and_reach_the_limit_by_the_factor(
    policy: RestartPolicy, row: list[int | None]
) -> None:
    delays, streak = [], 0
    for code in row:
        decision = after_exit(policy, Exit(code, policy.steady_s / 2, was_ready=True), streak=streak)
        assert isinstance(decision, Restart)
        delays.append(decision.delay_s)
        streak = decision.streak
    for earlier, later in itertools.pairwise(delays):
        assert earlier <= later <= max(earlier * policy.factor * 1.0001, policy.first_s)


@given(policies, codes, st.integers(0, 10_000), st.floats(0, 1e6))
def test_a_steady_life_begins_the_row_anew_and_one_that_never_was_ready_does_not(
    policy: RestartPolicy, code: int | None, streak: int, more_s: float
) -> None:
    ended = Exit(code, policy.steady_s + more_s, was_ready=True)
    assert after_exit(policy, ended, streak=streak) == Restart(policy.delay_s(0), 1)
    ended = Exit(code, policy.steady_s + more_s, was_ready=False)
    assert after_exit(policy, ended, streak=streak) == Restart(policy.delay_s(streak), streak + 1)


@given(policies, st.floats(0, 1e6), st.integers(0, 100), st.booleans())
def test_a_configuration_error_is_never_tried_again(
    policy: RestartPolicy, lived_s: float, streak: int, was_ready: bool
) -> None:
    assert isinstance(after_exit(policy, Exit(EXIT_CONFIG, lived_s, was_ready=was_ready), streak=streak), GiveUp)


def test_the_default_row_is_a_tenth_of_a_second_doubling_to_ten() -> None:
    delays = [round(RestartPolicy().delay_s(streak), 6) for streak in range(9)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
