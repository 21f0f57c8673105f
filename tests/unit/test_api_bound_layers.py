"""Layers of functions by the cloud API: what is bound, kept, shown, refused and unbound, one claim a test."""

from __future__ import annotations

import base64
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from ingest.api.collection import needed_objects
from schemas.ids import layer_key
from schemas.package import package_object
from schemas.records import FunctionConfig, LayerRef
from schemas.tenants import TenantCommand
from tests.api_fakes import APPID, FakeFabric, creation, zip_of
from tests.unit.test_api_layers import content, publish
from tests.unit.test_api_versions import HELLO, KEY, ask, code, settle

NONE = [{"LayerName": "", "LayerVersion": 0}]


def refs(*wanted: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"LayerName": name, "LayerVersion": version} for name, version in wanted]


def hash_of(text: str) -> str:
    return sha256(base64.b64decode(content(text)["ZipFile"])).hexdigest()


def config(fabric: FakeFabric) -> FunctionConfig:
    """What the function has now."""
    record = fabric.functions.rows[str(KEY)]
    assert record.serving is not None
    return record.serving


async def update(fabric: FakeFabric, **fields: Any) -> None:
    assert await ask(fabric, "UpdateFunctionConfiguration", {**HELLO, **fields}) == {}
    await settle()


async def shown(fabric: FakeFabric, **more: Any) -> list[tuple[str, int, str]]:
    layers = (await ask(fabric, "GetFunction", {**HELLO, **more}))["Layers"]
    return [(x["LayerName"], x["LayerVersion"], x["Status"]) for x in layers]


async def vanish(fabric: FakeFabric, name: str, version: int) -> None:
    """Streams deletes a layer version that is bound: the gateway did not see the binding, which came at that very moment."""
    row = fabric.streams.layers.rows[layer_key(APPID, name, version)]
    command = TenantCommand(f"c-{name}-{version}", "delete-layer", 1, APPID, APPID, layer=row)
    await fabric.streams.send(APPID, command)
    fabric.streams.work()


@pytest.fixture
async def fabric() -> FakeFabric:
    """Layers a (versions 1 and 2) and b, and a function that binds a's first and b."""
    made = FakeFabric()
    await publish(made, "a", Content=content("X = 1\n"), Description="first", LicenseInfo="MIT")
    await publish(made, "a", Content=content("X = 2\n"))
    await publish(made, "b", Content=content("Y = 1\n"))
    assert await ask(made, "CreateFunction", creation(Layers=refs(("a", 1), ("b", 1)))) == {}
    await settle()
    return made


async def test_a_function_holds_its_layers_in_order_with_the_hash_of_their_content(fabric: FakeFabric) -> None:
    assert config(fabric).layers == (
        LayerRef("a", 1, hash_of("X = 1\n")),
        LayerRef("b", 1, hash_of("Y = 1\n")),
    )


async def test_get_function_shows_what_the_layers_are(fabric: FakeFabric) -> None:
    first, second = (await ask(fabric, "GetFunction", HELLO))["Layers"]
    assert first == {
        "LayerName": "a",
        "LayerVersion": 1,
        "CompatibleRuntimes": ["Python3.10"],
        "AddTime": first["AddTime"],
        "Description": "first",
        "LicenseInfo": "MIT",
        "Status": "Active",
        "Stamp": "",
        "Tags": [],
    }
    assert first["AddTime"]
    assert (second["LayerName"], second["LayerVersion"]) == ("b", 1)


async def test_an_update_replaces_them_whole_and_one_that_names_none_leaves_them(fabric: FakeFabric) -> None:
    await update(fabric, Timeout=9)
    await update(fabric, Timeout=10, Layers=[])
    assert await shown(fabric) == [("a", 1, "Active"), ("b", 1, "Active")]
    await update(fabric, Layers=refs(("b", 1), ("a", 2), ("a", 1)))
    assert await shown(fabric) == [("b", 1, "Active"), ("a", 2, "Active"), ("a", 1, "Active")]
    await ask(fabric, "UpdateFunctionCode", {**HELLO, "ZipFile": content("Z = 1\n")["ZipFile"]})
    await settle()
    assert [ref.name for ref in config(fabric).layers] == ["b", "a", "a"]


@pytest.mark.parametrize("again", [1, 2])
async def test_an_empty_name_with_version_0_unbinds_them_all(fabric: FakeFabric, again: int) -> None:
    for _ in range(again):
        await update(fabric, Layers=NONE)
    assert await shown(fabric) == []
    assert config(fabric).layers == ()


async def test_a_function_may_be_made_with_none_either_way() -> None:
    fabric = FakeFabric()
    for name, none in (("one", NONE), ("two", [])):
        assert await ask(fabric, "CreateFunction", creation(name, Layers=none)) == {}
    await settle()
    assert [r.serving.layers for r in fabric.functions.rows.values() if r.serving is not None] == [(), ()]


