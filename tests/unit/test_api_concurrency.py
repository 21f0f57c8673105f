"""Limits of concurrency and provisioned workers by the cloud API: what each action accepts, refuses and shows, one claim a test."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ingest.api import services as services_module
from schemas.concurrency import ProvisionStatus
from schemas.records import Member
from tests.api_fakes import APPID, FakeFabric, creation
from tests.unit.test_api_versions import HELLO, ask, code, settle

PUT, GET, DELETE = (f"{verb}ReservedConcurrencyConfig" for verb in ("Put", "Get", "Delete"))
PROVISION, PROVISIONED, UNPROVISION = (f"{verb}ProvisionedConcurrencyConfig" for verb in ("Put", "Get", "Delete"))
V1 = {**HELLO, "Qualifier": "1"}
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
    for _ in range(3):
        fabric.upkeep.sweep()
    await settle()
    assert len(fabric.streams.limits.rows) == 3
    del fabric.functions.rows[f"{APPID}/default/hello"]
    del fabric.functions.rows[f"{APPID}/ns/hello"]
    del fabric.streams.namespaces.rows[f"{APPID}/ns"]
    fabric.upkeep.sweep()
    await settle()
    assert len(fabric.streams.limits.rows) == 3, "the function may be about to be seen"
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


# provisioned


@pytest.fixture
async def published(fabric: FakeFabric) -> FakeFabric:
    """hello has versions 1 and 2, of 128 MB; one agent is alive."""
    for _ in range(2):
        assert "Error" not in await ask(fabric, "PublishVersion", {**HELLO, "Description": "v"})
    beat(fabric, "a")
    return fabric


def beat(fabric: FakeFabric, agent: str, *, term: int = 5, age_ms: int = 0) -> None:
    fabric.members.put(
        f"agent/{agent}", Member("agent", agent, "h", "z", "unix:@x", term, fabric.clock.unix_ms() - age_ms)
    )


def report(fabric: FakeFabric, ready: int, agent: str = "a", **more: Any) -> None:
    """What an agent says of version 1."""
    key = f"{APPID}/default/hello/1"
    row = fabric.streams.provisions.rows[key]
    status = ProvisionStatus(agent, 5, row.applied, row.target, ready, "", False, 0)
    fabric.kept.put(f"{agent}/{key}", replace(status, **more))


async def allocated(fabric: FakeFabric, **fields: Any) -> list[tuple[str, int, int, str, str]]:
    rows = (await ask(fabric, PROVISIONED, {**HELLO, **fields}))["Allocated"]
    names = ("Qualifier", "AllocatedProvisionedConcurrencyNum", "AvailableProvisionedConcurrencyNum", "Status")
    assert all(row["TriggerActions"] == [] for row in rows)
    return [(*(row[name] for name in names), row["StatusReason"]) for row in rows]


async def test_a_provision_is_put_changed_shown_and_deleted(published: FakeFabric) -> None:
    assert await allocated(published) == []
    assert await ask(published, PROVISION, {**V1, "VersionProvisionedConcurrencyNum": 3}) == {}
    assert await ask(published, PROVISION, {**V1, "VersionProvisionedConcurrencyNum": 2}) == {}
    two = {**HELLO, "Qualifier": "2", "VersionProvisionedConcurrencyNum": 5, "ProvisionedType": "Default"}
    assert await ask(published, PROVISION, two) == {}
    assert await allocated(published) == [("1", 2, 0, "InProgress", ""), ("2", 5, 0, "InProgress", "")]
    assert await allocated(published, Qualifier="2") == [("2", 5, 0, "InProgress", "")]
    assert (await ask(published, "GetFunction", HELLO))["TotalProvisionedConcurrencyMem"] == 7 * 128
    account = await usage(published)
    assert account["default"]["TotalAllocatedProvisionedMem"] == 7 * 128
    row = published.streams.provisions.rows[f"{APPID}/default/hello/1"]
    version = published.streams.versions.rows[f"{APPID}/default/hello/1"]
    assert (row.config, row.uin) == (version.config, version.uin), "what is started ahead must be what calls ask for"
    for _ in range(2):
        assert await ask(published, UNPROVISION, V1) == {}
    assert [row[0] for row in await allocated(published)] == ["2"]


async def test_it_is_done_when_the_workers_are_there_and_only_then(published: FakeFabric) -> None:
    await ask(published, PROVISION, {**V1, "VersionProvisionedConcurrencyNum": 2})
    for ready, wanted in ((0, "InProgress"), (1, "InProgress"), (2, "Done"), (3, "Done")):
        report(published, ready)
        assert await allocated(published) == [("1", 2, min(ready, 2), wanted, "")]
    report(published, 1, reason="no code", failed=True)
    assert await allocated(published) == [("1", 2, 1, "Failed", "no code")]
    report(published, 2, term=4)
    assert await allocated(published) == [("1", 2, 0, "InProgress", "")], "an agent of an earlier life said it"
    report(published, 2)
    beat(published, "a", age_ms=60_000)
    assert await allocated(published) == [("1", 2, 0, "InProgress", "")], "the agent is gone"


async def test_what_failed_with_an_earlier_number_is_no_failure_of_the_new_one(published: FakeFabric) -> None:
    await ask(published, PROVISION, {**V1, "VersionProvisionedConcurrencyNum": 800})
    report(published, 1, reason="no room", failed=True)
    assert await allocated(published) == [("1", 800, 1, "Failed", "no room")]
    old = published.kept.rows[f"a/{APPID}/default/hello/1"]
    await ask(published, PROVISION, {**V1, "VersionProvisionedConcurrencyNum": 2})
    published.kept.put(f"a/{APPID}/default/hello/1", old)
    assert (await allocated(published))[0][:4] == ("1", 2, 1, "InProgress")


async def test_agents_add_up(published: FakeFabric) -> None:
    await ask(published, PROVISION, {**V1, "VersionProvisionedConcurrencyNum": 3})
    beat(published, "b")
    report(published, 2)
    report(published, 1, "b")
    assert await allocated(published) == [("1", 3, 3, "Done", "")]


@pytest.mark.parametrize(
    ("action", "fields", "wanted"),
    [
        (PROVISION, {"Qualifier": "$LATEST"}, "InvalidParameterValue.Qualifier"),
        (PROVISION, {"Qualifier": "prod"}, "InvalidParameterValue.Qualifier"),
        (PROVISION, {"Qualifier": None}, "MissingParameter"),
        (PROVISION, {"Qualifier": "3"}, "ResourceNotFound.FunctionVersion"),
        (PROVISION, {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
        (PROVISION, {"Namespace": "none"}, "ResourceNotFound.Namespace"),
        (PROVISION, {"VersionProvisionedConcurrencyNum": None}, "MissingParameter"),
        (PROVISION, {"VersionProvisionedConcurrencyNum": 0}, "LimitExceeded.FunctionTotalProvisionedConcurrencyNum"),
        (
            PROVISION,
            {"VersionProvisionedConcurrencyNum": 1_901},
            "LimitExceeded.FunctionTotalProvisionedConcurrencyNum",
        ),
        (PROVISION, {"VersionProvisionedConcurrencyNum": 901}, "FailedOperation.ProvisionedExceedAvailable"),
        (PROVISION, {"VersionProvisionedConcurrencyNum": 900}, ""),
        (PROVISION, {"ProvisionedType": "Other"}, "InvalidParameterValue.ProvisionType"),
        (PROVISION, {"ProvisionedType": "ConcurrencyUtilizationTracking"}, "UnsupportedOperation"),
        (PROVISION, {"TrackingTarget": 0.5}, "UnsupportedOperation"),
        (PROVISION, {"MinCapacity": 1}, "UnsupportedOperation"),
        (PROVISION, {"MaxCapacity": 2}, "UnsupportedOperation"),
        (PROVISION, {"TriggerActions": [{"TriggerName": "t"}]}, "UnsupportedOperation"),
        (PROVISION, {"TriggerActions": []}, ""),
        (PROVISIONED, {"Qualifier": "3"}, "ResourceNotFound.FunctionVersion"),
        (PROVISIONED, {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
        (UNPROVISION, {"Qualifier": "3"}, "ResourceNotFound.FunctionVersion"),
        (UNPROVISION, {"Qualifier": "$LATEST"}, "InvalidParameterValue.Qualifier"),
        (UNPROVISION, {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
    ],
)
async def test_each_request_about_provisions_has_its_code(
    published: FakeFabric, action: str, fields: dict[str, Any], wanted: str
) -> None:
    good = {**V1, "VersionProvisionedConcurrencyNum": 1} if action == PROVISION else V1
    assert await code(published, action, {**good, **fields}) == wanted
    if wanted:
        assert published.streams.provisions.rows == {}


async def test_provisions_stay_a_hundred_below_what_is_reserved_for_the_function(published: FakeFabric) -> None:
    assert await code(published, PUT, {**HELLO, "ReservedConcurrencyMem": 110 * 128}) == ""
    assert (await ask(published, PROVISIONED, HELLO))["UnallocatedConcurrencyNum"] == 10
    assert await code(published, PROVISION, {**V1, "VersionProvisionedConcurrencyNum": 6}) == ""
    assert (await ask(published, PROVISIONED, HELLO))["UnallocatedConcurrencyNum"] == 4
    two = {**HELLO, "Qualifier": "2"}
    exceeds = "FailedOperation.ProvisionedExceedReserved"
    assert await code(published, PROVISION, {**two, "VersionProvisionedConcurrencyNum": 5}) == exceeds
    assert await code(published, PROVISION, {**two, "VersionProvisionedConcurrencyNum": 4}) == ""
    assert await code(published, PUT, {**HELLO, "ReservedConcurrencyMem": 110 * 128 - 1}) == exceeds
    assert await code(published, PUT, {**HELLO, "ReservedConcurrencyMem": 0}) == exceeds
    assert await code(published, DELETE, HELLO) == ""
    assert await code(published, PUT, {**HELLO, "ReservedConcurrencyMem": 109 * 128}) == exceeds


@pytest.mark.parametrize("reserved_elsewhere", [0, 64_000])
@pytest.mark.parametrize("total", [128_000, 70_000])
async def test_what_is_said_to_be_left_is_granted_and_one_more_is_not(
    published: FakeFabric, reserved_elsewhere: int, total: int
) -> None:
    await ask(
        published, PUT, {"FunctionName": "hello", "Namespace": "ns", "ReservedConcurrencyMem": reserved_elsewhere}
    )
    await ask(published, PUT, {"FunctionName": "other", "ReservedConcurrencyMem": 1_000})
    assert await ask(published, TOTAL, {"TotalConcurrencyMem": total}) == {}
    assert await ask(published, PROVISION, {**V1, "VersionProvisionedConcurrencyNum": 7}) == {}
    left = (await ask(published, PROVISIONED, HELLO))["UnallocatedConcurrencyNum"]
    assert left > 0
    two = {**HELLO, "Qualifier": "2"}
    exceeds = "FailedOperation.ProvisionedExceedAvailable"
    assert await code(published, PROVISION, {**two, "VersionProvisionedConcurrencyNum": left + 1}) == exceeds
    assert await code(published, PROVISION, {**two, "VersionProvisionedConcurrencyNum": left}) == ""
    assert (await ask(published, PROVISIONED, HELLO))["UnallocatedConcurrencyNum"] == 0


async def test_a_provision_ends_with_its_version(published: FakeFabric) -> None:
    for number in ("1", "2"):
        await ask(published, PROVISION, {**HELLO, "Qualifier": number, "VersionProvisionedConcurrencyNum": 1})
    assert "Error" not in await ask(published, "DeleteFunctionVersion", V1)
    await settle()
    assert [row[0] for row in await allocated(published)] == ["2"]
    await ask(published, "DeleteFunction", HELLO)
    await settle()
    assert published.streams.provisions.rows == {}
