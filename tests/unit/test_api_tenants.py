"""Namespaces, keys and GetAccount over the whole API: what is refused with which code, pages and searches, and who may do what."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from infra.sealing import Seal
from schemas import tc3
from schemas.errors import PlatformError
from schemas.limits import KEYS_PER_TENANT, NAMESPACES_PER_TENANT
from tests.api_fakes import APPID, SECRET_ID, SECRET_KEY, FakeFabric, creation

OWNER = (SECRET_ID, SECRET_KEY)
Keys = tuple[str, str]


@pytest.fixture
async def fabric() -> FakeFabric:
    return FakeFabric()


async def call(fabric: FakeFabric, action: str, *, keys: Keys = OWNER, **fields: Any) -> dict[str, Any]:
    body = json.dumps(fields).encode()
    headers = tc3.signed_post(
        secret_id=keys[0], secret_key=keys[1], host="h:1", action=action, version="2018-04-16", body=body,
        timestamp_s=fabric.clock.unix_ms() // 1000,
    )  # fmt: skip
    sent = tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body)
    answer = dict(json.loads(await fabric.api.answer(sent))["Response"])
    await asyncio.sleep(0.002)
    return answer


async def code(fabric: FakeFabric, action: str, *, keys: Keys = OWNER, **fields: Any) -> str:
    return str((await call(fabric, action, keys=keys, **fields)).get("Error", {}).get("Code", ""))


async def new_key(fabric: FakeFabric, *, keys: Keys = OWNER, **fields: Any) -> dict[str, Any]:
    return dict((await call(fabric, "CreateKey", keys=keys, **fields))["Key"])


def pair(key: dict[str, Any]) -> Keys:
    return key["SecretId"], key["SecretKey"]


# namespaces


@pytest.mark.parametrize(
    ("action", "fields", "wanted"),
    [
        ("CreateNamespace", {"Namespace": "default"}, "ResourceInUse.Namespace"),
        ("CreateNamespace", {"Namespace": "taken"}, "ResourceInUse.Namespace"),
        ("CreateNamespace", {"Namespace": "9x"}, "InvalidParameterValue.Namespace"),
        ("CreateNamespace", {"Namespace": "x" * 31}, "InvalidParameterValue.Namespace"),
        ("CreateNamespace", {}, "MissingParameter"),
        ("CreateNamespace", {"Namespace": "ns", "Description": "x" * 1_001}, "InvalidParameterValue.Description"),
        ("CreateNamespace", {"Namespace": "ns", "ResourceEnv": {"TKE": {"ClusterID": "c"}}}, "UnsupportedOperation"),
        ("CreateNamespace", {"Namespace": "ns", "ResourceEnv": {"OFFLINE": False}}, ""),
        ("UpdateNamespace", {"Namespace": "none"}, "ResourceNotFound.Namespace"),
        ("UpdateNamespace", {"Namespace": "default", "Description": "mine"}, ""),
        ("DeleteNamespace", {"Namespace": "none"}, "ResourceNotFound.Namespace"),
        ("DeleteNamespace", {"Namespace": "default"}, "InvalidParameterValue.DefaultNamespace"),
        ("DeleteNamespace", {"Namespace": "taken"}, ""),
        ("ListNamespaces", {"Orderby": "Size"}, "InvalidParameterValue.OrderBy"),
        ("ListNamespaces", {"Order": "UP"}, "InvalidParameterValue.Order"),
        ("ListNamespaces", {"Limit": -1}, "InvalidParameterValue.Limit"),
        ("ListNamespaces", {"Offset": -1}, "InvalidParameterValue.Offset"),
        ("ListNamespaces", {"SearchKey": [{"Key": "Colour", "Value": "x"}]}, "InvalidParameterValue.SearchKey"),
        ("ListNamespaces", {"SearchKey": [{"Key": "Namespace", "Value": "x"}] * 11}, "InvalidParameterValue.SearchKey"),
    ],
)
async def test_actions_on_namespaces_have_their_codes(
    fabric: FakeFabric, action: str, fields: dict[str, Any], wanted: str
) -> None:
    assert await code(fabric, "CreateNamespace", Namespace="taken") == ""
    assert await code(fabric, action, **fields) == wanted


async def test_there_are_five_namespaces_default_among_them(fabric: FakeFabric) -> None:
    for number in range(NAMESPACES_PER_TENANT - 1):
        assert await code(fabric, "CreateNamespace", Namespace=f"n{number}") == ""
    assert await code(fabric, "CreateNamespace", Namespace="more") == "LimitExceeded.Namespace"
    assert await code(fabric, "DeleteNamespace", Namespace="n0") == ""
    assert await code(fabric, "CreateNamespace", Namespace="more") == ""


async def test_five_at_once_make_no_sixth(fabric: FakeFabric) -> None:
    """The gateway's own count is of what it saw; streams decides."""
    names = [f"n{number}" for number in range(8)]
    codes = await asyncio.gather(*(code(fabric, "CreateNamespace", Namespace=name) for name in names))
    assert sorted(codes) == [""] * 4 + ["LimitExceeded.Namespace"] * 4


