"""Versions and aliases by the cloud API: what each action accepts, refuses and shows, one claim a test."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from hashlib import sha256
from typing import Any

import pytest

from infra import clock
from ingest.api import services as services_module
from ingest.api.aliases import aliases_of
from schemas import tc3
from schemas.ids import FunctionKey
from tests.api_fakes import APPID, FABRIC_SERVERS, SECRET_ID, SECRET_KEY, FakeFabric, creation, zip_of

KEY = FunctionKey(APPID, "default", "hello")
HELLO = {"FunctionName": "hello"}


TICKS = itertools.count()
"""No two requests are signed alike, for one that came before is not carried out again."""


async def ask(fabric: FakeFabric, action: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The answer's fields, without RequestId."""
    body = json.dumps(fields).encode()
    headers = tc3.signed_post(
        secret_id=SECRET_ID, secret_key=SECRET_KEY, host="h", action=action, version="2018-04-16", body=body,
        timestamp_s=clock.unix_ms() // 1000 - next(TICKS) % 250,
    )  # fmt: skip
    answer = await fabric.api.answer(tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body))
    response: dict[str, Any] = json.loads(answer)["Response"]
    assert response.pop("RequestId")
    return response


async def code(fabric: FakeFabric, action: str, fields: dict[str, Any]) -> str:
    return str((await ask(fabric, action, fields)).get("Error", {}).get("Code", ""))


async def settle() -> None:
    """Let commands that were answered at once be worked off."""
    for _ in range(5):
        await asyncio.sleep(0.001)


@pytest.fixture
async def fabric() -> FakeFabric:
    """A function with versions 1 and 2."""
    made = FakeFabric()
    assert await ask(made, "CreateFunction", creation()) == {}
    await settle()
    for description in ("one", "two"):
        assert "Error" not in await ask(made, "PublishVersion", {**HELLO, "Description": description})
    return made


async def alias(fabric: FakeFabric, name: str = "prod", version: str = "1", **more: Any) -> dict[str, Any]:
    return await ask(fabric, "CreateAlias", {**HELLO, "Name": name, "FunctionVersion": version, **more})


def weights(version: str, weight: float) -> dict[str, Any]:
    return {"RoutingConfig": {"AdditionalVersionWeights": [{"Version": version, "Weight": weight}]}}


def rules(
    version: str = "2", key: str = "invoke.headers.User", method: str = "exact", text: str = "Bob"
) -> dict[str, Any]:
    match = {"Version": version, "Key": key, "Method": method, "Expression": text}
    return {"RoutingConfig": {"AddtionVersionMatchs": [match]}}


async def ran(fabric: FakeFabric, **fields: Any) -> str:
    """The qualifier that went to the router."""
    answer = await ask(fabric, "Invoke", {**HELLO, **fields})
    assert "Error" not in answer, answer
    return str(fabric.invoker.calls[-1]["qualifier"])


async def test_publish_version_answers_with_what_was_frozen(fabric: FakeFabric) -> None:
    answer = await ask(fabric, "PublishVersion", {**HELLO, "Description": "three"})
    assert answer == {
        "FunctionVersion": "3",
        "CodeSize": answer["CodeSize"],
        "MemorySize": 128,
        "Description": "three",
        "Handler": "index.main_handler",
        "Timeout": 3,
        "Runtime": "Python3.10",
        "Namespace": "default",
    }


async def test_versions_are_listed_in_pages_latest_counting_as_the_newest(fabric: FakeFabric) -> None:
    answer = await ask(fabric, "ListVersionByFunction", HELLO)
    assert (answer["FunctionVersion"], answer["TotalCount"]) == (["$LATEST", "2", "1"], 3)
    assert [v["Description"] for v in answer["Versions"]] == ["", "two", "one"]
    answer = await ask(fabric, "ListVersionByFunction", {**HELLO, "Order": "ASC", "Limit": 1, "Offset": 1})
    assert (answer["FunctionVersion"], answer["TotalCount"]) == (["2"], 3)


async def test_get_function_shows_a_version_as_it_was_published(fabric: FakeFabric) -> None:
    await ask(fabric, "UpdateFunctionConfiguration", {**HELLO, "Timeout": 9})
    await settle()
    shown = [await ask(fabric, "GetFunction", {**HELLO, "Qualifier": q}) for q in ("1", "$LATEST", "$DEFAULT")]
    assert [(s["Timeout"], s["FunctionVersion"], s["Qualifier"], s["Status"]) for s in shown] == [
        (3, "1", "1", "Active"),
        (9, "$LATEST", "$LATEST", "Active"),
        (9, "$LATEST", "$LATEST", "Active"),
    ]
    await alias(fabric, **weights("2", 1))
    assert (await ask(fabric, "GetFunction", {**HELLO, "Qualifier": "prod"}))["FunctionVersion"] == "1"


