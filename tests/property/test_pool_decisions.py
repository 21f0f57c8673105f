"""Laws of the pool's decisions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandbox.pool import IdleWorker, PoolLimits, RunTimes, Step, choose, evictions, starts_wanted

LIMITS = PoolLimits(workers=40, queue_calls=100)
counts = st.integers(0, 60)
durations = st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 20)), max_size=30)


def times_of(observed: list[tuple[int, int]]) -> RunTimes:
    times = RunTimes()
    for each_us, runs in observed:
        times.observe(each_us, runs)
    return times


@given(idle=counts, busy=counts, depth=st.integers(0, 20), queued=st.integers(0, 200), observed=durations)
def test_a_call_waits_only_when_no_worker_may_take_it(
    idle: int, busy: int, depth: int, queued: int, observed: list[tuple[int, int]]
) -> None:
    times = times_of(observed)
    step = choose(idle=idle, busy=busy, depth=depth, times=times, queued=queued, limits=LIMITS)
    if step == Step.IDLE:
        assert idle
    if step == Step.PIPELINE:
        assert 0 < depth < LIMITS.depth
        assert times.runs >= LIMITS.blind_runs
        assert times.longest_us < LIMITS.quick_us
        assert depth * times.longest_us <= LIMITS.drain_us
    if idle:
        assert step in {Step.IDLE, Step.PIPELINE}
    if step in {Step.QUEUE, Step.REFUSE}:
        assert (step == Step.REFUSE) == (queued >= LIMITS.queue_calls)


@given(
    queued=counts,
    waited_us=st.integers(0, 50_000),
    running_us=st.integers(0, 50_000),
    ready=counts,
    starting=counts,
    observed=durations,
)
def test_starts_are_bounded_by_the_queue_and_the_cap(
    queued: int, waited_us: int, running_us: int, ready: int, starting: int, observed: list[tuple[int, int]]
) -> None:
    wanted = starts_wanted(
        queued=queued,
        waited_us=waited_us,
        running_us=running_us,
        ready=ready,
        starting=starting,
        times=times_of(observed),
        limits=LIMITS,
    )
    assert wanted >= 0
    assert wanted == 0 or wanted + starting <= queued
    assert wanted == 0 or wanted + ready + starting <= LIMITS.workers


@given(queued=st.integers(1, 40), ready=st.integers(0, 39), observed=durations)
def test_a_slow_handler_gets_a_worker_for_every_waiting_call(
    queued: int, ready: int, observed: list[tuple[int, int]]
) -> None:
    times = times_of([*observed, (50_000, 60)])
    wanted = starts_wanted(
        queued=queued, waited_us=0, running_us=0, ready=ready, starting=0, times=times, limits=LIMITS
    )
    assert wanted == min(queued, LIMITS.workers - ready)


@given(queued=st.integers(1, 100), ready=st.integers(1, 10), waited_us=st.integers(0, 9_999))
def test_a_quick_handler_gets_none_while_its_workers_are_done_sooner_than_a_start(
    queued: int, ready: int, waited_us: int
) -> None:
    times = times_of([(50, 20)] * 5)
    wanted = starts_wanted(
        queued=queued, waited_us=waited_us, running_us=0, ready=ready, starting=0, times=times, limits=LIMITS
    )
    assert wanted == 0


@given(queued=st.integers(1, 100), ready=st.integers(0, 10), starting=st.integers(0, 10))
def test_whoever_waits_longer_than_a_start_gets_a_worker_on_its_way(queued: int, ready: int, starting: int) -> None:
    times = times_of([(50, 20)] * 5)
    wanted = starts_wanted(
        queued=queued,
        waited_us=10_000,
        running_us=0,
        ready=ready,
        starting=starting,
        times=times,
        limits=LIMITS,
    )
    assert wanted + starting >= 1


@given(observed=durations.filter(bool))
def test_the_longest_run_is_never_below_the_last_and_never_above_all(observed: list[tuple[int, int]]) -> None:
    times = times_of(observed)
    assert observed[-1][0] <= times.longest_us <= max(each for each, _ in observed)
    assert min(each for each, _ in observed) - 1 <= times.typical_us + len(observed)
    assert times.typical_us <= max(each for each, _ in observed)


@given(slow_us=st.integers(0, 1_000_000))
def test_a_single_slow_run_is_forgotten_after_quick_ones(slow_us: int) -> None:
    times = times_of([(slow_us, 1), (50, 1)])
    for _ in range(80):
        times.observe(50)
    assert times.is_quick(LIMITS)


@given(
    memory=st.lists(st.tuples(st.integers(64, 3072), st.integers(0, 100)), max_size=20),
    need_mib=st.integers(64, 3072),
    free_mib=st.integers(-500, 3072),
)
def test_evictions_make_room_with_the_least_recently_used_and_no_more(
    memory: list[tuple[int, int]], need_mib: int, free_mib: int
) -> None:
    idle = [IdleWorker(i, mib, used) for i, (mib, used) in enumerate(memory)]
    ended = evictions(idle, need_mib=need_mib, free_mib=free_mib)
    if ended is None:
        assert free_mib + sum(w.memory_mib for w in idle) < need_mib
        return
    gained = [idle[i] for i in ended]
    assert free_mib + sum(w.memory_mib for w in gained) >= need_mib
    assert not gained or free_mib + sum(w.memory_mib for w in gained[:-1]) < need_mib
    kept = [w for w in idle if w.name not in ended]
    assert all(g.last_used_us <= k.last_used_us for g in gained for k in kept)