async def test_a_namespace_with_functions_stays(fabric: FakeFabric) -> None:
    await call(fabric, "CreateNamespace", Namespace="ns")
    await call(fabric, "CreateFunction", **creation(Namespace="ns"))
    assert await code(fabric, "DeleteNamespace", Namespace="ns") == "ResourceInUse.Namespace"
    fabric.streams.delay_s = None
    await call(fabric, "DeleteFunction", FunctionName="hello", Namespace="ns")
    fabric.streams.delay_s = 0.0
    assert await code(fabric, "DeleteNamespace", Namespace="ns") == ""
    assert await code(fabric, "ListFunctions", Namespace="ns") == "ResourceNotFound.Namespace"


async def test_what_is_in_a_namespace_without_a_record_can_be_reached(fabric: FakeFabric) -> None:
    """A function that an older release made, or one created while the namespace was deleted."""
    await call(fabric, "CreateNamespace", Namespace="ns")
    await call(fabric, "CreateFunction", **creation(Namespace="ns"))
    fabric.streams.namespaces.put(f"{APPID}/ns", None)
    assert await code(fabric, "Invoke", FunctionName="hello", Namespace="ns") == ""
    assert [n["Name"] for n in (await call(fabric, "ListNamespaces"))["Namespaces"]] == ["ns", "default"]
    assert await code(fabric, "DeleteFunction", FunctionName="hello", Namespace="ns") == ""
    assert await code(fabric, "GetFunction", FunctionName="hello", Namespace="ns") == "ResourceNotFound.Namespace"


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("CreateFunction", creation()),
        ("GetFunction", {"FunctionName": "hello"}),
        ("DeleteFunction", {"FunctionName": "hello"}),
        ("UpdateFunctionConfiguration", {"FunctionName": "hello"}),
        ("UpdateFunctionCode", {"FunctionName": "hello", **creation()["Code"]}),
        ("Invoke", {"FunctionName": "hello"}),
        ("InvokeFunction", {"FunctionName": "hello"}),
        ("ListFunctions", {}),
        ("ListTriggers", {"FunctionName": "hello"}),
        (
            "CreateTrigger",
            {"FunctionName": "hello", "TriggerName": "t", "Type": "ckafka", "TriggerDesc": '{"topic":"orders"}'},
        ),
        ("GetFunctionLogLines", {"FunctionName": "hello"}),
        ("ListEventSources", {}),
    ],
)
async def test_an_unknown_namespace_is_told_so(fabric: FakeFabric, action: str, fields: dict[str, Any]) -> None:
    assert await code(fabric, action, **fields, Namespace="none") == "ResourceNotFound.Namespace"
    assert fabric.store.packages == {} or action != "CreateFunction"


