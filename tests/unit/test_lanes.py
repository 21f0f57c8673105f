"""What the lanes do with records, one claim a test. Order and ownership in every combination: tests/property/test_lanes_model.py."""

from __future__ import annotations

import pytest

from ingest.lanes.lanes import LaneSet
from ingest.lanes.policy import WAITING_FOR, LanePolicy, Ordering, retry_delay_ms, wait_delay_ms
from ingest.lanes.run import Run
from schemas.runstatus import RunStatus, blames_platform
from tests.records import keyed, record

OK, FAILED, NO_HOST = RunStatus.OK, RunStatus.USER_EXCEPTION, RunStatus.NO_RESOURCES
MIDDLE = 0.5
"""A jitter that leaves the delay as it is."""


def lanes_of(
    records: str = "",
    *,
    ordering: Ordering = Ordering.KEY,
    concurrency: int = 32,
    batch: int = 1,
    retries: int = 3,
) -> LaneSet:
    lanes = LaneSet(LanePolicy(ordering, concurrency, batch, retries), lambda: MIDDLE)
    lanes.assign(0, 1, 0)
    lanes.offer(keyed(records))
    return lanes


def offsets(runs: list[Run]) -> list[list[int]]:
    return [[r.offset for r in run.records] for run in runs]


def committable(lanes: LaneSet) -> int:
    return lanes.owned[0].tracker.committable


# ------------------------------------------------------------------------------------------------------ order, fairness


def test_records_of_one_key_run_one_after_another_and_other_keys_at_once() -> None:
    lanes = lanes_of("aabab")
    first = lanes.take(0)
    assert offsets(first) == [[0], [2]]
    lanes.finish(first[0], OK, 0)
    assert offsets(lanes.take(0)) == [[1]]


def test_the_same_key_in_another_partition_is_another_lane() -> None:
    lanes = lanes_of("a")
    lanes.assign(1, 1, 0)
    lanes.offer(keyed("a", partition=1))
    assert len(lanes.take(0)) == 2


def test_records_without_a_key_have_no_order() -> None:
    assert offsets(lanes_of("---").take(0)) == [[0], [1], [2]]


def test_ordering_partition_runs_one_at_a_time_whatever_the_keys() -> None:
    lanes = lanes_of("ab-", ordering=Ordering.PARTITION)
    lanes.assign(1, 1, 0)
    lanes.offer(keyed("a", partition=1))
    runs = lanes.take(0)
    assert [(run.partition, run.records[0].offset) for run in runs] == [(0, 0), (1, 0)]


def test_ordering_none_runs_records_of_one_key_at_once() -> None:
    assert offsets(lanes_of("aaa", ordering=Ordering.NONE).take(0)) == [[0], [1], [2]]


def test_a_busy_key_does_not_keep_others_waiting() -> None:
    """Lanes are served in turn: b and c, which came later, run before a's second record."""
    lanes = lanes_of("aaaabc", concurrency=1)
    served = []
    for _ in range(4):
        (run,) = lanes.take(0)
        served += [r.key for r in run.records]
        lanes.finish(run, OK, 0)
    assert served == [b"a", b"b", b"c", b"a"]


def test_the_concurrency_counts_runs_of_partitions_that_are_gone_until_they_end() -> None:
    lanes = lanes_of("ab", concurrency=2)
    out = lanes.take(0)
    lanes.release([0])
    lanes.assign(0, 2, 0)
    lanes.offer(keyed("ab"))
    assert lanes.take(0) == []
    lanes.finish(out[0], OK, 0)
    assert offsets(lanes.take(0)) == [[0]]


# ------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_is_of_one_lane() -> None:
    assert offsets(lanes_of("abaaba", batch=3).take(0)) == [[0, 2, 3], [1, 4]]


def test_without_order_a_batch_takes_what_comes() -> None:
    assert offsets(lanes_of("abcde", ordering=Ordering.NONE, batch=3).take(0)) == [[0, 1, 2], [3, 4]]


def test_records_without_key_share_batches() -> None:
    assert offsets(lanes_of("--a--", batch=3).take(0)) == [[0, 1, 3], [2], [4]]


def test_records_that_did_not_fit_into_an_event_are_next_in_their_lane() -> None:
    lanes = lanes_of("aaaaa", batch=4)
    (run,) = lanes.take(0)
    lanes.trim(run, 2)
    lanes.finish(run, OK, 0)
    assert offsets([run]) == [[0, 1]]
    assert offsets(lanes.take(0)) == [[2, 3, 4]]