async def test_the_address_of_a_version_is_that_of_the_package_it_was_published_with(fabric: FakeFabric) -> None:
    first = fabric.functions.rows[str(KEY)].serving
    assert first is not None
    other = base64.b64encode(zip_of({"index.py": "def main_handler(event, context):\n    return 2\n"})).decode()
    assert await ask(fabric, "UpdateFunctionCode", {**HELLO, "ZipFile": other}) == {}
    await settle()
    latest, one = [await ask(fabric, "GetFunctionAddress", {**HELLO, "Qualifier": q}) for q in ("$LATEST", "1")]
    newest = sha256(fabric.store.packages[latest["CodeSha256"]]).hexdigest()
    assert one["CodeSha256"] == first.code_sha256 != newest
    assert latest == {"Url": f"http://store/{newest}?valid_s=600", "CodeSha256": newest}
    assert await ask(fabric, "GetFunctionAddress", HELLO) == latest
    assert await code(fabric, "GetFunctionAddress", {**HELLO, "Qualifier": "9"}) == "ResourceNotFound.FunctionVersion"
    assert await code(fabric, "GetFunctionAddress", {"FunctionName": "none"}) == "ResourceNotFound.FunctionName"


@pytest.mark.parametrize("action", ["UpdateFunctionCode", "UpdateFunctionConfiguration"])
async def test_an_update_with_publish_makes_a_version(fabric: FakeFabric, action: str) -> None:
    fields = creation()["Code"] if action == "UpdateFunctionCode" else {"Timeout": 8}
    assert await ask(fabric, action, {**HELLO, **fields, "Publish": "TRUE"}) == {}
    await settle()
    answer = await ask(fabric, "ListVersionByFunction", HELLO)
    assert answer["FunctionVersion"][:2] == ["$LATEST", "3"]
    assert await ask(fabric, action, {**HELLO, **fields, "Publish": "FALSE"}) == {}
    await settle()
    assert (await ask(fabric, "ListVersionByFunction", HELLO))["TotalCount"] == 4


@pytest.mark.parametrize("way", [("DeleteFunctionVersion", "2"), ("DeleteFunction", "2")])
async def test_a_version_is_deleted_either_way_and_its_number_does_not_come_again(
    fabric: FakeFabric, way: tuple[str, str]
) -> None:
    assert await ask(fabric, way[0], {**HELLO, "Qualifier": way[1]}) == {}
    assert (await ask(fabric, "ListVersionByFunction", HELLO))["FunctionVersion"] == ["$LATEST", "1"]
    assert (await ask(fabric, "PublishVersion", HELLO))["FunctionVersion"] == "3"


async def test_deleting_the_function_takes_versions_and_aliases_with_it(fabric: FakeFabric) -> None:
    await alias(fabric)
    await ask(fabric, "DeleteFunction", HELLO)
    await settle()
    assert (fabric.streams.versions.rows, fabric.streams.aliases.rows) == ({}, {})


async def test_an_alias_has_a_whole_life(fabric: FakeFabric) -> None:
    assert await alias(fabric, Description="d", **weights("2", 0.25)) == {}
    shown = await ask(fabric, "GetAlias", {**HELLO, "Name": "prod"})
    assert (shown["FunctionVersion"], shown["Description"]) == ("1", "d")
    assert shown["RoutingConfig"]["AdditionalVersionWeights"] == [{"Version": "2", "Weight": 0.25}]
    assert shown["RoutingConfig"]["AddtionVersionMatchs"] == []
    change = {**HELLO, "Name": "prod", "FunctionVersion": "2"}
    assert await ask(fabric, "UpdateAlias", change) == {}
    shown = await ask(fabric, "GetAlias", {**HELLO, "Name": "prod"})
    assert (shown["FunctionVersion"], shown["Description"]) == ("2", "d")
    assert shown["RoutingConfig"]["AdditionalVersionWeights"] == []
    assert await ask(fabric, "DeleteAlias", {**HELLO, "Name": "prod"}) == {}
    assert await code(fabric, "GetAlias", {**HELLO, "Name": "prod"}) == "ResourceNotFound.Alias"