async def test_namespaces_are_listed_ordered_searched_and_in_pages(fabric: FakeFabric) -> None:
    for number, (name, description) in enumerate([("bb", "for bees"), ("aa", "for ants"), ("ab", "bees and ants")]):
        fabric.clock.shift_ms = 1_000 * (number + 1)
        await call(fabric, "CreateNamespace", Namespace=name, Description=description)
    fabric.clock.shift_ms += 1_000
    await call(fabric, "UpdateNamespace", Namespace="bb", Description="for bees only")

    async def names(**fields: Any) -> list[str]:
        return [n["Name"] for n in (await call(fabric, "ListNamespaces", **fields))["Namespaces"]]

    assert await names() == ["ab", "aa", "bb", "default"]
    assert await names(Orderby="Name", Order="ASC") == ["aa", "ab", "bb", "default"]
    assert await names(Orderby="updatetime") == ["bb", "ab", "aa", "default"]
    assert await names(Offset=1, Limit=2) == ["aa", "bb"]
    assert await names(SearchKey=[{"Key": "Namespace", "Value": "a"}]) == ["ab", "aa", "default"]
    both = [{"Key": "Namespace", "Value": "b"}, {"Key": "Description", "Value": "ants"}]
    assert await names(SearchKey=both) == ["ab"]
    listed = await call(fabric, "ListNamespaces", Limit=1)
    assert (listed["TotalCount"], len(listed["Namespaces"])) == (4, 1)
    assert set(listed["Namespaces"][0]) == {"Name", "Description", "Type", "AddTime", "ModTime"}


async def test_the_account_tells_what_there_is_and_may_be(fabric: FakeFabric) -> None:
    await call(fabric, "CreateNamespace", Namespace="ns")
    await call(fabric, "CreateFunction", **creation(Namespace="ns"))
    account = await call(fabric, "GetAccount")
    usage, limits = account["AccountUsage"], account["AccountLimit"]
    assert usage["NamespacesCount"] == 2
    assert {n["Namespace"]: n["Functions"] for n in usage["Namespace"]} == {"default": [], "ns": ["hello"]}
    assert (limits["NamespacesCount"], [n["Namespace"] for n in limits["Namespace"]]) == (5, ["default", "ns"])
    assert limits["Namespace"][0]["FunctionsCount"] == 50
    assert limits["Namespace"][0]["Trigger"]["Ckafka"] == 10


# keys


async def test_a_key_signs_and_is_listed_without_its_secret(fabric: FakeFabric) -> None:
    key = await new_key(fabric, Description="ci")
    assert await code(fabric, "ListFunctions", keys=pair(key)) == ""
    listed = await call(fabric, "ListKeys")
    assert [(k["SecretId"], k["InFile"]) for k in listed["Keys"]] == [(SECRET_ID, True), (key["SecretId"], False)]
    assert key["SecretKey"] not in json.dumps(listed)
    assert key["SecretKey"].encode() not in fabric.streams.keys.rows[key["SecretId"]].sealed


async def test_the_secret_before_a_rotation_is_good_for_its_grace_and_no_longer(fabric: FakeFabric) -> None:
    first = await new_key(fabric)
    second = (await call(fabric, "RotateKey", SecretId=first["SecretId"], GraceSeconds=60))["Key"]
    assert second["EarlierUntil"]
    assert [await code(fabric, "ListFunctions", keys=pair(k)) for k in (first, second)] == ["", ""]
    fabric.clock.shift_ms += 61_000
    assert await code(fabric, "ListFunctions", keys=pair(first)) == "AuthFailure.SignatureFailure"
    assert await code(fabric, "ListFunctions", keys=pair(second)) == ""


async def test_one_more_rotation_ends_the_secret_before_the_last(fabric: FakeFabric) -> None:
    keys = [await new_key(fabric)]
    for _ in range(2):
        keys.append((await call(fabric, "RotateKey", SecretId=keys[0]["SecretId"]))["Key"])
        fabric.clock.shift_ms += 1_000
    codes = [await code(fabric, "ListFunctions", keys=pair(k)) for k in keys]
    assert codes == ["AuthFailure.SignatureFailure", "", ""]


async def test_a_key_expires(fabric: FakeFabric) -> None:
    key = await new_key(fabric, ValidSeconds=60)
    assert await code(fabric, "ListFunctions", keys=pair(key)) == ""
    fabric.clock.shift_ms += 61_000
    assert await code(fabric, "ListFunctions", keys=pair(key)) == "AuthFailure.SecretIdNotFound"


async def test_a_deleted_key_signs_no_more(fabric: FakeFabric) -> None:
    key = await new_key(fabric)
    assert await code(fabric, "DeleteKey", SecretId=key["SecretId"]) == ""
    assert await code(fabric, "ListFunctions", keys=pair(key)) == "AuthFailure.SecretIdNotFound"
    assert await code(fabric, "DeleteKey", SecretId=key["SecretId"]) == "ResourceNotFound"


