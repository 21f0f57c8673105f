"""CopyFunction and UpdateTrigger: what is taken over, what stays, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api_fakes import FakeFabric, creation
from tests.unit.test_api_versions import ask, code, settle

COPY = {"FunctionName": "hello", "NewFunctionName": "copy"}
BOUND = {"FunctionName": "hello", "TriggerName": "in", "Type": "ckafka"}
ONE_VARIABLE = {"Variables": [{"Key": "COLOUR", "Value": "blue"}]}


@pytest.fixture
async def fabric() -> FakeFabric:
    made = FakeFabric()
    fields = creation(MemorySize=256, Timeout=30, Environment=ONE_VARIABLE, Description="first")
    assert await ask(made, "CreateFunction", fields) == {}
    await settle()
    desc = json.dumps({"topic": "orders", "maxMsgNum": 10, "offset": "earliest"})
    assert "Error" not in await ask(made, "CreateTrigger", {**BOUND, "TriggerDesc": desc})
    return made


async def seen(fabric: FakeFabric, name: str = "copy", **more: Any) -> dict[str, Any]:
    return await ask(fabric, "GetFunction", {"FunctionName": name, **more})


async def test_a_copy_has_the_code_and_the_configuration_but_no_trigger(fabric: FakeFabric) -> None:
    assert await ask(fabric, "CopyFunction", COPY) == {}
    await settle()
    copy, original = await seen(fabric), await seen(fabric, "hello")
    same = ("CodeSize", "Handler", "Runtime", "MemorySize", "Timeout", "Environment", "Description")
    assert {name: copy[name] for name in same} == {name: original[name] for name in same}
    assert (copy["Status"], copy["Triggers"], copy["FunctionVersion"]) == ("Active", [], "$LATEST")
    sent = fabric.streams.sent
    assert sent[-1].config is not None
    assert sent[0].config is not None
    assert sent[-1].config.code_sha256 == sent[0].config.code_sha256


async def test_a_copy_without_the_configuration_has_the_defaults(fabric: FakeFabric) -> None:
    await ask(fabric, "CopyFunction", {**COPY, "CopyConfiguration": False, "Description": "mine"})
    await settle()
    copy = await seen(fabric)
    assert (copy["MemorySize"], copy["Timeout"], copy["Environment"]) == (128, 3, {"Variables": []})
    assert (copy["Handler"], copy["Description"]) == ("index.main_handler", "mine")


@pytest.mark.parametrize(("whole", "memory"), [(True, 256), (False, 512)])
async def test_override_replaces_what_runs_and_needs_to_be_asked_for(
    fabric: FakeFabric, whole: bool, memory: int
) -> None:
    await ask(fabric, "CreateFunction", creation("copy", MemorySize=512, Handler="other.main"))
    await settle()
    assert await code(fabric, "CopyFunction", COPY) == "ResourceInUse.FunctionName"
    assert await ask(fabric, "CopyFunction", {**COPY, "Override": True, "CopyConfiguration": whole}) == {}
    await settle()
    copy = await seen(fabric)
    assert (copy["Handler"], copy["MemorySize"]) == ("index.main_handler", memory)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"FunctionName": "nobody"}, "ResourceNotFound.FunctionName"),
        ({"NewFunctionName": "hello", "Override": True}, "InvalidParameterValue.FunctionName"),
        ({"NewFunctionName": "-"}, "InvalidParameterValue.FunctionName"),
        ({"TargetNamespace": "none"}, "ResourceNotFound.Namespace"),
        ({"TargetRegion": "ap-beijing"}, "UnsupportedOperation.Region"),
        ({"TargetRegion": "ap-guangzhou"}, ""),
    ],
)
async def test_a_copy_that_can_not_be_is_refused(fabric: FakeFabric, change: dict[str, Any], wanted: str) -> None:
    assert await code(fabric, "CopyFunction", {**COPY, **change}) == wanted
    assert len(fabric.streams.sent) == (2 if wanted else 3)


async def test_a_copy_goes_to_another_namespace(fabric: FakeFabric) -> None:
    await ask(fabric, "CreateNamespace", {"Namespace": "there"})
    await ask(fabric, "CopyFunction", {"FunctionName": "hello", "NewFunctionName": "hello", "TargetNamespace": "there"})
    await settle()
    assert (await seen(fabric, "hello", Namespace="there"))["MemorySize"] == 256


async def trigger(fabric: FakeFabric) -> dict[str, Any]:
    shown = await ask(fabric, "ListTriggers", {"FunctionName": "hello"})
    info: dict[str, Any] = shown["Triggers"][0]
    return info


async def test_an_updated_trigger_has_the_new_fields_and_the_old_group(fabric: FakeFabric) -> None:
    [before] = fabric.triggers.rows.values()
    change = {**BOUND, "TriggerDesc": '{"retry": 7, "concurrency": 4}', "Enable": "CLOSE", "Description": "slower"}
    assert await ask(fabric, "UpdateTrigger", change) == {}
    [after] = fabric.triggers.rows.values()
    assert before.kafka is not None
    assert after.kafka is not None
    assert (after.kafka.retries, after.kafka.concurrency, after.kafka.batch) == (7, 4, 10)
    assert (after.kafka.group_id, after.kafka.topic, after.kafka.start) == (before.kafka.group_id, "orders", "earliest")
    shown = await trigger(fabric)
    assert (shown["Enable"], shown["Description"], shown["Qualifier"]) == (0, "slower", "$LATEST")
    assert json.loads(shown["TriggerDesc"]) == {
        "topic": "orders", "maxMsgNum": 10, "offset": "earliest", "retry": 7, "concurrency": 4,
    }  # fmt: skip
    assert await ask(fabric, "UpdateTrigger", BOUND) == {}
    assert (await trigger(fabric))["Description"] == "slower"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"TriggerDesc": '{"topic": "others"}'}, "InvalidParameterValue.TriggerDesc"),
        ({"TriggerDesc": '{"bootstrapServers": "h:1"}'}, "InvalidParameterValue.TriggerDesc"),
        ({"TriggerDesc": '{"offset": "latest"}'}, "InvalidParameterValue.TriggerDesc"),
        ({"TriggerDesc": '{"maxMsgNum": 0}'}, "InvalidParameterValue.TriggerDesc"),
        ({"TriggerDesc": "[]"}, "InvalidParameterValue.TriggerDesc"),
        ({"TriggerDesc": '{"timeOut": 60}'}, "UnsupportedOperation.Trigger"),
        ({"CustomArgument": "x"}, "InvalidParameterValue.CustomArgument"),
        ({"Enable": "MAYBE"}, "InvalidParameterValue.Enable"),
        ({"Qualifier": "1"}, "ResourceNotFound.Trigger"),
        ({"TriggerName": "out"}, "ResourceNotFound.Trigger"),
        ({"Type": "timer"}, "ResourceNotFound.Trigger"),
    ],
)
async def test_an_update_that_a_trigger_can_not_have_changes_nothing(
    fabric: FakeFabric, change: dict[str, Any], wanted: str
) -> None:
    before = dict(fabric.triggers.rows)
    assert await code(fabric, "UpdateTrigger", {**BOUND, **change}) == wanted
    assert fabric.triggers.rows == before
