"""Versions and aliases on a running fabric: what was published keeps running, and a key of a topic meets one version."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from router.aliases import record_share
from tests.clients.client import zip_of
from tests.clients.python_sdk import Sdk
from tests.fabric import Fabric, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(150)]

TELLS = """
import json, time

def main_handler(event, context):
    for entry in event["Records"]:
        record = entry["Ckafka"]
        print(json.dumps({"k": record["msgKey"], "s": int(record["msgBody"]), "v": context["function_version"],
                          "code": "WORD", "n": len(event["Records"])}))
"""


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("versions") / "data") as running:
        yield running


@pytest.fixture
def client(fabric: Fabric) -> Sdk:
    return Sdk(fabric, "POST")


def create(client: Sdk, name: str, word: str = "first") -> None:
    client.call(
        "CreateFunction", FunctionName=name, Handler="index.main_handler", Runtime="Python3.10",
        Code={"ZipFile": zip_of(word)},
    )  # fmt: skip
    assert client.settled(name)["Status"] == "Active"


def update(client: Sdk, name: str, word: str, **more: Any) -> None:
    client.call("UpdateFunctionCode", FunctionName=name, ZipFile=zip_of(word), Handler="index.main_handler", **more)
    assert client.settled(name)["Status"] == "Active"


def word(client: Sdk, name: str, qualifier: str, **more: Any) -> str:
    """The word of the code that runs by a qualifier."""
    answer = client.invoke(name, 1, Qualifier=qualifier, **more)
    assert answer["InvokeResult"] == 0, answer
    return str(json.loads(answer["RetMsg"])["word"])


def weights(version: str, weight: float) -> dict[str, Any]:
    return {"AdditionalVersionWeights": [{"Version": version, "Weight": weight}]}


def test_a_published_version_keeps_running_its_own_code_and_configuration(client: Sdk) -> None:
    name = "frozen"
    create(client, name)
    published = client.call("PublishVersion", FunctionName=name, Description="the first")
    assert (published["FunctionVersion"], published["Description"]) == ("1", "the first")
    update(client, name, "second", Publish="TRUE")
    client.call("UpdateFunctionConfiguration", FunctionName=name, Timeout=9)
    assert client.settled(name)["Timeout"] == 9
    update(client, name, "third")
    assert [word(client, name, q) for q in ("1", "2", "$LATEST", "$DEFAULT")] == ["first", "second", "third", "third"]
    assert json.loads(client.invoke(name, 1, Qualifier="1")["RetMsg"])["limit_ms"] == 3_000
    listed = client.call("ListVersionByFunction", FunctionName=name)
    assert (listed["FunctionVersion"], listed["TotalCount"]) == (["$LATEST", "2", "1"], 3)
    assert client.call("GetFunction", FunctionName=name, Qualifier="1")["Timeout"] == 3
    assert client.code("Invoke", FunctionName=name, Qualifier="3") == "ResourceNotFound.Qualifier"


@pytest.mark.parametrize("way", ["POST", "GET", "async POST"])
def test_an_aliass_whole_life(fabric: Fabric, way: str) -> None:
    client, name = Sdk(fabric, way), "alias-" + way.lower().replace(" ", "-")
    create(client, name)
    assert client.call("PublishVersion", FunctionName=name)["FunctionVersion"] == "1"
    update(client, name, "second")
    assert client.call("PublishVersion", FunctionName=name)["FunctionVersion"] == "2"
    one = {"FunctionName": name, "Name": "prod"}
    client.call("CreateAlias", **one, FunctionVersion="1", RoutingConfig=weights("2", 1.0), Description="d")
    assert client.call("GetAlias", **one)["RoutingConfig"]["AdditionalVersionWeights"] == [
        {"Version": "2", "Weight": 1.0}
    ]
    assert word(client, name, "prod") == "second"
    assert client.code("DeleteFunctionVersion", FunctionName=name, Qualifier="2") == "FailedOperation"
    match = {"Version": "2", "Key": "invoke.headers.User", "Method": "exact", "Expression": "Bob"}
    client.call("UpdateAlias", **one, FunctionVersion="1", RoutingConfig={"AddtionVersionMatchs": [match]})
    assert word(client, name, "prod", RoutingKey=json.dumps({"User": "Bob"})) == "second"
    assert word(client, name, "prod") == "first"
    client.call("UpdateAlias", **one, FunctionVersion="1")
    listed = client.call("ListAliases", FunctionName=name, Offset="0", Limit="10")
    assert ([a["Name"] for a in listed["Aliases"]], listed["TotalCount"]) == (["$DEFAULT", "prod"], 2)
    client.call("DeleteFunctionVersion", FunctionName=name, Qualifier="2")
    assert client.call("ListVersionByFunction", FunctionName=name)["FunctionVersion"] == ["$LATEST", "1"]
    client.call("DeleteAlias", **one)
    assert client.code("Invoke", FunctionName=name, Qualifier="prod") == "ResourceNotFound.Qualifier"


def test_an_alias_divides_a_topic_so_that_each_key_meets_one_version(fabric: Fabric, client: Sdk) -> None:
    name, topic = "divided", fabric.make_topic("divided", 3)
    for version in ("1", "2"):
        package = zip_of("x", code=TELLS.replace("WORD", f"code{version}"))
        if version == "1":
            client.call(
                "CreateFunction", FunctionName=name, Handler="index.main_handler", Runtime="Python3.10",
                Code={"ZipFile": package},
            )  # fmt: skip
        else:
            client.call("UpdateFunctionCode", FunctionName=name, ZipFile=package, Handler="index.main_handler")
        assert client.settled(name)["Status"] == "Active"
        assert client.call("PublishVersion", FunctionName=name)["FunctionVersion"] == version
    one = {"FunctionName": name, "Name": "prod"}
    client.call("CreateAlias", **one, FunctionVersion="1", RoutingConfig=weights("2", 0.5))
    trigger = {"FunctionName": name, "TriggerName": "in", "Type": "ckafka", "Qualifier": "prod"}
    desc = json.dumps({"topic": topic, "offset": "earliest", "maxMsgNum": 5, "ordering": "partition"})
    info = client.call("CreateTrigger", **trigger, TriggerDesc=desc)["TriggerInfo"]
    assert info["Qualifier"] == "prod"
    keys = [f"user-{i}" for i in range(40)]
    fabric.produce(topic, [(k.encode(), b"%d" % s, i % 3) for s in range(6) for i, k in enumerate(keys)])
    said = fabric.wait_said(name, 240, within_s=40)
    met = {key: {s["v"] for s in said if s["k"] == key} for key in keys}
    assert met == {k: {"2" if record_share(k.encode(), 0, 0) < 0.5 else "1"} for k in keys}
    assert all(s["code"] == "code" + s["v"] for s in said)
    assert Counter(s["n"] for s in said)[1] < len(said), "nothing was batched, so nothing was shown about batches"
    for key in keys:
        assert [s["s"] for s in said if s["k"] == key] == list(range(6))

    client.call("UpdateAlias", **one, FunctionVersion="1", RoutingConfig=weights("2", 0.8))
    fabric.produce(topic, [(k.encode(), b"9", i % 3) for i, k in enumerate(keys)])
    later = {s["k"]: s["v"] for s in fabric.wait_said(name, 280, within_s=40) if s["s"] == 9}
    moved = {key for key in keys if later[key] not in met[key]}
    assert moved == {k for k in keys if 0.5 <= record_share(k.encode(), 0, 0) < 0.8}
    assert moved

    assert client.code("DeleteAlias", **one) == "FailedOperation"
    client.call("DeleteFunction", FunctionName=name)
    until(lambda: not _rows(fabric, name), within_s=15, what="versions and aliases gone from their topics")


def _rows(fabric: Fabric, name: str) -> list[str]:
    """Keys of the function that still have a record in the registry's topics."""
    newest = {
        (topic, message.key().decode()): message.value()
        for topic in ("versions", "aliases", "triggers", "functions")
        for message in fabric.read_all(f"penstock.registry.{topic}.v1")
    }
    return [key for (_, key), value in newest.items() if value is not None and f"/{name}" in key]


def test_versions_and_aliases_survive_the_death_of_streams_and_gateway(fabric: Fabric, client: Sdk) -> None:
    name = "survivor"
    create(client, name)
    client.call("PublishVersion", FunctionName=name)
    update(client, name, "second")
    client.call("CreateAlias", FunctionName=name, Name="prod", FunctionVersion="1")
    for process in ("streams", "gateway"):
        fabric.wait_back(process, fabric.kill(process))
    assert word(client, name, "prod") == "first"
    assert client.call("PublishVersion", FunctionName=name)["FunctionVersion"] == "2"
    assert word(client, name, "2") == "second"
