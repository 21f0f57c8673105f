"""The shared words: names, topics, lifecycles, and that no record's schema changes unseen."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from schemas import avro, ids, lifecycle, runstatus
from schemas.topics import TOPICS

FINGERPRINTS = Path(__file__).parent.parent / "data" / "avro_fingerprints.json"


def test_no_record_schema_changed_without_being_written_down() -> None:
    """A changed fingerprint means that older records can't be read any more: add the old schema to the known ones, then update the file."""
    now = {spec.record.__name__: avro._shape(spec.record).header[2:].hex() for spec in TOPICS}
    assert now == json.loads(FINGERPRINTS.read_text())


def test_an_older_writers_record_is_read_through_its_known_schema() -> None:
    from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

    from schemas.records import Member

    old = avro.schema_of(Member)
    old["fields"] = [f for f in old["fields"] if f["name"] != "detail"]
    parsed = parse_schema(old)
    mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(parsed), "CRC-64-AVRO"))
    new = avro.encode(Member("agent", "a", "h", "z", "unix:@x", 1, 2))
    body = new[10:].removesuffix(b"\x04{}")
    assert avro.decode(Member, b"\xc3\x01" + mark + body, known={mark: parsed}).detail == "{}"


def test_topic_names_are_unique_and_of_the_fabrics_form() -> None:
    names = [spec.name for spec in TOPICS]
    assert len(set(names)) == len(names)
    assert all(name.startswith("penstock.") and name.endswith(".v1") and ids.is_topic(name) for name in names)


def test_every_topic_is_compacted_or_has_a_retention() -> None:
    assert [spec.name for spec in TOPICS if not spec.compacted and spec.retention_ms is None] == []


@pytest.mark.parametrize("name", ["ab", "a-b_c9", "A" * 60])
def test_function_names_that_scf_takes(name: str) -> None:
    assert ids.is_function_name(name)


@pytest.mark.parametrize("name", ["a", "9a", "a-", "a_", "a.b", "", "A" * 61, "a\n", "ä1"])
def test_function_names_that_scf_refuses(name: str) -> None:
    assert not ids.is_function_name(name)


def test_keys_are_spelled_and_parsed_alike() -> None:
    key = ids.TriggerKey(ids.FunctionKey("125", "ns", "fn"), "tr")
    assert ids.TriggerKey.parse(str(key)) == key
    assert ids.dead_letter_topic(key) == "penstock.dead.ns.fn.tr"


def test_every_move_of_a_function_ends_in_a_known_state_and_failed_states_can_be_left() -> None:
    for status in lifecycle.FunctionStatus:
        moves = {move for move in lifecycle.FunctionMove if lifecycle.after(status, move) is not None}
        assert moves, status
        if status.value.endswith("Failed"):
            assert lifecycle.FunctionMove.DELETE in moves


def test_every_run_status_but_ok_has_a_name_and_only_platform_ones_are_free_tries() -> None:
    assert set(runstatus.ERROR_NAMES) == set(runstatus.RunStatus) - {runstatus.RunStatus.OK}
    assert not runstatus.blames_platform(runstatus.RunStatus.USER_EXCEPTION)
    assert runstatus.blames_platform(runstatus.RunStatus.CONCURRENCY)


def test_no_other_installed_distribution_claims_one_of_our_package_names() -> None:
    """PyPI has `schemas`, `router` and `proxy`: installed beside us they would silently overwrite files."""
    owners = metadata.packages_distributions()
    ours = ("ingest", "streams", "router", "sandbox", "proxy", "schemas", "infra")
    assert {name: owners[name] for name in ours if set(owners.get(name, ())) - {"penstock"}} == {}