async def test_every_function_has_the_alias_default_which_can_be_pointed_elsewhere(fabric: FakeFabric) -> None:
    shown = await ask(fabric, "GetAlias", {**HELLO, "Name": "$DEFAULT"})
    assert shown["FunctionVersion"] == "$LATEST"
    assert await ask(fabric, "UpdateAlias", {**HELLO, "Name": "$DEFAULT", "FunctionVersion": "1"}) == {}
    await ask(fabric, "InvokeFunction", HELLO)
    assert fabric.invoker.calls[-1]["qualifier"] == "1"
    assert await ran(fabric) == "$LATEST"
    record = fabric.services.function(KEY)
    assert [a.name for a in aliases_of(fabric.services, KEY, record)] == ["$DEFAULT"]


async def test_aliases_are_listed_by_name_with_offset_and_limit_as_texts(fabric: FakeFabric) -> None:
    for name, version in (("b", "1"), ("a", "2"), ("c", "1")):
        await alias(fabric, name, version)
    answer = await ask(fabric, "ListAliases", HELLO)
    assert ([a["Name"] for a in answer["Aliases"]], answer["TotalCount"]) == (["$DEFAULT", "a", "b", "c"], 4)
    answer = await ask(fabric, "ListAliases", {**HELLO, "Offset": "1", "Limit": "2"})
    assert ([a["Name"] for a in answer["Aliases"]], answer["TotalCount"]) == (["a", "b"], 4)
    answer = await ask(fabric, "ListAliases", {**HELLO, "FunctionVersion": "1"})
    assert [a["Name"] for a in answer["Aliases"]] == ["b", "c"]


async def test_a_weight_of_1_and_of_0_lead_all_calls_one_way(fabric: FakeFabric) -> None:
    await alias(fabric, "all", **weights("2", 1))
    await alias(fabric, "none", **weights("2", 0))
    assert {await ran(fabric, Qualifier="all") for _ in range(20)} == {"2"}
    assert {await ran(fabric, Qualifier="none") for _ in range(20)} == {"1"}


async def test_a_weight_divides_calls(fabric: FakeFabric) -> None:
    await alias(fabric, **weights("2", 0.5))
    seen = [await ran(fabric, Qualifier="prod") for _ in range(100)]
    assert 15 <= seen.count("2") <= 85


async def test_a_rule_sends_calls_by_their_routing_key(fabric: FakeFabric) -> None:
    await alias(fabric, **rules())
    await alias(fabric, "range", **rules(key="invoke.headers.Age", method="range", text="[18,30)".replace(")", "]")))
    for name, headers, version in (
        ("prod", {"User": "Bob"}, "2"),
        ("prod", {"User": "bob"}, "1"),
        ("prod", {}, "1"),
        ("range", {"Age": "18"}, "2"),
        ("range", {"Age": "31"}, "1"),
    ):
        assert await ran(fabric, Qualifier=name, RoutingKey=json.dumps(headers)) == version, (name, headers)
    assert await ran(fabric, Qualifier="prod") == "1"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("PublishVersion", {"FunctionName": "nobody"}, "ResourceNotFound.FunctionName"),
    ("ListVersionByFunction", {"OrderBy": "Size"}, "InvalidParameterValue.OrderBy"),
    ("DeleteFunctionVersion", {}, "MissingParameter"),
    ("DeleteFunctionVersion", {"Qualifier": "7"}, "ResourceNotFound.FunctionVersion"),
    ("DeleteFunctionVersion", {"Qualifier": "$LATEST"}, "ResourceNotFound.FunctionVersion"),
    ("DeleteFunctionVersion", {"Qualifier": "1", "ForceDelete": "TRUE"}, "UnsupportedOperation"),
    ("DeleteFunctionVersion", {"Qualifier": "1"}, "FailedOperation"),
    ("DeleteFunctionVersion", {"Qualifier": "2"}, "FailedOperation"),
    ("CreateAlias", {"Name": "used", "FunctionVersion": "1"}, "ResourceInUse.Alias"),
    ("CreateAlias", {"Name": "$DEFAULT", "FunctionVersion": "1"}, "ResourceInUse.Alias"),
    ("CreateAlias", {"Name": "1a", "FunctionVersion": "1"}, "InvalidParameterValue.Alias"),
    ("CreateAlias", {"Name": "a" * 65, "FunctionVersion": "1"}, "InvalidParameterValue.Alias"),
    ("CreateAlias", {"Name": "a", "FunctionVersion": "9"}, "ResourceNotFound.FunctionVersion"),
    ("CreateAlias", {"Name": "a", "FunctionVersion": "one"}, "InvalidParameterValue.Qualifier"),
    ("CreateAlias", {"Name": "a"}, "MissingParameter"),
    ("CreateAlias", {"Name": "a", "FunctionVersion": "1", **weights("9", 0.5)}, "ResourceNotFound.FunctionVersion"),
    ("CreateAlias", {"Name": "a", "FunctionVersion": "1", **weights("1", 0.5)}, "InvalidParameterValue.RoutingConfig"),
    (
        "CreateAlias",
        {"Name": "a", "FunctionVersion": "1", **weights("2", 1.5)},
        "InvalidParameterValue.AdditionalVersionWeights",
    ),
    (
        "CreateAlias",
        {"Name": "a", "FunctionVersion": "1", **rules(key="headers.User")},
        "InvalidParameterValue.RoutingConfig",
    ),
    (
        "CreateAlias",
        {"Name": "a", "FunctionVersion": "1", **rules(method="range", text="18-30")},
        "InvalidParameterValue.RoutingConfig",
    ),
    ("UpdateAlias", {"Name": "nobody", "FunctionVersion": "1"}, "ResourceNotFound.Alias"),
    ("GetAlias", {"Name": "nobody"}, "ResourceNotFound.Alias"),
    ("DeleteAlias", {"Name": "nobody"}, "ResourceNotFound.Alias"),
    ("DeleteAlias", {"Name": "$DEFAULT"}, "InvalidParameterValue.Alias"),
    ("DeleteAlias", {"Name": "used"}, "FailedOperation"),
    ("ListAliases", {"Offset": 1}, "InvalidParameter"),
    ("ListAliases", {"Offset": "-1"}, "InvalidParameterValue.Offset"),
    ("ListAliases", {"Limit": "many"}, "InvalidParameterValue.Limit"),
    ("ListAliases", {"Limit": "1001"}, "InvalidParameterValue.Limit"),
    ("Invoke", {"Qualifier": "9"}, "ResourceNotFound.Qualifier"),
    ("Invoke", {"Qualifier": "nobody"}, "ResourceNotFound.Qualifier"),
    ("GetFunction", {"Qualifier": "nobody"}, "ResourceNotFound.FunctionVersion"),
    ("CreateTrigger", {"TriggerName": "x-orders", "Type": "ckafka", "Qualifier": "9"}, "ResourceNotFound.Qualifier"),
    ("DeleteTrigger", {"TriggerName": "in-orders", "Type": "ckafka", "Qualifier": "1"}, "ResourceNotFound.Trigger"),
]