async def test_a_tenant_keeps_its_last_key_while_it_has_something(fabric: FakeFabric) -> None:
    key = await new_key(fabric, NewTenant="TRUE")
    own = pair(key)
    await call(fabric, "CreateFunction", keys=own, **creation())
    for keys in (own, OWNER):
        assert await code(fabric, "DeleteKey", keys=keys, SecretId=key["SecretId"]) == "FailedOperation"
        fabric.clock.shift_ms += 1_000
    await call(fabric, "DeleteFunction", keys=own, FunctionName="hello")
    assert await code(fabric, "DeleteKey", keys=own, SecretId=key["SecretId"]) == "FailedOperation"
    fabric.clock.shift_ms += 1_000
    assert await code(fabric, "DeleteKey", SecretId=key["SecretId"]) == ""


@pytest.mark.parametrize(
    ("action", "fields", "wanted"),
    [
        ("CreateKey", {"AppId": "x"}, "InvalidParameterValue"),
        ("CreateKey", {"AppId": "1250000009", "NewTenant": "TRUE"}, "InvalidParameterValue"),
        ("CreateKey", {"ValidSeconds": -1}, "InvalidParameterValue"),
        ("RotateKey", {"SecretId": SECRET_ID}, "UnsupportedOperation"),
        ("RotateKey", {"SecretId": "AKIDnone"}, "ResourceNotFound"),
        ("RotateKey", {"SecretId": "AKIDnone", "GraceSeconds": 8 * 86_400}, "InvalidParameterValue"),
        ("RotateKey", {}, "MissingParameter"),
        ("DeleteKey", {"SecretId": SECRET_ID}, "UnsupportedOperation"),
        ("ListKeys", {"EveryTenant": "yes"}, "InvalidParameterValue"),
    ],
)
async def test_actions_on_keys_have_their_codes(
    fabric: FakeFabric, action: str, fields: dict[str, Any], wanted: str
) -> None:
    assert await code(fabric, action, **fields) == wanted


async def test_a_tenant_has_so_many_keys_and_they_share_its_uin(fabric: FakeFabric) -> None:
    first = await new_key(fabric, NewTenant="TRUE")
    appid = first["AppId"]
    more = [await new_key(fabric, AppId=appid, Description=str(n)) for n in range(KEYS_PER_TENANT - 1)]
    assert {k["Uin"] for k in more} == {first["Uin"]}
    assert await code(fabric, "CreateKey", AppId=appid, Description="more") == "LimitExceeded"


async def test_a_key_sealed_by_another_fabric_is_not_good_and_nothing_breaks(fabric: FakeFabric) -> None:
    key = await new_key(fabric)
    row = fabric.streams.keys.rows[key["SecretId"]]
    moved = Seal(bytes(31) + b"x", purpose="keys").seal("other", owner=f"{APPID}/{key['SecretId']}")
    fabric.streams.keys.rows[key["SecretId"]] = type(row)(
        **{name: getattr(row, name) for name in row.__slots__} | {"sealed": moved}
    )
    assert await code(fabric, "ListFunctions", keys=pair(key)) == "AuthFailure.SecretIdNotFound"


# sealing


def test_what_is_sealed_opens_for_its_owner_only_and_differs_each_time() -> None:
    seal = Seal(b"k" * 32, purpose="keys")
    sealed = seal.seal("secret ü", owner="a/b")
    assert seal.open(sealed, owner="a/b") == "secret ü"
    assert sealed != seal.seal("secret ü", owner="a/b")
    wrong = [
        (seal, sealed, "a/c"),
        (Seal(b"k" * 32, purpose="other"), sealed, "a/b"),
        (Seal(b"l" * 32, purpose="keys"), sealed, "a/b"),
        (seal, sealed[:-1], "a/b"),
        (seal, b"\x02" + sealed[1:], "a/b"),
        (seal, b"", "a/b"),
    ]
    for other, text, owner in wrong:
        with pytest.raises(PlatformError):
            other.open(text, owner=owner)
