"""How an alias divides: the right share, the same way each time, and no key changes sides without need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.lanes.versions import one_version
from router.aliases import Split, bounds_of, chosen, fits, record_share, split_of
from schemas.records import VersionMatch
from tests.commands import alias_record
from tests.records import record

weights = st.floats(0, 1)
keys = st.binary(max_size=40)


@given(st.none() | keys, st.integers(0, 2**31 - 1), st.integers(0, 2**62))
def test_a_share_is_in_the_unit_interval_and_the_same_each_time(key: bytes | None, partition: int, offset: int) -> None:
    share = record_share(key, partition, offset)
    assert 0.0 <= share < 1.0
    assert share == record_share(key, partition, offset)


@given(keys, st.tuples(st.integers(0, 9), st.integers(0, 99)), st.tuples(st.integers(0, 9), st.integers(0, 99)))
def test_a_keys_share_does_not_depend_on_where_its_record_stands(
    key: bytes, one: tuple[int, int], other: tuple[int, int]
) -> None:
    assert record_share(key, *one) == record_share(key, *other)


@given(keys, weights, weights)
def test_a_moved_weight_moves_only_keys_between_old_and_new_and_in_its_direction(
    key: bytes, before: float, after: float
) -> None:
    share = record_share(key, 0, 0)
    old, new = Split("1", "2", before).version(share), Split("1", "2", after).version(share)
    assert (old != new) == (min(before, after) <= share < max(before, after))
    if old != new:
        assert new == ("2" if after > before else "1")


@given(keys)
def test_weights_0_and_1_are_all_or_nothing(key: bytes) -> None:
    share = record_share(key, 0, 0)
    assert Split("1", "2", 0.0).version(share) == "1"
    assert Split("1", "2", 1.0).version(share) == "2"


@given(weights, st.sampled_from([b"user-%d", b"%d", b"order/%08d"]))
def test_the_additional_version_gets_its_share_of_keys_within_five_standard_deviations(
    weight: float, form: bytes
) -> None:
    count = 4_000
    split = Split("1", "2", weight)
    got = sum(split.version(record_share(form % i, 0, i)) == "2" for i in range(count))
    assert abs(got - count * weight) <= 5 * (count * weight * (1 - weight)) ** 0.5 + 1


@given(st.lists(st.sampled_from("abcdefgh-"), min_size=1, max_size=30), weights)
def test_a_batch_is_cut_where_the_version_changes(letters: list[str], weight: float) -> None:
    split = Split("1", "2", weight)
    records = [record(i, None if letter == "-" else letter) for i, letter in enumerate(letters)]
    seen = [split.version(record_share(r.key, r.partition, r.offset)) for r in records]
    version, all_of_them, count = one_version(split, records, ordered=True)
    assert all_of_them == records
    assert set(seen[:count]) == {version}
    assert count == len(records) or seen[count] != version


@given(st.lists(st.sampled_from("abcdefgh-"), min_size=1, max_size=30), weights)
def test_where_order_does_not_matter_a_batch_takes_all_records_of_its_version(
    letters: list[str], weight: float
) -> None:
    split = Split("1", "2", weight)
    records = [record(i, None if letter == "-" else letter) for i, letter in enumerate(letters)]
    seen = {r.offset: split.version(record_share(r.key, r.partition, r.offset)) for r in records}
    version, all_of_them, count = one_version(split, records, ordered=False)
    assert version == seen[0]
    assert [r.offset for r in all_of_them[:count]] == [o for o in seen if seen[o] == version]
    assert [r.offset for r in all_of_them[count:]] == [o for o in seen if seen[o] != version]


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-60, 60), st.booleans())
def test_a_range_holds_its_ends_only_when_it_is_closed(low: int, high: int, value: int, closed: bool) -> None:
    match = VersionMatch("2", "Age", "range", f"[{low},{high}]" if closed else f"({low},{high})")
    assert fits(match, {"Age": str(value)}) == (low <= value <= high if closed else low < value < high)


def test_what_is_no_range_or_no_integer_fits_nothing() -> None:
    assert [bounds_of(text) for text in ("", "1,2", "(1,2]", "[1;2]", "[a,b]", "[1,2] ", "(,)")] == [None] * 7
    match = VersionMatch("2", "Age", "range", "[1,9]")
    assert not any(fits(match, headers) for headers in ({}, {"Age": ""}, {"Age": "x"}, {"Age": "5.0"}, {"age": "5"}))


def test_a_rule_leads_to_its_version_and_all_else_to_the_main_one() -> None:
    alias = alias_record(version="1", rule="2")
    assert chosen(alias, headers={"User": "Bob"}, share=0.0) == "2"
    assert chosen(alias, headers={"User": "Eve"}, share=0.0) == "1"
    assert chosen(alias, headers=None, share=0.0) == "1"
    assert split_of(alias) is None


def test_a_weight_leads_its_share_to_the_additional_version() -> None:
    alias = alias_record(version="1", additional="2", weight=0.25)
    assert [chosen(alias, headers=None, share=s) for s in (0.0, 0.2499, 0.25, 0.99)] == ["2", "2", "1", "1"]
