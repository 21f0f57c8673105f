"""The vendor's own Python SDK against a running fabric, with only the endpoint changed: a function's whole life, each way to call.

The SDK runs in this process: its synchronous client by POST and by GET, and its asynchronous client (which speaks httpx).
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from tencentcloud.common import credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.scf.v20180416 import models, scf_client, scf_client_async

from tests.fabric import Fabric, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(120)]

CODE = """
import json, os

def main_handler(event, context):
    print("{word}", json.dumps(event))
    if event == "boom":
        raise ValueError("boom")
    return {{"word": "{word}", "event": event, "colour": os.environ.get("COLOUR"), "limit_ms": context["time_limit_in_ms"]}}
"""


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("cloud") / "data") as running:
        yield running


class Sdk:
    """The SDK's client of one way to call: `call("GetFunction", FunctionName="f")` gives the answer's fields."""

    def __init__(self, fabric: Fabric, way: str, *, secret_key: str | None = None, endpoint: str = "") -> None:
        status = fabric.status()
        with open(status["credentials_file"]) as file:
            keys = json.load(file)
        endpoint = urlsplit(endpoint or status["endpoints"]["api"]).netloc
        method = "GET" if way.endswith("GET") else "POST"
        profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint=endpoint, reqMethod=method))
        self._is_async = way.startswith("async")
        self._arguments = (
            credential.Credential(keys["secret_id"], secret_key or keys["secret_key"]),
            keys["region"],
            profile,
        )

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        request = getattr(models, f"{action}Request")()
        request.from_json_string(json.dumps(fields))
        if self._is_async:
            answer = asyncio.run(self._awaited(action, request))
        else:
            answer = getattr(scf_client.ScfClient(*self._arguments), action)(request)
        return dict(json.loads(answer.to_json_string()))

    async def _awaited(self, action: str, request: Any) -> Any:
        async with scf_client_async.ScfClient(*self._arguments) as client:
            return await getattr(client, action)(request)

    def code(self, action: str, **fields: Any) -> str:
        """The code of the error that the call ends with."""
        with pytest.raises(TencentCloudSDKException) as caught:
            self.call(action, **fields)
        assert caught.value.get_request_id()
        assert caught.value.get_message()
        return str(caught.value.get_code())

    def settled(self, name: str) -> dict[str, Any]:
        """GetFunction's answer when nothing is under way with the function."""
        asked: list[dict[str, Any]] = []

        def quiet() -> dict[str, Any] | None:
            asked.append(self.call("GetFunction", FunctionName=name))
            return asked[-1] if not asked[-1]["Status"].endswith("ing") else None

        return dict(until(quiet, within_s=20, what=f"{name} settled"))

    def invoke(self, name: str, event: Any, **fields: Any) -> dict[str, Any]:
        return dict(self.call("Invoke", FunctionName=name, ClientContext=json.dumps(event), **fields)["Result"])


@pytest.fixture
def sdk(fabric: Fabric) -> Callable[[str], Sdk]:
    return lambda way: Sdk(fabric, way)


def zip_of(word: str, code: str | None = None) -> str:
    """A base64 package of the function that says `word`, or of other code."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("index.py", CODE.format(word=word) if code is None else code)
    return base64.b64encode(data.getvalue()).decode()


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
    until(lambda: _gone(client, name), within_s=15, what=f"{name} gone")
    assert name not in {f["FunctionName"] for f in client.call("ListFunctions", Limit=100)["Functions"]}


def _gone(client: Sdk, name: str) -> bool:
    try:
        client.call("GetFunction", FunctionName=name)
    except TencentCloudSDKException as exc:
        return str(exc.get_code()) == "ResourceNotFound.FunctionName"
    return False


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
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("index.py", "def main_handler(e, c):\n    return (\n")
    client.call(
        "CreateFunction", FunctionName="broken", Handler="index.main_handler", Runtime="Python3.10",
        Code={"ZipFile": base64.b64encode(data.getvalue()).decode()},
    )  # fmt: skip
    seen = client.settled("broken")
    assert seen["Status"] == "CreateFailed"
    assert "index.py, line 2" in seen["StatusReasons"][0]["ErrorMessage"]
    assert client.code("Invoke", FunctionName="broken") == "FailedOperation.FunctionStatusError"
    client.call("DeleteFunction", FunctionName="broken")
    until(lambda: _gone(client, "broken"), within_s=15, what="broken gone")
