"""Every client of Tencent Cloud lives a function's whole life on `penstock up`, with nothing but endpoint and keys set: one list for all.

The Python SDK is in the environment of the tests, tccli in one of its own (`make test` makes it), the SDKs of Node and
Go are made by `make clients` where npm and go are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.clients.client import Access, Client, zip_of
from tests.clients.programs import Driver, Tccli
from tests.clients.python_sdk import Sdk
from tests.fabric import Fabric, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(120)]

EVENT = {"msg": "你好 & <grün>"}
NESTED = [{"Name": "Status", "Values": ["CreateFailed", "a b+c&d=é~*'()_.%20"]}]
MISSING = "ResourceNotFound.FunctionName"


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("clients") / "data") as running:
        yield running


@pytest.fixture(params=["python", "python-async", "tccli", "node", "node-GET", "go", "go-GET"])
def client(request: pytest.FixtureRequest, fabric: Fabric, tmp_path: Path) -> Iterator[Client]:
    name, _, way = str(request.param).partition("-")
    if name == "python":
        yield Sdk(fabric, f"{way} POST".strip())
    elif name == "tccli":
        yield Tccli(Access.of(fabric), tmp_path)
    else:
        with Driver(Access.of(fabric), tmp_path, name, http_method=way) as driver:
            yield driver


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A function's name that no other client has."""
    return "life-" + str(request.node.callspec.params["client"])


def word(client: Client, name: str, qualifier: str) -> str:
    """The word of the code that runs by a qualifier."""
    ran = client.invoke(name, EVENT, Qualifier=qualifier)
    assert ran["InvokeResult"] == 0, ran
    return str(json.loads(ran["RetMsg"])["word"])


def publish_two_versions(client: Client, name: str) -> None:
    """Version 1 says "first", version 2 and $LATEST say "second"."""
    assert client.call("PublishVersion", FunctionName=name)["FunctionVersion"] == "1"
    client.call("UpdateFunctionCode", FunctionName=name, Handler="index.main_handler", ZipFile=zip_of("second"))
    assert client.settled(name)["Status"] == "Active"
    assert client.call("PublishVersion", FunctionName=name, Description="the second")["FunctionVersion"] == "2"
    assert [word(client, name, q) for q in ("1", "2", "$LATEST")] == ["first", "second", "second"]


def logged(client: Client, name: str, text: str) -> list[dict[str, Any]]:
    """The function's runs that wrote a text."""
    rows = client.call("GetFunctionLogs", FunctionName=name, Order="desc", Limit=20)["Data"]
    return [row for row in rows if text in row["Log"]]


def test_a_functions_whole_life_by_every_client(fabric: Fabric, client: Client, name: str) -> None:
    topic = fabric.make_topic(name)
    fabric.produce(topic, [(b"k", b"by the topic", 0)])
    variables = {"Variables": [{"Key": "COLOUR", "Value": "blue & <grün>"}]}
    client.call(
        "CreateFunction", FunctionName=name, Handler="index.main_handler", Runtime="Python3.10", MemorySize=256,
        Timeout=7, Description="of a client's", Environment=variables, Code={"ZipFile": zip_of("first")},
    )  # fmt: skip
    made = client.settled(name)
    assert (made["Status"], made["MemorySize"], made["Timeout"]) == ("Active", 256, 7)
    assert (made["Description"], made["Environment"]) == ("of a client's", variables)
    listed = client.call("ListFunctions", Limit=100)
    assert [f["Status"] for f in listed["Functions"] if f["FunctionName"] == name] == ["Active"]

    ran = client.invoke(name, EVENT, LogType="Tail")
    assert json.loads(ran["RetMsg"]) == {
        "word": "first", "event": EVENT, "colour": "blue & <grün>", "limit_ms": 7_000,
    }  # fmt: skip
    assert f"START RequestId: {ran['FunctionRequestId']}" in ran["Log"]
    assert (ran["InvokeResult"], ran["Duration"] > 0, ran["MemUsage"] > 0) == (0, True, True)

    publish_two_versions(client, name)
    alias = {"FunctionName": name, "Name": "prod"}
    weights = [{"Version": "2", "Weight": 1.0}]
    client.call("CreateAlias", **alias, FunctionVersion="1", RoutingConfig={"AdditionalVersionWeights": weights})
    assert client.call("GetAlias", **alias)["RoutingConfig"]["AdditionalVersionWeights"] == weights
    assert word(client, name, "prod") == "second"

    trigger = {"FunctionName": name, "TriggerName": "in", "Type": "ckafka", "Qualifier": "prod"}
    desc = json.dumps({"topic": topic, "maxMsgNum": 1, "offset": "earliest", "retry": 0})
    info = client.call("CreateTrigger", **trigger, TriggerDesc=desc, Enable="OPEN")["TriggerInfo"]
    assert (info["TriggerName"], info["Enable"], info["Type"], info["Qualifier"]) == ("in", 1, "ckafka", "prod")
    assert [t["TriggerName"] for t in client.call("ListTriggers", FunctionName=name)["Triggers"]] == ["in"]
    until(lambda: logged(client, name, "by the topic"), within_s=20, what="the record of the topic in the log")

    client.call("DeleteTrigger", **trigger)
    assert client.call("ListTriggers", FunctionName=name)["TotalCount"] == 0
    client.call("DeleteAlias", **alias)
    assert [a["Name"] for a in client.call("ListAliases", FunctionName=name)["Aliases"]] == ["$DEFAULT"]
    client.call("DeleteFunction", FunctionName=name)
    until(lambda: client.gone(name), within_s=15, what=f"{name} gone")
    assert client.code("Invoke", FunctionName=name) == MISSING


def test_a_refusal_arrives_as_the_clients_own_error_with_its_code(client: Client) -> None:
    refused: list[tuple[str, str, dict[str, Any]]] = [
        ("GetFunction", MISSING, {"FunctionName": "nobody"}),
        ("Invoke", MISSING, {"FunctionName": "nobody"}),
        ("DeleteFunction", MISSING, {"FunctionName": "nobody"}),
        ("GetFunction", "InvalidParameterValue.FunctionName", {"FunctionName": "?"}),
        ("CreateFunction", "InvalidParameterValue.MemorySize", {
            "FunctionName": "other", "Handler": "index.main_handler", "Runtime": "Python3.10", "MemorySize": 100,
            "Code": {"ZipFile": zip_of("x")},
        }),
    ]  # fmt: skip
    assert [client.code(action, **fields) for action, _, fields in refused] == [code for _, code, _ in refused]


@pytest.mark.parametrize("name", ["node", "go"])
def test_each_way_to_sign_is_accepted_with_the_right_key_only(fabric: Fabric, tmp_path: Path, name: str) -> None:
    access = Access.of(fabric)
    for sign_method in ("TC3-HMAC-SHA256", "HmacSHA256", "HmacSHA1"):
        for http_method in ("POST", "GET"):
            with ExitStack() as stack:
                right, wrong = (
                    stack.enter_context(Driver(keys, tmp_path, name, http_method=http_method, sign_method=sign_method))
                    for keys in (access, replace(access, secret_key="wrong"))
                )
                assert right.call("ListFunctions", Limit=5, Filters=NESTED)["TotalCount"] == 0
                assert wrong.code("ListFunctions", Filters=NESTED) == "AuthFailure.SignatureFailure", (
                    sign_method,
                    http_method,
                )