def test_a_failed_batch_is_retried_whole_then_record_by_record_and_only_the_poison_dies() -> None:
    lanes = lanes_of("aaab", batch=3, retries=2)
    out, seen, now = lanes.take(0), [], 0.0
    while out:
        for run in out:
            seen.append([r.offset for r in run.records])
            poisoned = 1 in seen[-1]
            lanes.finish(run, FAILED if poisoned else OK, now)
        for run in lanes.take_condemned(9):
            assert offsets([run]) == [[1]]
            lanes.buried(run)
        now += 3_000
        out = lanes.take(now)
    assert seen == [[0, 1, 2], [3], [0, 1, 2], [0], [1], [2]]
    assert (committable(lanes), lanes.dead, lanes.held) == (4, 1, 0)


def test_a_batch_without_retries_is_still_taken_apart() -> None:
    lanes = lanes_of("---", batch=3, retries=0)
    (run,) = lanes.take(0)
    lanes.finish(run, FAILED, 0)
    assert offsets(lanes.take(0)) == [[0]]


def test_a_platform_failure_does_not_take_a_batch_apart() -> None:
    lanes = lanes_of("aaa", batch=3, retries=0)
    (run,) = lanes.take(0)
    lanes.finish(run, NO_HOST, 0)
    assert offsets(lanes.take(50)) == [[0, 1, 2]]


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_failing_record_is_tried_again_in_growing_steps_and_then_condemned() -> None:
    lanes = lanes_of("a", retries=3)
    now, starts = 0.0, []
    while not (condemned := lanes.take_condemned(9)):
        (run,) = lanes.take(now)
        starts.append(now)
        assert run.attempt == len(starts)
        lanes.finish(run, FAILED, now)
        now = lanes.next_due_ms or now
    assert starts == [0, 100, 300, 700]
    assert offsets(condemned) == [[0]]
    assert lanes.retried == 3


def test_a_waiting_lane_holds_no_place_of_the_concurrency() -> None:
    lanes = lanes_of("ab", concurrency=1)
    (run,) = lanes.take(0)
    lanes.finish(run, FAILED, 0)
    assert offsets(lanes.take(0)) == [[1]]


def test_later_records_of_a_failing_key_wait_for_it() -> None:
    lanes = lanes_of("aa")
    (run,) = lanes.take(0)
    lanes.finish(run, FAILED, 0)
    assert lanes.take(99) == []
    assert offsets(lanes.take(100)) == [[0]]


def test_a_key_goes_on_only_when_its_dead_letter_is_safe() -> None:
    lanes = lanes_of("aa", retries=0)
    (run,) = lanes.take(0)
    lanes.finish(run, FAILED, 0, b'{"errorMessage":"x"}')
    (condemned,) = lanes.take_condemned(9)
    assert (lanes.take(0), committable(lanes)) == ([], 0)
    lanes.unburied(condemned, 0)
    assert (lanes.take(49), lanes.take_condemned(9), committable(lanes)) == ([], [], 0)
    assert lanes.take(50) == []
    (again,) = lanes.take_condemned(9)
    assert again is condemned and again.trouble is not None and again.trouble.error == b'{"errorMessage":"x"}'
    lanes.buried(again)
    assert (offsets(lanes.take(50)), committable(lanes)) == ([[1]], 1)


@pytest.mark.parametrize("status", sorted(WAITING_FOR))
def test_what_is_not_the_records_fault_never_costs_an_attempt(status: int) -> None:
    lanes = lanes_of("a", retries=0)
    now = 0.0
    for _ in range(20):
        (run,) = lanes.take(now)
        assert run.attempt == 1
        lanes.finish(run, status, now)
        assert lanes.take_condemned(9) == []
        assert lanes.next_due_ms is not None and 50 <= lanes.next_due_ms - now <= 2_000
        now = lanes.next_due_ms
    (run,) = lanes.take(now)
    lanes.finish(run, OK, now)
    assert committable(lanes) == 1


def test_everything_that_blames_the_platform_only_waits() -> None:
    assert {status for status in RunStatus if blames_platform(status)} <= set(WAITING_FOR)


def test_an_event_that_is_too_large_is_condemned_without_a_run() -> None:
    lanes = lanes_of("aa")
    (run,) = lanes.take(0)
    lanes.reject(run, RunStatus.EVENT_TOO_LARGE, b"{}")
    (condemned,) = lanes.take_condemned(9)
    lanes.buried(condemned)
    assert (lanes.in_flight, committable(lanes), offsets(lanes.take(0))) == (0, 1, [[1]])


