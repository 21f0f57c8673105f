"""Commit metadata and tracker: what a restart may conclude from a commit."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from ingest.lanes import marks
from schemas.tracker import CommitTracker

EPOCHS = st.integers(0, 2**63 - 1)
OFFSETS = st.integers(0, 2**40)


@st.composite
def finished_ranges(draw: st.DrawFn, offset: int, *, most: int = 50, widest: int = 2**30) -> list[tuple[int, int]]:
    """Half-open ranges above `offset`, ascending, not touching."""
    sizes = st.integers(1, 3) | st.integers(1, widest)
    ranges, at = [], offset
    for _ in range(draw(st.integers(0, most))):
        first = at + draw(sizes)
        at = first + draw(sizes)
        ranges.append((first, at))
    return ranges


@given(epoch=EPOCHS, offset=OFFSETS, data=st.data())
def test_marks_read_as_they_were_written(epoch: int, offset: int, data: st.DataObject) -> None:
    ranges = data.draw(finished_ranges(offset))
    text, complete = marks.encode(epoch, offset, ranges)
    assert complete
    assert marks.decode(offset, text) == marks.Marks(epoch, tuple(ranges))
    assert marks.parse_epoch(text) == epoch


@given(epoch=EPOCHS, offset=OFFSETS, runs=st.integers(0, 6_000), gap=st.integers(1, 20), length=st.integers(1, 2**50))
@example(epoch=2**63 - 1, offset=0, runs=6_000, gap=1, length=1)
def test_marks_never_outgrow_the_limit_and_keep_the_lowest_runs(
    epoch: int, offset: int, runs: int, gap: int, length: int
) -> None:
    length = min(length, 2**62 // (runs + 1))
    ranges = [(first := offset + gap + i * (gap + length), first + length) for i in range(runs)]
    text, complete = marks.encode(epoch, offset, ranges)
    assert len(text) <= marks.LIMIT_CHARS
    assert text.isascii()
    kept = marks.decode(offset, text).finished
    assert kept == tuple(ranges[: len(kept)])
    assert complete == (len(kept) == runs)
    if not complete:  # as many as fit: the next one would not have
        assert len(text) > marks.LIMIT_CHARS - 40


def test_the_worst_pattern_keeps_more_than_two_thousand_runs() -> None:
    text, _ = marks.encode(1_700_000_000_000, 0, ((i, i + 1) for i in range(1, 100_000, 2)))
    assert len(marks.decode(0, text).finished) > 2_000


@given(
    text=st.none() | st.text(max_size=200) | st.from_regex(r"v[12] e=[0-9]{0,25} d=[0-9a-f.,x]{0,60}"), offset=OFFSETS
)
@example(text="v1 e=5 d=0,", offset=0)
@example(text="v1 e=5 d=1.0,", offset=0)
@example(text="v1 e=5 d=ffffffffffffffff,", offset=0)
@example(text="v1 e=٣ d=", offset=0)
def test_foreign_metadata_never_raises_and_never_claims_what_it_does_not_say(text: str | None, offset: int) -> None:
    found = marks.decode(offset, text)
    assert marks.parse_epoch(text) >= 0
    previous = offset
    for first, end in found.finished:
        assert previous < first < end < 2**63
        previous = end


def test_text_of_another_writer_means_nothing_is_known() -> None:
    for text in ("", "hello", "v2 e=1 d=", "v1 e=1", "v1 e=1 d=1", "v1 e=1 d=0,", "v1 e=1 d=, p=x", "v1 e=-1 d="):
        assert marks.decode(7, text) == marks.UNKNOWN


@st.composite
def logs(draw: st.DrawFn) -> list[int]:
    """Offsets that exist in a log, ascending, with the gaps that compaction and transactions leave."""
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 5]), min_size=1, max_size=60))
    offsets, at = [], draw(st.integers(0, 100))
    for step in steps:
        offsets.append(at)
        at += step
    return offsets


@given(log=logs(), data=st.data())
def test_a_commit_never_passes_an_unfinished_record_and_knows_every_finished_one(
    log: list[int], data: st.DataObject
) -> None:
    tracker = CommitTracker(log[0])
    delivered = log[: data.draw(st.integers(0, len(log)))]
    for offset in delivered:
        assert tracker.deliver(offset)
    finished = set(data.draw(st.lists(st.sampled_from(delivered), unique=True)) if delivered else [])
    for offset in finished:
        tracker.finish(offset)
    unfinished = [offset for offset in delivered if offset not in finished]
    end = delivered[-1] + 1 if delivered else log[0]
    assert tracker.committable == (unfinished[0] if unfinished else end)
    claimed = {offset for first, last in tracker.runs() for offset in range(first, last)}
    assert claimed == set(range(tracker.committable, end)) - set(unfinished)


@given(log=logs(), data=st.data())
def test_a_restart_runs_exactly_what_was_not_known_to_be_finished(log: list[int], data: st.DataObject) -> None:
    """Several ownerships, each delivering and finishing some, each restored from the last commit."""
    offset, metadata = log[0], ""
    ran: set[int] = set()
    for epoch in range(data.draw(st.integers(1, 4))):
        tracker = CommitTracker(offset, marks.decode(offset, metadata).finished)
        ahead = [o for o in log if o >= offset]
        delivered = ahead[: data.draw(st.integers(0, len(ahead)))]
        to_run = [o for o in delivered if tracker.deliver(o)]
        assert set(to_run) == set(delivered) - ran
        finished = data.draw(st.lists(st.sampled_from(to_run), unique=True)) if to_run else []
        for o in finished:
            tracker.finish(o)
            ran.add(o)
        offset = tracker.committable
        metadata, complete = marks.encode(epoch, offset, tracker.runs())
        assert complete
        assert all(o in ran for o in log if o < offset)
        known = {o for first, end in marks.decode(offset, metadata).finished for o in range(first, end)}
        assert known & set(log) == {o for o in ran if o >= offset}


def test_gaps_in_the_log_do_not_hold_the_commit() -> None:
    tracker = CommitTracker(10)
    for offset in (15, 17, 30):
        tracker.deliver(offset)
        tracker.finish(offset)
    assert tracker.committable == 31


def test_memory_is_of_the_unfinished_only() -> None:
    tracker = CommitTracker(0)
    for offset in range(50_000):
        tracker.deliver(offset)
        if offset:
            tracker.finish(offset)
    assert list(tracker.unfinished) == [0]
    assert list(tracker.runs()) == [(1, 50_000)]