SIX = [("a", 1)] * 6
REFUSED: list[tuple[Any, str]] = [
    (refs(("a", 3)), "ResourceNotFound.LayerVersion"),
    (refs(("a", 1), ("c", 1)), "ResourceNotFound.Layer"),
    (refs(*SIX), "InvalidParameterValue.Layers"),
    (refs(("a", 1), ("b", 1), ("a", 1)), "InvalidParameterValue.Layers"),
    (refs(("a", 1), ("", 0)), "InvalidParameterValue.Layers"),
    (refs(("", 0), ("", 0)), "InvalidParameterValue.Layers"),
    (refs(("a", 0)), "InvalidParameterValue.Layers"),
    (refs(("", 1)), "InvalidParameterValue.Layers"),
    (refs(("a", -1)), "InvalidParameterValue.Layers"),
    (refs(("a/b", 1)), "InvalidParameterValue.LayerName"),
    ([{"LayerName": "a"}], "MissingParameter"),
    ([{"LayerVersion": 1}], "MissingParameter"),
    ([{"LayerName": "a", "LayerVersion": "one"}], "InvalidParameter"),
    ([{"LayerName": "a", "LayerVersion": 1, "More": 1}], "UnknownParameter"),
    ("a", "InvalidParameter"),
]


@pytest.mark.parametrize(("layers", "wanted"), REFUSED)
@pytest.mark.parametrize("action", ["CreateFunction", "UpdateFunctionConfiguration"])
async def test_layers_that_can_not_be_bound_have_their_code_and_change_nothing(
    fabric: FakeFabric, action: str, layers: Any, wanted: str
) -> None:
    sent, stored = len(fabric.streams.sent), dict(fabric.store.packages)
    fields = {**HELLO, "Timeout": 9}
    if action == "CreateFunction":
        fields = creation("more", Code={"ZipFile": base64.b64encode(zip_of({"index.py": "# new\n"})).decode()})
    assert await code(fabric, action, {**fields, "Layers": layers}) == wanted
    assert len(fabric.streams.sent) == sent
    assert fabric.store.packages == stored


async def test_five_layers_may_be_bound(fabric: FakeFabric) -> None:
    for name in ("c", "d"):
        await publish(fabric, name)
    await update(fabric, Layers=refs(("a", 1), ("a", 2), ("b", 1), ("c", 1), ("d", 1)))
    assert len(config(fabric).layers) == 5


async def test_a_published_version_keeps_its_layers_whatever_becomes_of_the_function_and_of_them(
    fabric: FakeFabric,
) -> None:
    assert (await ask(fabric, "PublishVersion", HELLO))["FunctionVersion"] == "1"
    await update(fabric, Layers=refs(("a", 2)))
    await vanish(fabric, "a", 1)
    assert await shown(fabric) == [("a", 2, "Active")]
    assert await shown(fabric, Qualifier="1") == [("a", 1, "Deleted"), ("b", 1, "Active")]
    kept = fabric.streams.versions.rows[f"{KEY}/1"].config
    assert kept.layers == (LayerRef("a", 1, hash_of("X = 1\n")), LayerRef("b", 1, hash_of("Y = 1\n")))
    views = fabric.functions.rows, fabric.streams.versions.rows, fabric.streams.layers.rows
    needed = needed_objects(views[0].values(), views[1].values(), views[2].values())
    assert package_object(hash_of("X = 1\n")) in needed


async def test_a_layer_made_anew_under_the_name_of_one_that_is_bound_is_not_shown_for_it(fabric: FakeFabric) -> None:
    await vanish(fabric, "b", 1)
    assert await publish(fabric, "b", Content=content("Y = 2\n"), Description="another") == 1
    assert await shown(fabric) == [("a", 1, "Active"), ("b", 1, "Deleted")]
    assert config(fabric).layers[1].sha256 == hash_of("Y = 1\n")


async def test_a_layer_version_is_not_deleted_while_a_function_or_a_version_binds_it(fabric: FakeFabric) -> None:
    in_use = "ResourceInUse.LayerVersion"
    one, two = refs(("a", 1), ("a", 2))
    assert await code(fabric, "DeleteLayerVersion", one) == in_use
    await ask(fabric, "PublishVersion", HELLO)
    await update(fabric, Layers=[two])
    assert await code(fabric, "DeleteLayerVersion", one) == in_use
    assert await code(fabric, "DeleteLayerVersion", two) == in_use
    await update(fabric, Layers=NONE)
    assert await ask(fabric, "DeleteLayerVersion", two) == {}
    assert await ask(fabric, "DeleteFunctionVersion", {**HELLO, "Qualifier": "1"}) == {}
    assert await ask(fabric, "DeleteLayerVersion", one) == {}


async def test_a_binding_that_is_on_its_way_counts_as_a_use(fabric: FakeFabric) -> None:
    fabric.streams.delay_s = None
    assert await ask(fabric, "UpdateFunctionConfiguration", {**HELLO, "Layers": refs(("a", 2))}) == {}
    assert await code(fabric, "DeleteLayerVersion", refs(("a", 2))[0]) == "ResourceInUse.LayerVersion"


@pytest.mark.parametrize(("whole", "wanted"), [(True, 2), (False, 0)])
async def test_a_copy_has_the_layers_when_it_has_the_configuration(
    fabric: FakeFabric, whole: bool, wanted: int
) -> None:
    fields = {**HELLO, "NewFunctionName": "copy", "CopyConfiguration": whole}
    assert await ask(fabric, "CopyFunction", fields) == {}
    await settle()
    copy = fabric.functions.rows[str(replace(KEY, name="copy"))].serving
    assert copy is not None
    assert len(copy.layers) == wanted
