"""The vendor's own Python SDK against a running fabric, with only the endpoint changed: every action of a function's life, each way to call.

test_clients.py is the same for every client, and shorter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.client import zip_of
from tests.clients.python_sdk import Sdk
from tests.fabric import Fabric, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("cloud") / "data") as running:
        yield running


@pytest.fixture
def sdk(fabric: Fabric) -> Callable[[str], Sdk]:
    return lambda way: Sdk(fabric, way)


def create(client: Sdk, name: str, **more: Any) -> dict[str, Any]:
    client.call(
        "CreateFunction", FunctionName=name, Handler="index.main_handler", Runtime="Python3.10",
        Code={"ZipFile": zip_of("first")}, **more,
    )  # fmt: skip
    return client.settled(name)


@pytest.mark.parametrize("way", ["POST", "GET", "async POST", "async GET"])
def test_a_functions_whole_life(fabric: Fabric, sdk: Callable[[str], Sdk], way: str) -> None:
    client, name = sdk(way), "life-" + way.lower().replace(" ", "-")
    topic = fabric.make_topic(name)

    made = create(client, name, MemorySize=256, Timeout=7, Description="of the SDK's")
    assert (made["Status"], made["MemorySize"], made["Timeout"]) == ("Active", 256, 7)
    assert (made["Description"], made["Handler"], made["Runtime"]) == (
        "of the SDK's",
        "index.main_handler",
        "Python3.10",
    )
    listed = client.call("ListFunctions", Limit=20)
    assert [f["Status"] for f in listed["Functions"] if f["FunctionName"] == name] == ["Active"]

    ran = client.invoke(name, {"msg": "你好"}, LogType="Tail")
    assert ran["InvokeResult"] == 0
    assert json.loads(ran["RetMsg"]) == {"word": "first", "event": {"msg": "你好"}, "colour": None, "limit_ms": 7_000}
    assert f"START RequestId: {ran['FunctionRequestId']}" in ran["Log"]
    assert "first " in ran["Log"]
    assert f"REPORT RequestId: {ran['FunctionRequestId']}" in ran["Log"]
    assert ran["Duration"] > 0
    assert ran["MemUsage"] > 0
    failed = client.invoke(name, "boom")
    assert (failed["InvokeResult"], failed["Log"]) == (430, "")
    assert "ValueError: boom" in json.loads(failed["RetMsg"])["stackTrace"]

    client.call("UpdateFunctionCode", FunctionName=name, Handler="index.main_handler", ZipFile=zip_of("second"))
    assert client.settled(name)["Status"] == "Active"
    assert json.loads(client.invoke(name, 1)["RetMsg"])["word"] == "second"

    client.call("CopyFunction", FunctionName=name, NewFunctionName=f"{name}-copy")
    assert client.settled(f"{name}-copy")["MemorySize"] == 256
    assert json.loads(client.invoke(f"{name}-copy", 1)["RetMsg"])["word"] == "second"
    client.call("DeleteFunction", FunctionName=f"{name}-copy")

    assert client.call("PublishVersion", FunctionName=name)["FunctionVersion"] == "1"
    client.call("CreateAlias", FunctionName=name, Name="prod", FunctionVersion="1")

    variables = {"Variables": [{"Key": "COLOUR", "Value": "blue & <grün>"}]}
    client.call("UpdateFunctionConfiguration", FunctionName=name, Environment=variables, Timeout=11)
    seen = client.settled(name)
    assert (seen["Timeout"], seen["Environment"], seen["MemorySize"]) == (11, variables, 256)
    answer = json.loads(client.invoke(name, 1)["RetMsg"])
    assert (answer["word"], answer["colour"], answer["limit_ms"]) == ("second", "blue & <grün>", 11_000)
    answer = json.loads(client.invoke(name, 1, Qualifier="prod")["RetMsg"])
    assert (answer["word"], answer["colour"], answer["limit_ms"]) == ("second", None, 7_000)

    def kept() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = client.call("GetFunctionLogs", FunctionName=name, Order="asc")["Data"]
        return rows

    until(lambda: [row["RetCode"] for row in kept()] == [0, 430, 0, 0, 0], within_s=10, what="all runs in the log")
    assert (kept()[0]["RequestId"], kept()[0]["RetMsg"]) == (ran["FunctionRequestId"], "")
    assert "ValueError: boom" in json.loads(kept()[1]["RetMsg"])["stackTrace"]
    state = client.call("GetRequestStatus", FunctionName=name, FunctionRequestId=failed["FunctionRequestId"])
    assert [row["RetCode"] for row in state["Data"]] == [-1]

    def run_by_topic(text: str) -> None:
        fabric.produce(topic, [(b"k", text.encode(), 0)])
        until(lambda: fabric.lag(name) == 0, within_s=20, what=f"the record {text!r} finished")
        until(
            lambda: any(text in line["line"] for line in fabric.lines(name)),
            within_s=10, what=f"the record {text!r} in the log",
        )  # fmt: skip

    trigger = {"FunctionName": name, "TriggerName": "in", "Type": "ckafka"}
    desc = json.dumps({"topic": topic, "maxMsgNum": 1, "offset": "latest", "retry": 0})
    info = client.call("CreateTrigger", **trigger, TriggerDesc=desc, Enable="OPEN")["TriggerInfo"]
    assert (info["TriggerName"], info["Enable"], info["Type"]) == ("in", 1, "ckafka")
    run_by_topic("by the topic")
    listed = client.call("ListTriggers", FunctionName=name)
    assert (listed["TotalCount"], listed["Triggers"][0]["TriggerName"]) == (1, "in")
    assert [t["TriggerName"] for t in client.call("GetFunction", FunctionName=name)["Triggers"]] == ["in"]

    client.call("UpdateTrigger", **trigger, TriggerDesc=json.dumps({"maxMsgNum": 5, "concurrency": 2}))
    listed = client.call("ListTriggers", FunctionName=name)
    assert json.loads(listed["Triggers"][0]["TriggerDesc"]) == json.loads(desc) | {"maxMsgNum": 5, "concurrency": 2}
    run_by_topic("after the update")

    client.call("DeleteTrigger", **trigger)
    assert client.call("ListTriggers", FunctionName=name)["TotalCount"] == 0
    client.call("DeleteFunction", FunctionName=name)
    until(lambda: client.gone(name), within_s=15, what=f"{name} gone")
    assert name not in {f["FunctionName"] for f in client.call("ListFunctions", Limit=100)["Functions"]}


@pytest.mark.parametrize("way", ["POST", "GET", "async POST"])
def test_what_is_not_there_or_not_allowed_has_its_code(fabric: Fabric, sdk: Callable[[str], Sdk], way: str) -> None:
    client, name = sdk(way), "codes-" + way.lower().replace(" ", "-")
    create(client, name)
    code = {"ZipFile": zip_of("x")}
    missing = "ResourceNotFound.FunctionName"
    desc = json.dumps({"topic": "t", "offset": "latest"})
    trigger = {"TriggerName": "in", "Type": "ckafka"}
    expected: dict[tuple[str, str], dict[str, Any]] = {
        ("GetFunction", missing): {"FunctionName": "nobody"},
        ("Invoke", missing): {"FunctionName": "nobody"},
        ("UpdateFunctionCode", missing): {"FunctionName": "nobody", "ZipFile": zip_of("x")},
        ("UpdateFunctionConfiguration", missing): {"FunctionName": "nobody", "Timeout": 5},
        ("DeleteFunction", missing): {"FunctionName": "nobody"},
        ("CreateTrigger", missing): {"FunctionName": "nobody", "TriggerDesc": desc, **trigger},
        ("ListTriggers", missing): {"FunctionName": "nobody"},
        ("DeleteTrigger", "ResourceNotFound.Trigger"): {"FunctionName": name, **trigger},
        ("CreateTrigger", "ResourceNotFound.Ckafka"): {"FunctionName": name, "TriggerDesc": desc, **trigger},
        ("CreateFunction", "ResourceInUse.FunctionName"): {
            "FunctionName": name, "Handler": "index.main_handler", "Runtime": "Python3.10", "Code": code,
        },
        ("CreateFunction", "InvalidParameterValue.Runtime"): {
            "FunctionName": "other", "Handler": "index.main_handler", "Runtime": "Nodejs18.15", "Code": code,
        },
        ("CreateFunction", "InvalidParameterValue.MemorySize"): {
            "FunctionName": "other", "Handler": "index.main_handler", "Runtime": "Python3.10", "Code": code, "MemorySize": 100,
        },
    }  # fmt: skip
    assert [(action, client.code(action, **fields)) for (action, _), fields in expected.items()] == list(expected)
    assert not any(f["FunctionName"] == "other" for f in client.call("ListFunctions", Limit=100)["Functions"])
    assert Sdk(fabric, way, secret_key="wrong").code("ListFunctions") == "AuthFailure.SignatureFailure"


def test_code_that_does_not_compile_ends_as_create_failed_with_its_line(sdk: Callable[[str], Sdk]) -> None:
    client = sdk("POST")
    client.call(
        "CreateFunction", FunctionName="broken", Handler="index.main_handler", Runtime="Python3.10",
        Code={"ZipFile": zip_of("", "def main_handler(e, c):\n    return (\n")},
    )  # fmt: skip
    seen = client.settled("broken")
    assert seen["Status"] == "CreateFailed"
    assert "index.py, line 2" in seen["StatusReasons"][0]["ErrorMessage"]
    assert client.code("Invoke", FunctionName="broken") == "FailedOperation.FunctionStatusError"
    client.call("DeleteFunction", FunctionName="broken")
    until(lambda: client.gone("broken"), within_s=15, what="broken gone")
