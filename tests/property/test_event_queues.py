"""Queues of events by function: limits hold, nothing is lost, functions take turns."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ingest.events.queues import Item, Queues
from schemas.events import AsyncEvent

EVENT = AsyncEvent("r", "1", "2", "default", "f", "$LATEST", "$LATEST", b"{}", 0)
FUNCTIONS = "abcd"


def item(function: str) -> Item:
    return Item(replace(EVENT, function=function), lambda: None)


@given(
    st.lists(st.tuples(st.sampled_from(["put", "take", "done", "drop"]), st.sampled_from(FUNCTIONS)), max_size=80),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_limits_hold_and_each_item_starts_once_or_was_dropped(
    moves: list[tuple[str, str]], at_once: int, of_function: int, waiting: int
) -> None:
    queues = Queues(at_once=at_once, of_function=of_function, waiting=waiting)
    put: list[Item] = []
    running: list[Item] = []
    started: list[Item] = []

    def take() -> None:
        found = queues.take()
        running.extend(found)
        started.extend(found)
        assert queues.running == len(running) <= at_once
        for name in FUNCTIONS:
            assert sum(i.event.function == name for i in running) <= of_function

    for move, name in moves:
        if move == "put" and not queues.is_crowded(item(name).event.key):
            put.append(item(name))
            queues.put(put[-1])
        elif move == "take":
            take()
        elif move == "drop":
            for found in [i for i in put if not i.started and i.event.function == name][:1]:
                found.dropped = True
        elif move == "done" and running:
            queues.done(running.pop(0))
        for name in FUNCTIONS:
            left = sum(i.event.function == name and not i.started and not i.dropped for i in put)
            assert left <= waiting
    while True:
        take()
        if not running:
            break
        queues.done(running.pop(0))
    assert [i for i in put if i.started] == sorted(started, key=put.index)
    assert all(i.started != i.dropped for i in put)
    assert (queues.running, queues.waiting) == (0, 0)


def test_functions_take_turns() -> None:
    queues = Queues(at_once=4, of_function=10, waiting=10)
    for name in "aaaaaabc":
        queues.put(item(name))
    assert [i.event.function for i in queues.take()] == ["a", "b", "c", "a"]
