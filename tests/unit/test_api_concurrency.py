"""Limits of concurrency by the cloud API: what each action accepts, refuses and shows, one claim a test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest.api import services as services_module
from tests.api_fakes import APPID, FakeFabric, creation
from tests.unit.test_api_versions import HELLO, ask, code, settle

PUT, GET, DELETE = (f"{verb}ReservedConcurrencyConfig" for verb in ("Put", "Get", "Delete"))
TOTAL = "PutTotalConcurrencyConfig"


@pytest.fixture
async def fabric() -> FakeFabric:
    """Functions hello and other in default, and hello in ns."""
    made = FakeFabric()
    assert await ask(made, "CreateNamespace", {"Namespace": "ns"}) == {}
    for fields in (creation(), creation("other"), creation(Namespace="ns")):
        assert await ask(made, "CreateFunction", fields) == {}
    await settle()
    return made


async def reserved(fabric: FakeFabric, **fields: Any) -> Any:
    return (await ask(fabric, GET, {**HELLO, **fields}))["ReservedMem"]


async def usage(fabric: FakeFabric) -> dict[str, Any]:
    account = (await ask(fabric, "GetAccount", {}))["AccountUsage"]
    rows = {row["Namespace"]: row for row in account.pop("Namespace")}
    return {**account, **rows}


async def test_a_reservation_is_put_changed_shown_and_deleted(fabric: FakeFabric) -> None:
    assert await reserved(fabric) is None
    assert await ask(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 256}) == {}
    assert await reserved(fabric) == 256
    assert await ask(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 0}) == {}
    assert await reserved(fabric) == 0
    assert await reserved(fabric, Namespace="ns") is None, "it is another function"
    shown = await ask(fabric, "GetFunction", HELLO)
    assert (shown["ReservedConcurrencyMem"], shown["TotalProvisionedConcurrencyMem"]) == (0, 0)
    listed = {f["FunctionName"]: f for f in (await ask(fabric, "ListFunctions", {}))["Functions"]}
    assert {name: f["ReservedConcurrencyMem"] for name, f in listed.items()} == {"hello": 0, "other": None}
    for _ in range(2):
        assert await ask(fabric, DELETE, HELLO) == {}
        assert await reserved(fabric) is None


@pytest.mark.parametrize(
    ("action", "fields", "wanted"),
    [
        (PUT, {"ReservedConcurrencyMem": None}, "MissingParameter"),
        (PUT, {"ReservedConcurrencyMem": "128"}, "InvalidParameter"),
        (PUT, {"ReservedConcurrencyMem": -1}, "LimitExceeded.FunctionReservedConcurrencyMemory"),
        (PUT, {"ReservedConcurrencyMem": 115_201}, "LimitExceeded.FunctionReservedConcurrencyMemory"),
        (PUT, {"ReservedConcurrencyMem": 115_200}, ""),
        (PUT, {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
        (PUT, {"FunctionName": None}, "MissingParameter"),
        (PUT, {"Namespace": "none"}, "ResourceNotFound.Namespace"),
        (GET, {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
        (GET, {"Namespace": "none"}, "ResourceNotFound.Namespace"),
        (DELETE, {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
        (DELETE, {"FunctionName": "x" * 61}, "InvalidParameterValue.FunctionName"),
        (TOTAL, {"TotalConcurrencyMem": None}, "MissingParameter"),
        (TOTAL, {"TotalConcurrencyMem": 12_799}, "LimitExceeded.TotalConcurrencyMemory"),
        (TOTAL, {"TotalConcurrencyMem": 128_001}, "LimitExceeded.TotalConcurrencyMemory"),
        (TOTAL, {"TotalConcurrencyMem": 12_800}, ""),
        (TOTAL, {"TotalConcurrencyMem": 128_000}, ""),
        (TOTAL, {"Namespace": "none"}, "ResourceNotFound.Namespace"),
        (TOTAL, {"FunctionName": "hello"}, "UnknownParameter"),
    ],
)
async def test_each_request_has_its_code_and_what_is_refused_changes_nothing(
    fabric: FakeFabric, action: str, fields: dict[str, Any], wanted: str
) -> None:
    good: dict[str, Any] = {**HELLO, "ReservedConcurrencyMem": 128} if action == PUT else {**HELLO}
    if action == TOTAL:
        good = {"TotalConcurrencyMem": 20_000}
    before = await usage(fabric)
    assert await code(fabric, action, {**good, **fields}) == wanted
    if wanted:
        assert await usage(fabric) == before


async def test_the_sums_are_those_of_the_namespace_and_of_the_tenant(fabric: FakeFabric) -> None:
    other = {"FunctionName": "other"}
    assert await code(fabric, TOTAL, {"TotalConcurrencyMem": 20_000}) == ""
    assert await code(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 7_200}) == ""
    assert await code(fabric, PUT, {**other, "ReservedConcurrencyMem": 1}) == "FailedOperation.ReservedExceedTotal"
    assert await code(fabric, PUT, {**other, "ReservedConcurrencyMem": 0}) == "", "blocking takes nothing"
    assert await code(fabric, TOTAL, {"TotalConcurrencyMem": 19_999}) == "FailedOperation.ReservedExceedTotal"
    elsewhere = {**HELLO, "Namespace": "ns"}
    exceeds = "FailedOperation.ReservedExceedTotal"
    assert await code(fabric, PUT, {**elsewhere, "ReservedConcurrencyMem": 115_200 - 7_199}) == exceeds
    assert await code(fabric, PUT, {**elsewhere, "ReservedConcurrencyMem": 115_200 - 7_200}) == ""
    assert await ask(fabric, DELETE, HELLO) == {}
    assert await code(fabric, PUT, {**other, "ReservedConcurrencyMem": 7_200}) == ""


async def test_the_account_shows_totals_and_what_is_reserved(fabric: FakeFabric) -> None:
    await ask(fabric, TOTAL, {"TotalConcurrencyMem": 20_000})
    await ask(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 512})
    await ask(fabric, PUT, {"FunctionName": "other", "ReservedConcurrencyMem": 256})
    await ask(fabric, PUT, {**HELLO, "Namespace": "ns", "ReservedConcurrencyMem": 128})
    shown = await usage(fabric)
    memory = ("TotalConcurrencyMem", "TotalAllocatedConcurrencyMem", "TotalAllocatedProvisionedMem")
    assert tuple(shown["default"][name] for name in memory) == (20_000, 768, 0)
    assert tuple(shown["ns"][name] for name in memory) == (128_000, 128, 0)
    assert (shown["TotalConcurrencyMem"], shown["TotalAllocatedConcurrencyMem"]) == (128_000, 896)
    assert shown["UserConcurrencyMemLimit"] == 128_000
    await ask(fabric, TOTAL, {"TotalConcurrencyMem": 30_000, "Namespace": "ns"})
    assert (await usage(fabric))["UserConcurrencyMemLimit"] == 50_000


async def test_two_at_once_never_get_more_than_there_is(fabric: FakeFabric) -> None:
    """The gateways see an older state; streams decides."""
    wanted = [{"FunctionName": name, "ReservedConcurrencyMem": 60_000} for name in ("hello", "other")]
    codes = await asyncio.gather(*(code(fabric, PUT, fields) for fields in wanted))
    assert sorted(codes) == ["", "FailedOperation.ReservedExceedTotal"]


async def test_a_function_that_goes_takes_no_reservation(fabric: FakeFabric) -> None:
    fabric.streams.delay_s = None
    await ask(fabric, "DeleteFunction", HELLO)
    assert await code(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 128}) in (
        "FailedOperation.FunctionStatusError",
        "ResourceNotFound.FunctionName",
    )


async def test_a_change_that_is_not_seen_in_time_is_a_coded_error(
    fabric: FakeFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_module, "OUTCOME_S", 0.05)
    fabric.streams.delay_s = None
    assert await code(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 128}) == "FailedOperation"
    assert f"{APPID}/default/hello" not in fabric.streams.limits.rows


async def test_limits_end_with_what_they_are_for(fabric: FakeFabric) -> None:
    rows = fabric.streams.limits.rows
    for fields in (HELLO, {"FunctionName": "other"}, {**HELLO, "Namespace": "ns"}):
        assert await ask(fabric, PUT, {**fields, "ReservedConcurrencyMem": 128}) == {}
    await ask(fabric, TOTAL, {"TotalConcurrencyMem": 20_000, "Namespace": "ns"})
    await ask(fabric, "DeleteFunction", HELLO)
    await settle()
    assert sorted(rows) == [f"{APPID}/default/other", f"{APPID}/ns/$total", f"{APPID}/ns/hello"]
    await ask(fabric, "DeleteFunction", {**HELLO, "Namespace": "ns"})
    await settle()
    assert await ask(fabric, "DeleteNamespace", {"Namespace": "ns"}) == {}
    await settle()
    assert sorted(rows) == [f"{APPID}/default/other"]


async def test_a_sweep_finds_what_was_left_and_leaves_what_is_needed(fabric: FakeFabric) -> None:
    assert await ask(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 128}) == {}
    assert await ask(fabric, TOTAL, {"TotalConcurrencyMem": 30_000}) == {}
    assert await ask(fabric, TOTAL, {"TotalConcurrencyMem": 30_000, "Namespace": "ns"}) == {}
    fabric.upkeep.sweep()
    await settle()
    assert len(fabric.streams.limits.rows) == 3
    del fabric.functions.rows[f"{APPID}/default/hello"]
    del fabric.functions.rows[f"{APPID}/ns/hello"]
    del fabric.streams.namespaces.rows[f"{APPID}/ns"]
    fabric.upkeep.sweep()
    await settle()
    assert list(fabric.streams.limits.rows) == [f"{APPID}/default/$total"]


async def test_a_new_function_keeps_what_was_put_for_it(fabric: FakeFabric) -> None:
    """A gateway that hears late that the one before it is gone means the row that it saw."""
    assert await ask(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 128}) == {}
    old = fabric.streams.limits.rows[f"{APPID}/default/hello"]
    assert await ask(fabric, PUT, {**HELLO, "ReservedConcurrencyMem": 256}) == {}
    fabric.upkeep._end(old)
    await settle()
    assert await reserved(fabric) == 256
