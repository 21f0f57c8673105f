"""Layers on a running fabric, driven by the vendor's SDK: bound, frozen in versions, out of a stranger's reach, and missed when they are gone."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from infra.objectstore.store import ObjectStore
from schemas import avro, topics
from schemas.package import CODE_BUCKET, package_object
from schemas.tenants import LayerRecord, TenantCommand
from tests.clients.client import zip_of
from tests.clients.python_sdk import Sdk
from tests.fabric import Fabric, running_fabric, until
from tests.integration.test_tenants import client as client_of
from tests.integration.test_tenants import code as code_of
from tests.integration.test_tenants import new_key
from tests.packages import zipped

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(150)]

SAYS = "import shared\n\ndef main_handler(event, context):\n    return [shared.WORD, context['function_version']]\n"


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("layers") / "data") as running:
        yield running


@pytest.fixture(params=["POST", "GET"])
def client(request: pytest.FixtureRequest, fabric: Fabric) -> Sdk:
    return Sdk(fabric, request.param)


def publish(client: Sdk, name: str, word: str) -> dict[str, Any]:
    """A layer with a module `shared`; what LayerVersionSimple says of it."""
    data = base64.b64encode(zipped(("python/shared.py", f"WORD = {word!r}\n".encode()))).decode()
    fields = {"LayerName": name, "CompatibleRuntimes": ["Python3.10"], "Content": {"ZipFile": data}}
    return {"LayerName": name, "LayerVersion": client.call("PublishLayerVersion", **fields)["LayerVersion"]}


def create(client: Sdk, name: str, *layers: dict[str, Any]) -> dict[str, Any]:
    client.call(
        "CreateFunction", FunctionName=name, Handler="index.main_handler", Runtime="Python3.10",
        Code={"ZipFile": zip_of("", code=SAYS)}, Layers=list(layers),
    )  # fmt: skip
    return client.settled(name)


def rebind(client: Sdk, name: str, *layers: dict[str, Any]) -> dict[str, Any]:
    client.call("UpdateFunctionConfiguration", FunctionName=name, Layers=list(layers))
    return client.settled(name)


def said(client: Sdk, name: str, qualifier: str = "$LATEST") -> Any:
    answer = client.invoke(name, 0, Qualifier=qualifier)
    assert answer["InvokeResult"] == 0, answer
    return json.loads(answer["RetMsg"])


def vanish(fabric: Fabric, client: Sdk, layer: dict[str, Any]) -> None:
    """Streams is told to delete a layer version that is bound, as by a gateway that asked a moment before it was."""
    rows = [avro.decode(LayerRecord, m.value()) for m in fabric.read_all(topics.LAYERS) if m.value()]
    [row] = [r for r in rows if (r.name, r.version) == (layer["LayerName"], layer["LayerVersion"])]
    command = TenantCommand(f"vanish-{row.name}", "delete-layer", row.created_unix_ms, row.appid, row.uin, layer=row)
    fabric.produce(topics.TENANT_COMMANDS, [(row.appid.encode(), avro.encode(command), -1)])

    def is_gone() -> bool:
        listed = client.call("ListLayers", Limit=100)["Layers"]
        return row.name not in [x["LayerName"] for x in listed]

    until(is_gone, within_s=10, what=f"layer {row.name} deleted")


async def lose(fabric: Fabric, digest: str) -> None:
    """Delete a package from the fabric's store."""
    keys = json.loads((fabric.data_dir / "store" / "keys.json").read_text())
    door = ObjectStore(fabric.status()["endpoints"]["s3"], keys["access_key"], keys["secret_key"])
    await door.delete(CODE_BUCKET, package_object(digest))
    assert package_object(digest) not in [entry.key for entry in await door.list(CODE_BUCKET)]
    await door.close()


