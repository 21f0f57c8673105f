"""Layers by the cloud API: what each action accepts, refuses and shows, one claim a test."""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import Any

import pytest

from schemas.limits import LAYERS_PER_TENANT, VERSIONS_PER_LAYER
from tests.api_fakes import APPID, FakeFabric, zip_of
from tests.unit.test_api_versions import ask, code

L = {"LayerName": "l"}


def content(text: str = "X = 1\n") -> dict[str, str]:
    return {"ZipFile": base64.b64encode(zip_of({"shelf.py": text})).decode()}


def publication(name: str = "l", **more: Any) -> dict[str, Any]:
    return {"LayerName": name, "CompatibleRuntimes": ["Python3.10"], "Content": content(), **more}


async def publish(fabric: FakeFabric, name: str = "l", **more: Any) -> int:
    answer = await ask(fabric, "PublishLayerVersion", publication(name, **more))
    assert "Error" not in answer, answer
    return int(answer["LayerVersion"])


@pytest.fixture
async def fabric() -> FakeFabric:
    return FakeFabric()


async def test_versions_are_numbered_by_layer_and_each_shows_what_was_published(fabric: FakeFabric) -> None:
    two: dict[str, Any] = {
        "Description": "two",
        "LicenseInfo": "MIT",
        "CompatibleRuntimes": ["Python3.7", "Python3.10", "Python3.7"],
    }
    numbers = [
        await publish(fabric),
        await publish(fabric, **two, Content=content("X = 2\n")),
        await publish(fabric, "m"),
    ]
    assert numbers == [1, 2, 1]
    answer = await ask(fabric, "GetLayerVersion", {**L, "LayerVersion": 2})
    package = base64.b64decode(content("X = 2\n")["ZipFile"])
    stored = fabric.store.packages[answer["CodeSha256"]]
    assert (len(stored), answer["CodeSha256"]) == (len(package), sha256(stored).hexdigest())
    assert answer == {
        "CompatibleRuntimes": ["Python3.7", "Python3.10"],
        "CodeSha256": answer["CodeSha256"],
        "Location": f"http://store/{answer['CodeSha256']}?valid_s=600",
        "AddTime": answer["AddTime"],
        "Description": "two",
        "LicenseInfo": "MIT",
        "LayerVersion": 2,
        "LayerName": "l",
        "Status": "Active",
    }
    assert (await ask(fabric, "GetLayerVersion", {**L, "LayerVersion": 1}))["Description"] == ""


