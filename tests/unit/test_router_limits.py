"""The gateway's budgets: what is reserved, what is shared, and what a change does to what runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.counts import Counts, FunctionCount
from schemas.concurrency import TOTAL, LimitRecord
from schemas.frames import Result
from schemas.ids import FunctionKey
from schemas.limits import TENANT_CONCURRENCY_MIB

A, B, ELSEWHERE = (FunctionKey("1", *where) for where in (("ns", "aa"), ("ns", "bb"), ("other", "cc")))
STRANGER = FunctionKey("2", "ns", "aa")
DONE = Result(0, 200, 0, 0, 1, 1, 1, b"", b"")


def row(key: FunctionKey, memory_mib: int) -> LimitRecord:
    return LimitRecord(1, key.appid, "1", key.namespace, key.name, memory_mib, 0, "c")


def put(counts: Counts, key: FunctionKey, memory_mib: int | None) -> None:
    counts.limit_changed(str(key), None if memory_mib is None else row(key, memory_mib))


def fill(counts: Counts, key: FunctionKey, memory_mib: int = 128) -> list[FunctionCount]:
    entered = []
    while (count := counts.enter(key, memory_mib)) is not None:
        entered.append(count)
        assert len(entered) < 10_000
    return entered


def why(counts: Counts, key: FunctionKey) -> str:
    return counts.why(counts.of(key), 128)


def test_a_tenant_without_limits_has_the_quota_and_shares_it_over_its_namespaces() -> None:
    counts = Counts(quota_mib=1_280)
    assert len(fill(counts, A)) == 10
    assert (counts.enter(B, 64), counts.enter(ELSEWHERE, 64)) == (None, None)
    assert counts.enter(STRANGER, 1_280) is not None
    assert len(fill(Counts(), A, 3_072)) == TENANT_CONCURRENCY_MIB // 3_072


def test_what_is_reserved_is_the_functions_alone() -> None:
    counts = Counts(quota_mib=1_280)
    put(counts, A, 256)
    assert len(fill(counts, B)) == 8
    assert len(fill(counts, A)) == 2
    assert "what is reserved for the function, 256 of 256 MB are in use" in why(counts, A)
    assert "what namespace ns shares" in why(counts, B)


def test_nothing_reserved_blocks_and_less_than_one_invocation_too() -> None:
    counts = Counts()
    put(counts, A, 0)
    put(counts, B, 127)
    assert (counts.enter(A, 64), counts.enter(B, 128)) == (None, None)


def test_a_namespaces_total_bounds_what_it_shares_and_holds_what_is_reserved_in_it() -> None:
    counts = Counts(quota_mib=1_280)
    put(counts, FunctionKey("1", "ns", TOTAL), 640)
    put(counts, A, 256)
    assert len(fill(counts, B)) == 3
    assert len(fill(counts, ELSEWHERE)) == 10 - 2 - 3
    put(counts, FunctionKey("1", "ns", TOTAL), None)
    assert counts.enter(B, 128) is None, "the tenant's quota is used up"
    assert "what the account shares" in why(counts, B)


def test_what_runs_when_a_reservation_comes_or_goes_counts_where_it_belongs_then() -> None:
    counts = Counts(quota_mib=1_280)
    running = fill(counts, A)
    put(counts, A, 256)
    assert counts.enter(A, 128) is None, "ten run already, of two"
    assert len(fill(counts, B)) == 8, "what they took is what others share again"
    for count in running[:9]:
        counts.leave(count, 128, DONE)
    assert counts.enter(A, 128) is not None
    put(counts, A, None)
    assert counts.enter(A, 128) is None, "all ten are shared again, and in use"


def test_a_reservation_that_is_changed_counts_from_then_on() -> None:
    counts = Counts()
    put(counts, A, 128)
    running = fill(counts, A)
    put(counts, A, 384)
    assert len(fill(counts, A)) == 2
    put(counts, A, 128)
    counts.leave(running[0], 128, DONE)
    assert counts.enter(A, 128) is None


def test_a_refusal_is_counted_and_takes_nothing() -> None:
    counts = Counts()
    put(counts, A, 128)
    running = fill(counts, A)
    [window] = counts.close_windows(gateway="g", term=1, number=1, unix_ms=0, span_ms=1)
    assert (window.arrivals, window.throttled, window.in_flight) == (2, 1, 1)
    counts.leave(running[0], 128, DONE)
    assert len(fill(counts, A)) == 1


SIZES = {A: 128, B: 64, ELSEWHERE: 256}
events = st.one_of(
    st.tuples(st.just("enter"), st.sampled_from([A, B, ELSEWHERE])),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(
        st.sampled_from([0, 64, 128, 300, None]),
        st.sampled_from([A, B, ELSEWHERE, FunctionKey("1", "ns", TOTAL), FunctionKey("1", "other", TOTAL)]),
    ),
)


@given(st.lists(events, max_size=60))
def test_nothing_is_let_in_past_a_limit_and_what_all_leave_is_whole_again(
    history: list[tuple[object, FunctionKey | int]],
) -> None:
    counts, quota = Counts(quota_mib=1_000), 1_000
    running: list[tuple[FunctionKey, FunctionCount]] = []
    rows: dict[FunctionKey, int] = {}

    def used(*, of: FunctionKey | None = None, namespace: str | None = None) -> int:
        if of is not None:
            return sum(SIZES[key] for key, _ in running if key == of)
        return sum(SIZES[key] for key, _ in running if key not in rows and namespace in (None, key.namespace))

    def reserved(namespace: str | None = None) -> int:
        return sum(v for k, v in rows.items() if k.name != TOTAL and namespace in (None, k.namespace))

    for what, which in history:
        if what == "enter":
            assert isinstance(which, FunctionKey)
            fits = used(of=which) + SIZES[which] <= rows[which] if which in rows else (
                used() + SIZES[which] <= quota - reserved()
                and used(namespace=which.namespace) + SIZES[which]
                <= rows.get(FunctionKey("1", which.namespace, TOTAL), quota) - reserved(which.namespace)
            )  # fmt: skip
            count = counts.enter(which, SIZES[which])
            assert (count is not None) == fits
            if count is not None:
                running.append((which, count))
        elif what == "leave":
            assert isinstance(which, int)
            if which < len(running):
                key, count = running.pop(which)
                counts.leave(count, SIZES[key], DONE)
        else:
            assert isinstance(which, FunctionKey)
            assert what is None or isinstance(what, int)
            put(counts, which, what)
            rows.pop(which, None)
            if what is not None:
                rows[which] = what
    for key, count in running:
        counts.leave(count, SIZES[key], DONE)
    for key in list(rows):
        put(counts, key, None)
    assert len(fill(counts, A)) == 7


@pytest.mark.parametrize("key", [A, FunctionKey("1", "ns", TOTAL)])
def test_a_limit_that_was_never_there_may_go(key: FunctionKey) -> None:
    counts = Counts(quota_mib=256)
    put(counts, key, None)
    assert len(fill(counts, A)) == 2