@pytest.mark.parametrize(("action", "fields", "wanted"), REFUSED, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSED)])
async def test_what_can_not_be_has_its_code_and_changes_nothing(
    fabric: FakeFabric, action: str, fields: dict[str, Any], wanted: str
) -> None:
    await alias(fabric, "used", "2")
    await alias(fabric, "first", "1")
    bound = {**HELLO, "TriggerName": "in-orders", "Type": "ckafka", "Qualifier": "used"}
    assert "Error" not in await ask(fabric, "CreateTrigger", bound)
    before = dict(fabric.streams.versions.rows), dict(fabric.streams.aliases.rows), dict(fabric.triggers.rows)
    assert await code(fabric, action, {**HELLO, **fields}) == wanted
    assert (fabric.streams.versions.rows, fabric.streams.aliases.rows, fabric.triggers.rows) == before


async def test_a_trigger_by_an_alias_is_found_with_its_qualifier_or_without(fabric: FakeFabric) -> None:
    await alias(fabric)
    bound = {**HELLO, "TriggerName": "in-orders", "Type": "ckafka", "Qualifier": "prod"}
    assert (await ask(fabric, "CreateTrigger", bound))["TriggerInfo"]["Qualifier"] == "prod"
    assert await ask(fabric, "UpdateTriggerStatus", {**bound, "Enable": "CLOSE"}) == {}
    del bound["Qualifier"]
    assert await ask(fabric, "DeleteTrigger", bound) == {}
    assert fabric.sources.topics[FABRIC_SERVERS, "orders"] == 3


async def test_a_change_that_is_not_seen_in_time_is_a_coded_error(
    fabric: FakeFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_module, "OUTCOME_S", 0.1)
    fabric.streams.delay_s = None
    assert await code(fabric, "PublishVersion", HELLO) == "FailedOperation.PublishVersion"


async def test_only_an_active_function_is_published(fabric: FakeFabric) -> None:
    fabric.streams.delay_s = 0.05
    await ask(fabric, "UpdateFunctionConfiguration", {**HELLO, "Timeout": 9})
    assert await code(fabric, "PublishVersion", HELLO) == "FailedOperation.FunctionStatusError"
    await asyncio.sleep(0)