def test_delays_double_and_stop_at_two_seconds() -> None:
    assert [retry_delay_ms(n, lambda: MIDDLE) for n in (1, 2, 3, 4, 5, 6, 10_000)] == [
        100, 200, 400, 800, 1_600, 2_000, 2_000,
    ]  # fmt: skip
    assert [wait_delay_ms(n) for n in (1, 2, 6, 7, 10_000)] == [50, 100, 1_600, 2_000, 2_000]
    assert (retry_delay_ms(1, lambda: 0.0), retry_delay_ms(1, lambda: 1.0)) == pytest.approx((80, 120))


# ------------------------------------------------------------------------------------------------- ownership, commits


def test_a_commit_waits_for_the_lowest_unfinished_record_and_tells_of_the_rest() -> None:
    lanes = lanes_of("abcd")
    runs = lanes.take(0)
    for run in (runs[1], runs[3]):
        lanes.finish(run, OK, 0)
    assert [(p, e, offset, list(done)) for p, e, offset, done in lanes.marks()] == [(0, 1, 0, [(1, 2), (3, 4)])]
    assert list(lanes.marks()) == []


def test_records_finished_before_a_crash_are_not_run_again() -> None:
    lanes = LaneSet(LanePolicy(), lambda: MIDDLE)
    lanes.assign(0, 2, 10, [(11, 13)])
    lanes.offer(keyed("abcd", first=10))
    assert offsets(lanes.take(0)) == [[10], [13]]


def test_a_record_that_needs_no_run_moves_the_commit_all_the_same() -> None:
    lanes = LaneSet(LanePolicy(), lambda: MIDDLE)
    lanes.assign(0, 2, 10, [(12, 13)])
    lanes.offer([record(10, "a")])
    (run,) = lanes.take(0)
    lanes.finish(run, OK, 0)
    assert [offset for _, _, offset, _ in lanes.marks()] == [11]
    lanes.offer([record(12, "b")])  # 11 does not exist
    assert [offset for _, _, offset, _ in lanes.marks()] == [13]


def test_revoked_records_leave_at_once_and_running_ones_are_waited_for() -> None:
    lanes = lanes_of("aab")
    runs = lanes.take(0)
    lanes.revoke([0])
    assert (lanes.held, lanes.drained([0])) == (2, False)
    lanes.finish(runs[0], OK, 0)
    lanes.finish(runs[1], FAILED, 0)
    assert (lanes.held, lanes.drained([0]), lanes.take(9_999)) == (0, True, [])
    assert [(offset, list(done)) for _, _, offset, done in lanes.marks()] == [(1, [])]


def test_a_result_of_an_ended_epoch_changes_nothing_but_the_concurrency() -> None:
    lanes = lanes_of("aa")
    (old,) = lanes.take(0)
    lanes.release([0])
    lanes.assign(0, 2, 0)
    lanes.offer(keyed("aa"))
    (new,) = lanes.take(0)
    lanes.finish(old, OK, 0)
    assert (lanes.in_flight, committable(lanes), lanes.take(0)) == (1, 0, [])
    lanes.finish(new, OK, 0)
    assert committable(lanes) == 1


def test_a_log_that_went_back_is_taken_from_there() -> None:
    """The topic was deleted and made again: offsets begin anew, and so does the work."""
    lanes = LaneSet(LanePolicy(), lambda: MIDDLE)
    lanes.assign(0, 1, 100, [(101, 150)])
    lanes.offer(keyed("ab", first=200))
    out = lanes.take(0)
    lanes.offer(keyed("ab"))
    assert offsets(lanes.take(0)) == [[0], [1]]
    for run in out:
        lanes.finish(run, OK, 0)
    assert (committable(lanes), lanes.held) == (0, 2)


def test_what_is_held_is_counted_in_records_and_bytes() -> None:
    lanes = lanes_of()
    lanes.offer([record(0, "k" * 100, value=b"v" * 1_000, headers=(("h", b"x" * 50), ("n", None)))])
    assert lanes.held == 1
    assert 1_152 <= lanes.held_bytes <= 1_152 + 1_100
    (run,) = lanes.take(0)
    lanes.finish(run, OK, 0)
    assert (lanes.held, lanes.held_bytes) == (0, 0)
