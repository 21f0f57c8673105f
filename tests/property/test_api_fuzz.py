"""Whatever is sent, the API answers with a code of its own: never InternalError, never a hang; GET means what POST means."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tencentcloud.scf.v20180416 import errorcodes, models, scf_client

from infra import clock
from ingest.api.actions import ACTIONS
from ingest.api.fields import Schema, unflatten
from ingest.api.function_requests import CreateFunction
from ingest.api.unbuilt import UNBUILT
from schemas import tc3
from schemas.records import LogLine
from tests.api_fakes import SECRET_ID, SECRET_KEY, FakeFabric, creation

COMMON = {
    "InternalError",
    "InvalidAction",
    "InvalidParameter",
    "MissingParameter",
    "NoSuchVersion",
    "RequestLimitExceeded",
}
COMMON |= {"ResourceUnavailable", "UnknownParameter", "UnsupportedOperation", "UnsupportedProtocol"}
COMMON |= {
    f"AuthFailure.{name}" for name in ("SecretIdNotFound", "SignatureExpire", "SignatureFailure", "TokenFailure")
}
PUBLISHED = {value for name, value in vars(errorcodes).items() if name.isupper()} | COMMON
OWN = {
    "GetFunctionLogLines", "ListEventSources", "GetActivity", "ListWorkflows", "GetWorkflow",
    "CreateKey", "ListKeys", "RotateKey", "DeleteKey",
}  # fmt: skip

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=40)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
TEXTS = [
    "hello",
    "in",
    "TRUE",
    "FALSE",
    "OPEN",
    "CLOSE",
    "ckafka",
    "timer",
    "{}",
    "[]",
    '{"topic": "orders"}',
    "a.f",
    "Python3.9",
]
TEXTS += [
    "$LATEST",
    "1",
    "DESC",
    "ASC",
    "AddTime",
    "Tail",
    "Event",
    "RequestResponse",
    "",
    "\0",
    "\ud800",
    "default",
    "x" * 5_000,
]
STRUCTURES: list[Any] = [creation()["Code"], {"ZipFile": "AAAA"}, {"CosBucketName": "bucket", "CosObjectName": "o"}]
STRUCTURES += [{"Variables": [{"Key": "A", "Value": "b"}]}, [{"Name": "Status", "Values": ["Active"]}], [{}], {"": ""}]
likely = st.sampled_from(TEXTS) | st.sampled_from(STRUCTURES) | st.integers(-1, 1_100) | st.sampled_from([64, 128, 256])
GOOD: dict[str, dict[str, Any]] = {
    "CreateFunction": creation("other"),
    "UpdateFunctionCode": {"FunctionName": "hello", **creation()["Code"]},
    "CreateTrigger": {"FunctionName": "hello", "TriggerName": "x-orders", "Type": "ckafka", "TriggerDesc": "{}"},
    "GetFunctionLogs": {"FunctionName": "hello", "Filter": {"RetCode": "not0"}},
    "GetRequestStatus": {"FunctionName": "hello", "FunctionRequestId": "r"},
    "CopyFunction": {"FunctionName": "hello", "NewFunctionName": "other"},
    "UpdateTrigger": {
        "FunctionName": "hello",
        "TriggerName": "in-orders",
        "Type": "ckafka",
        "TriggerDesc": '{"retry": 1}',
    },
    "DeleteTrigger": {"FunctionName": "hello", "TriggerName": "in-orders", "Type": "ckafka"},
    "UpdateTriggerStatus": {"FunctionName": "hello", "TriggerName": "in-orders", "Type": "ckafka", "Enable": "CLOSE"},
    "DeleteFunctionVersion": {"FunctionName": "hello", "Qualifier": "1"},
    "CreateAlias": {"FunctionName": "hello", "Name": "prod", "FunctionVersion": "$LATEST"},
    "UpdateAlias": {"FunctionName": "hello", "Name": "$DEFAULT", "FunctionVersion": "$LATEST"},
    "GetAlias": {"FunctionName": "hello", "Name": "$DEFAULT"},
    "DeleteAlias": {"FunctionName": "hello", "Name": "prod"},
    "PutReservedConcurrencyConfig": {"FunctionName": "hello", "ReservedConcurrencyMem": 128},
    "PutTotalConcurrencyConfig": {"TotalConcurrencyMem": 20_000},
    "PutProvisionedConcurrencyConfig": {
        "FunctionName": "hello",
        "Qualifier": "1",
        "VersionProvisionedConcurrencyNum": 1,
    },
    "DeleteProvisionedConcurrencyConfig": {"FunctionName": "hello", "Qualifier": "1"},
    "ListEventSources": {},
    "UpdateFunctionEventInvokeConfig": {
        "FunctionName": "hello",
        "AsyncTriggerConfig": {"RetryConfig": [{"RetryNum": 1}], "MsgTTL": 100},
    },
    "GetAsyncEventStatus": {"InvokeRequestId": "5f4e6f9e-7f0e-4c35-9c4d-4d0a3c7b8a11"},
    "ListAsyncEvents": {"FunctionName": "hello"},
    "TerminateAsyncEvent": {"FunctionName": "hello", "InvokeRequestId": "5f4e6f9e-7f0e-4c35-9c4d-4d0a3c7b8a11"},
    "ListFunctions": {},
    "CreateNamespace": {"Namespace": "other"},
    "UpdateNamespace": {"Namespace": "default"},
    "DeleteNamespace": {"Namespace": "other"},
    "ListNamespaces": {},
    "CreateKey": {},
    "ListKeys": {},
    "RotateKey": {"SecretId": "AKIDx"},
    "DeleteKey": {"SecretId": "AKIDx"},
}


def model_fields(model: Any) -> list[str]:
    return [name[1:] for name in vars(model) if name != "_headers"]


def request_fields(action: str) -> list[str]:
    if action in OWN:
        return sorted(ACTIONS[action].schema.names)
    return model_fields(getattr(models, f"{action}Request")())


def call(action: str, fields: Any, *, get: bool) -> tc3.SignedCall:
    now = clock.unix_ms() // 1000
    host = "127.0.0.1:1"
    common = {"host": host, "x-tc-action": action, "x-tc-version": "2018-04-16", "x-tc-timestamp": str(now)}
    if get:
        common["content-type"] = tc3.FORM_TYPE
        sent = tc3.SignedCall("GET", urlencode(flatten(fields), errors="surrogatepass"), common, b"")
    else:
        common["content-type"] = tc3.JSON_TYPE
        sent = tc3.SignedCall("POST", "", common, json.dumps(fields).encode())
    text = tc3.sign(sent, secret_id=SECRET_ID, secret_key=SECRET_KEY, timestamp_s=now, service="scf")
    return tc3.SignedCall(sent.method, sent.query, {**common, "authorization": text}, sent.body)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """As the SDK does it."""
    if isinstance(value, dict):
        return {
            k: v
            for name, inner in value.items()
            for k, v in flatten(inner, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in flatten(inner, f"{prefix}.{i}").items()}
    return {} if value is None else {prefix: value}


async def answer(fabric: FakeFabric, sent: tc3.SignedCall) -> dict[str, Any]:
    async with asyncio.timeout(20):
        response: dict[str, Any] = json.loads(await fabric.api.answer(sent))["Response"]
    return response


def made() -> FakeFabric:
    return FakeFabric()


@pytest.mark.parametrize("action", sorted(set(ACTIONS) - OWN))
def test_every_field_that_the_sdk_can_send_is_known(action: str) -> None:
    assert set(request_fields(action)) <= ACTIONS[action].schema.names


SDK_ACTIONS = sorted(
    name for name in vars(scf_client.ScfClient) if name[0].isupper() and hasattr(models, f"{name}Request")
)


def test_every_action_of_the_sdk_is_built_or_refused_by_name() -> None:
    assert len(SDK_ACTIONS) == 52
    assert set(SDK_ACTIONS) == (set(ACTIONS) - OWN) | set(UNBUILT)
    assert not set(ACTIONS) & set(UNBUILT)


@pytest.mark.parametrize("get", [False, True], ids=["POST", "GET"])
@pytest.mark.parametrize("action", sorted(UNBUILT))
def test_an_action_that_is_not_built_says_so_whatever_is_sent(action: str, get: bool) -> None:
    fields = dict.fromkeys(request_fields(action), "x")
    for sent in ({}, fields):
        error = asyncio.run(answer(made(), call(action, sent, get=get)))["Error"]
        assert error["Code"] == "UnsupportedOperation"
        assert action in error["Message"]


@pytest.mark.parametrize("action", ["CreateCoffee", "createFunction", "", "x" * 2_000])
def test_an_action_that_nobody_knows_is_refused_as_such(action: str) -> None:
    error = asyncio.run(answer(made(), call(action, {}, get=False)))["Error"]
    assert error["Code"] == ("InvalidAction" if action else "MissingParameter")
    assert len(error["Message"]) < 2_000


def test_every_field_of_code_is_known() -> None:
    schema = Schema(CreateFunction)
    for name in model_fields(models.Code()):
        try:
            schema.parse({**creation(), "Code": {name: "x"}}, text=False)
        except Exception as exc:
            assert getattr(exc, "api_code", "") != "UnknownParameter"  # noqa: PT017


@pytest.mark.parametrize("action", sorted(ACTIONS))
@settings(max_examples=60, deadline=None)
@given(data=st.data(), get=st.booleans())
def test_any_values_in_any_fields_get_a_published_code(action: str, data: st.DataObject, get: bool) -> None:
    names = request_fields(action)
    fields = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, likely | anything)))
    if data.draw(st.booleans()):  # one or two changes to a good request get further
        changed = data.draw(st.lists(st.sampled_from(names), max_size=2)) if names else []
        fields = GOOD.get(action, {"FunctionName": "hello"} if names else {}) | {
            k: v for k, v in fields.items() if k in changed
        }

    async def run() -> dict[str, Any]:
        fabric = made()
        fabric.streams.delay_s = 0.0
        await answer(fabric, call("CreateFunction", creation(), get=False))
        fabric.streams.work()
        await answer(fabric, call("CreateTrigger", GOOD["CreateTrigger"] | {"TriggerName": "in-orders"}, get=False))
        fabric.logs.lines = [LogLine("r", 1, "stdout", "x")]
        response = await answer(fabric, call(action, fields, get=get))
        await fabric.streams.close()
        return response

    response = asyncio.run(run())
    assert len(response["RequestId"]) == 36
    if "Error" in response:
        assert response["Error"]["Code"] in PUBLISHED - {"InternalError"}
        assert response["Error"]["Message"]


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=200) | anything.map(lambda v: json.dumps(v).encode()))
def test_any_body_gets_a_published_code(body: bytes) -> None:
    async def run() -> dict[str, Any]:
        headers = tc3.signed_post(
            secret_id=SECRET_ID,
            secret_key=SECRET_KEY,
            host="h",
            action="ListFunctions",
            version="2018-04-16",
            body=body,
            timestamp_s=clock.unix_ms() // 1000,
        )
        return await answer(made(), tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body))

    response = asyncio.run(run())
    assert response.get("Error", {"Code": "InvalidParameter"})["Code"] in PUBLISHED - {"InternalError"}


header = st.text(st.characters(codec="latin-1"), max_size=80)


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", ""]) | st.text(max_size=5),
    query=st.text(st.characters(codec="ascii"), max_size=80),
    headers=st.dictionaries(
        st.sampled_from(
            ["authorization", "host", "content-type", "x-tc-action", "x-tc-version", "x-tc-timestamp", "x-tc-token"]
        ),
        header,
    ),
    body=st.binary(max_size=80),
)
def test_any_unsigned_call_is_refused_as_such(method: str, query: str, headers: dict[str, str], body: bytes) -> None:
    async def run() -> dict[str, Any]:
        return await answer(made(), tc3.SignedCall(method, query, headers, body))

    assert asyncio.run(run())["Error"]["Code"] in PUBLISHED - {"InternalError"}


names = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,5}", fullmatch=True)
trees = st.dictionaries(
    names,
    st.recursive(
        st.text(max_size=10),
        lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3) | st.lists(inner, min_size=1, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def numbered(value: Any) -> Any:
    if isinstance(value, list):
        return {str(i): numbered(inner) for i, inner in enumerate(value)}
    return {name: numbered(inner) for name, inner in value.items()} if isinstance(value, dict) else value


@given(tree=trees)
def test_unflatten_is_the_inverse_of_the_sdks_flattening(tree: dict[str, Any]) -> None:
    assert unflatten([(k, str(v)) for k, v in flatten(tree).items()]) == numbered(tree)


@settings(max_examples=40, deadline=None)
@given(
    memory=st.sampled_from([64, 128, 3072]),
    timeout=st.integers(1, 900),
    description=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    variables=st.dictionaries(
        st.from_regex(r"[A-RT-Z][A-Z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
        max_size=4,
    ),
)
def test_a_get_makes_the_same_function_as_a_post(
    memory: int, timeout: int, description: str, variables: dict[str, str]
) -> None:
    fields = creation(
        MemorySize=memory,
        Timeout=timeout,
        Description=description,
        Environment={"Variables": [{"Key": k, "Value": v} for k, v in variables.items()]},
    )

    async def run(*, get: bool) -> Any:
        fabric = made()
        response = await answer(fabric, call("CreateFunction", fields, get=get))
        sent = fabric.streams.sent
        return (
            response.get("Error", {}).get("Code"),
            sent[0].config if sent else None,
            sent[0].description if sent else None,
        )

    assert asyncio.run(run(get=True)) == asyncio.run(run(get=False))
