"""Who waits at a limit: only lanes, not for long, in their turn; and that nobody is lost or let in too much."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from router.counts import Counts, FunctionCount
from router.waiting import WAIT_S, Waiter, WaitingRoom
from schemas.concurrency import TOTAL, LimitRecord
from schemas.frames import Result
from schemas.ids import FunctionKey

A, B = FunctionKey("1", "ns", "aa"), FunctionKey("1", "ns", "bb")
DONE = Result(0, 200, 0, 0, 1, 1, 1, b"", b"")


class Gate:
    """A waiting room with the counts of a small tenant, and what became of everybody."""

    def __init__(self, quota_mib: int = 256) -> None:
        self.counts = Counts(quota_mib=quota_mib)
        self.room = WaitingRoom(self.counts)
        self.started: list[str] = []
        self.refused: list[str] = []
        self.running: list[FunctionCount] = []

    def limit(self, key: FunctionKey, memory_mib: int | None) -> None:
        row = None if memory_mib is None else LimitRecord(1, "1", "1", key.namespace, key.name, memory_mib, 0, "c")
        self.counts.limit_changed(str(key), row)
        self.room.regroup()
        self.room.tick(0.0)

    def come(self, key: FunctionKey, name: str, *, until_s: float = WAIT_S) -> bool:
        """As the dispatcher does it for a lane; False when it was turned away."""
        count = self.counts.arrive(key)
        if not self.room.has(key, count) and self.counts.take(count, 128):
            self.start(count, name)
            return True
        return self.room.add(
            Waiter(
                until_s,
                name.encode(),
                key,
                count,
                128,
                partial(self.start, count, name),
                lambda: self.refused.append(name),
            )
        )

    def start(self, count: FunctionCount, name: str) -> None:
        self.started.append(name)
        self.running.append(count)

    def end(self, which: int = 0) -> None:
        count = self.running.pop(which)
        self.counts.leave(count, 128, DONE)
        self.room.freed(count.budgets[-1])


def test_who_waits_is_let_in_in_order_as_others_end() -> None:
    gate = Gate()
    for number in range(5):
        assert gate.come(A, str(number))
    assert (gate.started, len(gate.room)) == (["0", "1"], 3)
    gate.end()
    assert gate.started == ["0", "1", "2"]
    gate.come(A, "late")
    for _ in range(5):
        gate.end()
    assert gate.started == ["0", "1", "2", "3", "4", "late"]
    assert len(gate.room) == 0


def test_functions_that_share_take_turns() -> None:
    gate = Gate()
    for number in range(6):
        gate.come(A, f"a{number}")
    for number in range(3):
        gate.come(B, f"b{number}")
    for _ in range(6):
        gate.end()
    assert gate.started == ["a0", "a1", "a2", "b0", "a3", "b1", "a4", "b2"]


def test_nobody_waits_for_longer_than_is_said_and_a_refusal_comes_once() -> None:
    gate = Gate()
    for number in range(4):
        gate.come(A, str(number), until_s=float(number))
    gate.room.tick(2.0)
    assert gate.refused == ["2"]
    gate.room.tick(3.0)
    gate.room.tick(9.0)
    assert (gate.refused, len(gate.room)) == (["2", "3"], 0)


def test_what_can_not_be_let_in_at_all_does_not_wait() -> None:
    gate = Gate()
    gate.limit(A, 0)
    assert not gate.come(A, "a")
    gate.limit(FunctionKey("1", "ns", TOTAL), 100)
    assert not gate.come(B, "b")


def test_who_waits_goes_where_its_function_belongs_when_limits_change() -> None:
    gate = Gate(512)
    for number in range(6):
        gate.come(A, f"a{number}")
    assert gate.started == ["a0", "a1", "a2", "a3"]
    gate.limit(A, 256)
    gate.come(B, "b0")
    assert gate.started[4:] == ["b0"], "what a reservation leaves is free for others"
    gate.end()
    gate.end()
    assert gate.started[5:] == [], "two of its two still run"
    gate.end()
    assert gate.started[5:] == ["a4"]
    gate.limit(A, 384)
    assert gate.started[6:] == ["a5"], "a change lets in what fits now"


def test_one_that_ends_as_soon_as_it_is_started_keeps_the_line_moving() -> None:
    gate = Gate(128)
    gate.come(A, "first")

    def start(count: FunctionCount, number: int) -> None:
        gate.started.append(str(number))
        gate.counts.leave(count, 128, DONE)
        gate.room.freed(count.budgets[-1])

    count = gate.counts.of(A)
    for number in range(5_000):
        gate.room.add(Waiter(1.0, b"", A, count, 128, partial(start, count, number), lambda: None))
    gate.end()
    assert gate.started == ["first", *map(str, range(5_000))]
    assert len(gate.room) == 0


def test_one_that_is_dropped_is_refused_and_the_others_stay_in_line() -> None:
    gate = Gate()
    for number in range(5):
        gate.come(A, str(number))
    gate.room.drop(b"3")
    gate.room.drop(b"3")
    assert (gate.refused, len(gate.room)) == (["3"], 2)
    gate.end()
    gate.end()
    assert gate.started == ["0", "1", "2", "4"]


def test_a_count_with_waiters_is_not_forgotten() -> None:
    gate = Gate(128)
    gate.come(B, "runs")
    gate.come(A, "waits")
    count = gate.counts.of(A)
    for number in range(3):
        gate.counts.close_windows(gateway="g", term=1, number=number, unix_ms=0, span_ms=1)
    assert gate.counts.of(A) is count


steps = st.one_of(
    st.tuples(st.just("come"), st.sampled_from([A, B])),
    st.tuples(st.just("end"), st.integers(0, 5)),
    st.tuples(st.just("tick"), st.integers(0, 3)),
    st.tuples(st.sampled_from([None, 0, 128, 256]), st.sampled_from([A, B])),
)


@given(st.lists(steps, max_size=50))
def test_each_is_started_or_refused_once_and_nobody_stays_when_there_is_room(
    history: list[tuple[object, object]],
) -> None:
    gate, came, turned_away, now = Gate(384), 0, 0, 0.0
    for what, which in history:
        if what == "come":
            assert isinstance(which, FunctionKey)
            turned_away += not gate.come(which, str(came), until_s=now + 2)
            came += 1
        elif what == "end":
            assert isinstance(which, int)
            if which < len(gate.running):
                gate.end(which)
        elif what == "tick":
            assert isinstance(which, int)
            now += which
            gate.room.tick(now)
        else:
            assert isinstance(which, FunctionKey)
            assert what is None or isinstance(what, int)
            gate.limit(which, what)
    while gate.running:
        gate.end()
    for key in (A, B):
        gate.limit(key, None)
    while gate.running:
        gate.end()
    assert len(gate.room) == 0
    assert sorted(gate.started + gate.refused, key=int) == sorted(set(gate.started + gate.refused), key=int)
    assert len(gate.started) + len(gate.refused) + turned_away == came
