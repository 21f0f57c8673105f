"""The decisions about tenants: namespaces and keys, what is refused, and that a crash changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import avro
from schemas.concurrency import TOTAL, LimitRecord, ProvisionRecord
from schemas.limits import KEYS_PER_TENANT, LAYERS_PER_TENANT, NAMESPACES_PER_TENANT, VERSIONS_PER_LAYER
from schemas.records import FunctionConfig, Outcome
from schemas.tenants import TENANT_COMMAND_KINDS, KeyRecord, LayerRecord, NamespaceRecord, TenantCommand
from schemas.topics import KEYS, LAYERS, LIMITS, NAMESPACES, OUTCOMES, PROVISIONS, TENANT_COMMANDS
from streams import tenants
from streams.tenancy import TenantProcessor
from streams.tenants import NEW, Gone, Row, TenantEntry, take
from tests.unit.test_streams_processors import Memory

APPID, NOW_MS = "1250000000", 1_700_000_000_000


def key(name: str, *, applied: int = -1, expires_ms: int = 0) -> KeyRecord:
    return KeyRecord(0, name, APPID, "1", b"sealed", b"", 0, "", True, NOW_MS, 0, expires_ms, applied, "")


def namespace(name: str, description: str = "") -> NamespaceRecord:
    return NamespaceRecord(0, APPID, "1", name, description, NOW_MS, NOW_MS, -1, "")


def layer(name: str, version: int = 0) -> LayerRecord:
    return LayerRecord(0, APPID, "1", name, version, "ab" * 32, 9, ("Python3.10",), "words", "MIT", 0, -1, "")


def limit(function: str, memory_mib: int = 256, *, namespace: str = "ns", applied: int = -1) -> LimitRecord:
    return LimitRecord(0, APPID, "1", namespace, function, memory_mib, applied, "")


def provision(version: str, target: int = 2, *, applied: int = -1) -> ProvisionRecord:
    config = FunctionConfig(version, "ab" * 32, 9, "index.main_handler", "Python3.10", 128, 3, 65)
    return ProvisionRecord(0, APPID, "1", "ns", "ff", version, target, config, 0, applied, "")


def wish(kind: str, row: Row | None, *, last_too: bool = False, at_ms: int = NOW_MS) -> TenantCommand:
    command = TenantCommand(f"c-{kind}", kind, at_ms, APPID, "1", last_too=last_too)
    if isinstance(row, LayerRecord):
        return replace(command, layer=row)
    if isinstance(row, LimitRecord):
        return replace(command, limit=row)
    if isinstance(row, ProvisionRecord):
        return replace(command, provision=row)
    return replace(command, key=row) if isinstance(row, KeyRecord) else replace(command, namespace=row)


def after(*commands: TenantCommand) -> TenantEntry:
    entry = NEW
    for offset, command in enumerate(commands):
        entry, outputs = take(entry, command, offset)
        assert isinstance(outputs[-1], Outcome)
        assert outputs[-1].code == "", outputs
    return entry


def refusal(entry: TenantEntry, command: TenantCommand) -> str:
    then, outputs = take(entry, command, entry.applied + 1)
    [outcome] = outputs
    assert (then.namespaces, then.keys, then.layers) == (entry.namespaces, entry.keys, entry.layers)
    assert then.allotment == entry.allotment
    assert isinstance(outcome, Outcome)
    assert outcome.code
    return outcome.code


def test_a_namespace_is_made_changed_and_deleted() -> None:
    entry = after(wish("create-namespace", namespace("ns", "one")))
    later = wish("update-namespace", replace(namespace("ns", "two"), created_unix_ms=1), at_ms=NOW_MS + 5)
    entry, [row, _] = take(entry, later, 7)
    assert isinstance(row, NamespaceRecord)
    assert (row.description, row.created_unix_ms, row.modified_unix_ms, row.applied) == ("two", NOW_MS, NOW_MS + 5, 7)
    assert row.seq > 7
    entry, [gone, _] = take(entry, wish("delete-namespace", namespace("ns")), 8)
    assert gone == Gone(f"{APPID}/ns")
    assert refusal(entry, wish("delete-namespace", namespace("ns"))) == "ResourceNotFound.Namespace"


def test_default_is_there_and_stays() -> None:
    assert refusal(NEW, wish("create-namespace", namespace("default"))) == "ResourceInUse.Namespace"
    assert refusal(NEW, wish("delete-namespace", namespace("default"))) == "InvalidParameterValue.DefaultNamespace"
    entry = after(wish("update-namespace", namespace("default", "mine")))
    assert [n.description for n in entry.namespaces] == ["mine"]


def test_there_are_so_many_namespaces_default_among_them() -> None:
    named = [namespace("default", "counts"), *(namespace(f"n{i}") for i in range(NAMESPACES_PER_TENANT - 1))]
    kinds = ["update-namespace"] + ["create-namespace"] * (len(named) - 1)
    entry = after(*(wish(kind, row) for kind, row in zip(kinds, named, strict=True)))
    assert refusal(entry, wish("create-namespace", namespace("more"))) == "LimitExceeded.Namespace"
    assert refusal(entry, wish("create-namespace", namespace("n1"))) == "ResourceInUse.Namespace"


def test_a_tenant_has_so_many_keys() -> None:
    entry = after(*(wish("create-key", key(f"k{i}")) for i in range(KEYS_PER_TENANT)))
    assert refusal(entry, wish("create-key", key("more"))) == "LimitExceeded"


def test_of_two_rotations_at_once_one_is_refused() -> None:
    entry = after(wish("create-key", key("k")))
    rotation = wish("rotate-key", replace(key("k", applied=0), sealed=b"new", earlier=b"sealed"))
    entry, [row, _] = take(entry, rotation, 1)
    assert isinstance(row, KeyRecord)
    assert (row.sealed, row.earlier, row.applied) == (b"new", b"sealed", 1)
    assert refusal(entry, rotation) == "FailedOperation"
    assert refusal(entry, wish("rotate-key", key("other"))) == "ResourceNotFound"


def test_the_last_usable_key_stays_unless_it_may_go_too() -> None:
    entry = after(wish("create-key", key("k")), wish("create-key", key("dead", expires_ms=NOW_MS)))
    assert refusal(entry, wish("delete-key", key("k"))) == "FailedOperation"
    _, [gone, _] = take(entry, wish("delete-key", key("k"), last_too=True), 2)
    assert gone == Gone("k")
    _, [gone, _] = take(entry, wish("delete-key", key("dead")), 2)
    assert gone == Gone("dead")


def test_a_layers_versions_are_numbered_and_none_comes_twice_while_it_is_there() -> None:
    entry, [row, outcome] = take(NEW, wish("publish-layer", layer("l")), 4)
    assert row == replace(layer("l", 1), seq=5, applied=4, command_id="c-publish-layer", created_unix_ms=NOW_MS)
    assert outcome == Outcome("c-publish-layer", APPID, result="1")
    entry, [row, outcome] = take(entry, wish("publish-layer", layer("l")), 5)
    assert outcome == Outcome("c-publish-layer", APPID, result="2")
    entry, [gone, outcome] = take(entry, wish("delete-layer", layer("l", 2)), 6)
    assert (gone, outcome) == (Gone(f"{APPID}/l@2"), Outcome("c-delete-layer", APPID))
    assert refusal(entry, wish("delete-layer", layer("l", 2))) == "ResourceNotFound.LayerVersion"
    assert refusal(entry, wish("delete-layer", layer("other", 1))) == "ResourceNotFound.LayerVersion"
    entry, [row, _] = take(entry, wish("publish-layer", layer("l")), 7)
    assert isinstance(row, LayerRecord)
    assert row.version == 3


def test_there_are_so_many_layers_and_so_many_versions_of_one() -> None:
    entry = after(*(wish("publish-layer", layer("l0")) for _ in range(VERSIONS_PER_LAYER)))
    assert refusal(entry, wish("publish-layer", layer("l0"))) == "LimitExceeded.LayerVersions"
    for number in range(1, LAYERS_PER_TENANT):
        entry, _ = take(entry, wish("publish-layer", layer(f"l{number}")), entry.applied + 1)
    assert refusal(entry, wish("publish-layer", layer("more"))) == "LimitExceeded.Layers"
    entry, _ = take(entry, wish("delete-layer", layer("l1", 1)), entry.applied + 1)
    entry, _ = take(entry, wish("publish-layer", layer("more")), entry.applied + 1)
    assert len(entry.layers) == LAYERS_PER_TENANT
    assert len(avro.encode(entry)) < 20_000, "an entry must stay far below what a record may have"


def test_a_limit_is_put_and_deleted_and_refused_past_the_sum() -> None:
    entry, [row, outcome] = take(NEW, wish("put-reserved", limit("ff", 100_000)), 4)
    assert row == replace(limit("ff", 100_000), seq=5, applied=4, command_id="c-put-reserved")
    assert outcome == Outcome("c-put-reserved", APPID)
    assert refusal(entry, wish("put-reserved", limit("gg", 15_201))) == "FailedOperation.ReservedExceedTotal"
    assert refusal(entry, wish("put-total", limit("", 112_799))) == "FailedOperation.ReservedExceedTotal"
    assert refusal(entry, wish("put-total", limit("", 128_001))) == "LimitExceeded.TotalConcurrencyMemory"
    entry, [row, _] = take(entry, wish("put-total", limit("", 112_800)), 5)
    assert row == replace(limit(TOTAL, 112_800), seq=6, applied=5, command_id="c-put-total")
    assert not tenants.is_forgettable(entry, NOW_MS * 2)
    then, [outcome] = take(entry, wish("delete-limit", limit("ff", applied=3)), 6)
    assert (then.allotment, outcome) == (entry.allotment, Outcome("c-delete-limit", APPID)), "it was changed since"
    entry, [gone, _] = take(entry, wish("delete-limit", limit("ff", applied=4)), 7)
    assert gone == Gone(f"{APPID}/ns/ff")
    entry, [gone, _] = take(entry, wish("delete-limit", limit(TOTAL)), 8)
    assert gone == Gone(f"{APPID}/ns/$total")
    assert tenants.is_forgettable(entry, NOW_MS * 2)


def test_a_provision_is_put_and_deleted_and_refused_past_the_sum() -> None:
    entry, [row, _] = take(NEW, wish("put-provision", provision("1", 500)), 4)
    assert row == replace(provision("1", 500), seq=5, applied=4, command_id="c-put-provision", modified_unix_ms=NOW_MS)
    assert refusal(entry, wish("put-provision", provision("2", 401))) == "FailedOperation.ProvisionedExceedAvailable"
    entry, _ = take(entry, wish("put-provision", provision("2", 400)), 5)
    assert refusal(entry, wish("put-reserved", limit("gg", 1))) == "FailedOperation.ReservedExceedTotal"
    assert refusal(entry, wish("put-reserved", limit("ff", 999 * 128))) == "FailedOperation.ProvisionedExceedReserved"
    entry, [gone, _] = take(entry, wish("delete-provision", provision("1", applied=4)), 6)
    assert gone == Gone(f"{APPID}/ns/ff/1")
    _, [outcome] = take(entry, wish("delete-provision", provision("1")), 7)
    assert outcome == Outcome("c-delete-provision", APPID), "there is none any more"


def test_an_entry_with_all_the_limits_there_can_be_is_far_below_what_a_record_may_have() -> None:
    entry = NEW
    names = [("x" * 29 + str(n % 5), f"{'f' * 57}{n:03}") for n in range(250)]
    for offset, (where, function) in enumerate(names):
        entry, _ = take(entry, wish("put-reserved", limit(function, 1, namespace=where)), offset)
    rows = [replace(provision(str(n), 1), namespace="x" * 30, function="f" * 60) for n in range(800)]
    for offset, row in enumerate(rows, 250):
        entry, _ = take(entry, wish("put-provision", row), offset)
    assert entry.allotment is not None
    assert (len(entry.allotment.reserved), len(entry.allotment.provisions)) == (250, 800)
    assert len(avro.encode(entry)) < 200_000


@pytest.mark.parametrize("kind", [*TENANT_COMMAND_KINDS, "paint-namespace"])
def test_a_command_that_does_not_say_what_it_is_about_is_refused(kind: str) -> None:
    assert refusal(NEW, wish(kind, None)) in ("InternalError", "UnsupportedOperation")


def commands() -> st.SearchStrategy[TenantCommand]:
    names = st.sampled_from(["default", "a", "b"])
    rows: st.SearchStrategy[Row] = names.map(namespace) | st.builds(key, names, applied=st.integers(-1, 6))
    rows |= st.builds(limit, names | st.just(TOTAL), st.integers(0, 120_000), applied=st.integers(-1, 6))
    rows |= st.builds(provision, st.sampled_from("12"), st.integers(1, 900), applied=st.integers(-1, 6))
    rows |= st.builds(layer, names, st.integers(1, 3))
    return st.builds(wish, st.sampled_from(TENANT_COMMAND_KINDS), rows, last_too=st.booleans())


@given(st.lists(commands(), max_size=12), st.data())
def test_events_that_come_again_change_nothing_and_seq_only_grows(
    history: list[TenantCommand], data: st.DataObject
) -> None:
    entry, seqs = NEW, [-1]
    for offset, command in enumerate(history):
        then, outputs = take(entry, command, offset)
        again, same = take(avro.decode(TenantEntry, avro.encode(then)), command, offset)
        assert (again, same) == (then, outputs)
        older = data.draw(st.integers(0, offset))
        if older < offset:
            assert take(then, history[older], older) == (then, ())
        seqs.append(then.seq)
        entry = then
    assert seqs == sorted(set(seqs))


async def test_the_processor_writes_rows_to_their_topics_and_state_before_outputs() -> None:
    memory = Memory()
    processor = TenantProcessor(memory, memory)
    for offset, command in enumerate(
        [
            wish("create-namespace", namespace("ns")),
            wish("create-key", key("k")),
            wish("delete-namespace", namespace("ns")),
            wish("publish-layer", layer("l")),
            wish("delete-layer", layer("l", 1)),
            wish("put-total", limit("", 20_000)),
            wish("put-reserved", limit("gg")),
            wish("delete-limit", limit("gg")),
            wish("put-provision", provision("1")),
            wish("delete-provision", provision("1")),
        ]
    ):
        await processor.handle(memory.record(TENANT_COMMANDS, command, offset=offset, key=APPID.encode()))
    where = [(p.topic, p.partition, p.key, p.value is None) for p in memory.published if p.topic != OUTCOMES]
    assert where == [
        (NAMESPACES, 2, f"{APPID}/ns".encode(), False),
        (KEYS, 2, b"k", False),
        (NAMESPACES, 2, f"{APPID}/ns".encode(), True),
        (LAYERS, 2, f"{APPID}/l@1".encode(), False),
        (LAYERS, 2, f"{APPID}/l@1".encode(), True),
        (LIMITS, 2, f"{APPID}/ns/$total".encode(), False),
        (LIMITS, 2, f"{APPID}/ns/gg".encode(), False),
        (LIMITS, 2, f"{APPID}/ns/gg".encode(), True),
        (PROVISIONS, 2, f"{APPID}/ns/ff/1".encode(), False),
        (PROVISIONS, 2, f"{APPID}/ns/ff/1".encode(), True),
    ]
    assert memory.log[:4] == ["put", f"publish {NAMESPACES}", f"publish {OUTCOMES}", "done"]


async def test_the_processor_lets_go_what_it_can_not_read_or_is_keyed_wrongly() -> None:
    memory = Memory()
    processor = TenantProcessor(memory, memory)
    await processor.handle(memory.record(TENANT_COMMANDS, b"no avro", key=APPID.encode()))
    await processor.handle(memory.record(TENANT_COMMANDS, wish("create-key", key("k")), key=b"another"))
    assert memory.log == ["done", "done"]


async def test_a_tenant_that_has_nothing_is_forgotten() -> None:
    memory = Memory()
    processor = TenantProcessor(memory, memory)
    await processor.handle(memory.record(TENANT_COMMANDS, wish("delete-key", key("k")), key=APPID.encode()))
    assert processor.due() == [APPID.encode()]
    await processor.forget(APPID.encode())
    assert list(memory.keys()) == []
    assert tenants.is_forgettable(NEW, NOW_MS)