def test_a_published_version_keeps_its_layers_whatever_becomes_of_the_function_and_of_them(
    fabric: Fabric, client: Sdk
) -> None:
    name = f"frozen-{client.call('ListFunctions')['TotalCount']}"
    one, two = publish(client, f"{name}-a", "one"), publish(client, f"{name}-b", "two")
    made = create(client, name, one)
    assert (made["Status"], made["Layers"][0]["LayerName"]) == ("Active", one["LayerName"])
    assert client.call("PublishVersion", FunctionName=name)["FunctionVersion"] == "1"
    assert [x["LayerName"] for x in rebind(client, name, one, two)["Layers"]] == [one["LayerName"], two["LayerName"]]
    assert said(client, name) == ["two", "$LATEST"]
    assert [x["LayerName"] for x in rebind(client, name, two)["Layers"]] == [two["LayerName"]]
    assert client.code("DeleteLayerVersion", **one) == "ResourceInUse.LayerVersion"
    vanish(fabric, client, one)
    assert said(client, name, "1") == ["one", "1"]
    [kept] = client.call("GetFunction", FunctionName=name, Qualifier="1")["Layers"]
    assert (kept["LayerName"], kept["LayerVersion"], kept["Status"]) == (one["LayerName"], 1, "Deleted")
    client.call("CopyFunction", FunctionName=name, NewFunctionName=f"{name}-copy")
    assert client.settled(f"{name}-copy")["Status"] == "Active"
    assert said(client, f"{name}-copy") == ["two", "$LATEST"]


def test_without_its_layers_a_function_does_not_find_their_modules(client: Sdk) -> None:
    name = f"unbound-{client.call('ListFunctions')['TotalCount']}"
    assert create(client, name, publish(client, name, "there"))["Status"] == "Active"
    assert said(client, name)[0] == "there"
    assert rebind(client, name, {"LayerName": "", "LayerVersion": 0})["Layers"] == []
    answer = client.invoke(name, 0)
    assert (answer["InvokeResult"], "No module named 'shared'" in answer["ErrMsg"]) == (443, True)


def test_a_function_with_a_layer_whose_content_is_lost_ends_create_failed_with_the_reason(
    fabric: Fabric, client: Sdk
) -> None:
    name = f"lost-{client.call('ListFunctions')['TotalCount']}"
    good, lost = publish(client, f"{name}-a", "good"), publish(client, f"{name}-b", f"lost {name}")
    asyncio.run(lose(fabric, client.call("GetLayerVersion", **lost)["CodeSha256"]))
    made = create(client, name, good, lost)
    assert made["Status"] == "CreateFailed"
    [reason] = made["StatusReasons"]
    assert reason["ErrorCode"] == "ResourceNotFound.LayerVersion"
    assert f"version 1 of layer '{name}-b'" in reason["ErrorMessage"]
    assert rebind(client, name, good)["Status"] == "Active"
    assert said(client, name)[0] == "good"
    assert rebind(client, name, lost)["Status"] == "UpdateFailed"
    assert said(client, name)[0] == "good"


def test_another_tenant_can_not_bind_my_layer(fabric: Fabric) -> None:
    mine = publish(Sdk(fabric, "POST"), "mine", "secret")
    stranger = client_of(fabric, new_key(fabric, "--new-tenant"))
    fields = {
        "FunctionName": "thief", "Handler": "index.main_handler", "Runtime": "Python3.10",
        "Code": {"ZipFile": zip_of("", code=SAYS)},
    }  # fmt: skip
    assert code_of(stranger, "CreateFunction", **fields, Layers=[mine]) == "ResourceNotFound.Layer"
    assert code_of(stranger, "CreateFunction", **fields) == ""

    def is_active() -> bool:
        return bool(stranger.call("GetFunction", {"FunctionName": "thief"})["Status"] == "Active")

    until(is_active, within_s=20, what="thief is Active")
    update = {"FunctionName": "thief", "Layers": [mine]}
    assert code_of(stranger, "UpdateFunctionConfiguration", **update) == "ResourceNotFound.Layer"
    assert stranger.call("GetFunction", {"FunctionName": "thief"})["Layers"] == []