async def test_layers_are_listed_by_name_each_by_its_newest_version(fabric: FakeFabric) -> None:
    for name, runtime in (
        ("pandas", "Python3.10"),
        ("pandas", "Python3.6"),
        ("node", "Nodejs16.13"),
        ("numpy", "Python3.10"),
    ):
        await publish(fabric, name, CompatibleRuntimes=[runtime])

    async def listed(**fields: Any) -> tuple[list[tuple[str, int]], int]:
        answer = await ask(fabric, "ListLayers", fields)
        return [(x["LayerName"], x["LayerVersion"]) for x in answer["Layers"]], answer["TotalCount"]

    assert await listed() == ([("node", 1), ("numpy", 1), ("pandas", 2)], 3)
    assert await listed(Offset=1, Limit=1) == ([("numpy", 1)], 3)
    assert await listed(SearchKey="n", CompatibleRuntime="Python3.10") == ([("numpy", 1), ("pandas", 1)], 2)
    rows = (await ask(fabric, "ListLayerVersions", {"LayerName": "pandas"}))["LayerVersions"]
    assert [(x["LayerVersion"], x["CompatibleRuntimes"]) for x in rows] == [(2, ["Python3.6"]), (1, ["Python3.10"])]
    some = {"LayerName": "pandas", "CompatibleRuntime": ["Python3.10", "Go1"]}
    assert [x["LayerVersion"] for x in (await ask(fabric, "ListLayerVersions", some))["LayerVersions"]] == [1]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"LayerName": "1l"}, "InvalidParameterValue.LayerName"),
        ({"LayerName": "l-"}, "InvalidParameterValue.LayerName"),
        ({"LayerName": "l@1"}, "InvalidParameterValue.LayerName"),
        ({"LayerName": "a/b"}, "InvalidParameterValue.LayerName"),
        ({"LayerName": "a" * 65}, "InvalidParameterValue.LayerName"),
        ({"LayerName": None}, "MissingParameter"),
        ({"CompatibleRuntimes": None}, "MissingParameter"),
        ({"CompatibleRuntimes": []}, "InvalidParameterValue.CompatibleRuntimes"),
        ({"CompatibleRuntimes": ["Cobol"]}, "InvalidParameterValue.CompatibleRuntimes"),
        ({"CompatibleRuntimes": "Python3.10"}, "InvalidParameter"),
        ({"Content": None}, "MissingParameter"),
        ({"Content": {}}, "InvalidParameterValue.Content"),
        ({"Content": {"ZipFile": "no base64!"}}, "InvalidParameterValue.ZipFileBase64BinasciiError"),
        ({"Content": {"ZipFile": base64.b64encode(b"no zip").decode()}}, "InvalidParameterValue.ZipFile"),
        ({"Content": {"CosBucketName": "none", "CosObjectName": "o"}}, "ResourceNotFound.CosObject"),
        ({"Content": {"GitUrl": "x"}}, "UnsupportedOperation"),
        ({"Tags": [{"Key": "a", "Value": "b"}]}, "UnsupportedOperation"),
        ({"Description": "x" * 1_001}, "InvalidParameterValue.Description"),
    ],
)
async def test_a_publication_that_is_refused_has_its_code_and_makes_nothing(
    fabric: FakeFabric, fields: dict[str, Any], wanted: str
) -> None:
    assert await code(fabric, "PublishLayerVersion", publication(**fields)) == wanted
    assert (await ask(fabric, "ListLayers", {}))["TotalCount"] == 0
    assert fabric.streams.sent_of_tenants == []


@pytest.mark.parametrize("name", ["a", "A" * 64, "my-layer_1"])
async def test_names_that_scf_takes(fabric: FakeFabric, name: str) -> None:
    assert await publish(fabric, name) == 1


async def test_what_is_not_there_is_told_apart(fabric: FakeFabric) -> None:
    await publish(fabric)
    for action in ("GetLayerVersion", "DeleteLayerVersion"):
        assert await code(fabric, action, {**L, "LayerVersion": 2}) == "ResourceNotFound.LayerVersion"
        assert await code(fabric, action, {"LayerName": "m", "LayerVersion": 1}) == "ResourceNotFound.Layer"
        assert await code(fabric, action, {**L, "LayerVersion": 0}) == "InvalidParameterValue"
    assert await code(fabric, "ListLayerVersions", {"LayerName": "m"}) == "ResourceNotFound.Layer"


async def test_a_deleted_version_is_gone_at_once_and_with_the_last_one_the_layer(fabric: FakeFabric) -> None:
    await publish(fabric)
    await publish(fabric)
    assert await ask(fabric, "DeleteLayerVersion", {**L, "LayerVersion": 2}) == {}
    assert await code(fabric, "GetLayerVersion", {**L, "LayerVersion": 2}) == "ResourceNotFound.LayerVersion"
    assert await publish(fabric) == 3
    for number in (1, 3):
        assert await ask(fabric, "DeleteLayerVersion", {**L, "LayerVersion": number}) == {}
    assert await code(fabric, "ListLayerVersions", L) == "ResourceNotFound.Layer"
    assert (await ask(fabric, "ListLayers", {}))["TotalCount"] == 0


async def test_the_limits_are_refused_before_anything_is_stored(fabric: FakeFabric) -> None:
    for number in range(LAYERS_PER_TENANT):
        await publish(fabric, f"l{number}")
    stored = dict(fabric.store.packages)
    more = publication("more", Content=content("X = 9\n"))
    assert await code(fabric, "PublishLayerVersion", more) == "LimitExceeded.Layers"
    row = fabric.streams.layers.rows[f"{APPID}/l0@1"]
    for number in range(2, VERSIONS_PER_LAYER + 1):
        fabric.streams.layers.put(f"{APPID}/l0@{number}", row)
    more["LayerName"] = "l0"
    assert await code(fabric, "PublishLayerVersion", more) == "LimitExceeded.LayerVersions"
    assert fabric.store.packages == stored
