"""The cloud API driven by the vendor's own SDK, over HTTP, with fakes behind the ports."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tencentcloud.common import credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.scf.v20180416 import models, scf_client

from ingest.api.ports import KeyPair
from schemas.records import StatusReason
from tests.api_fakes import APPID, SECRET_ID, SECRET_KEY, FakeFabric, Served, creation, served, zip_of

WAYS = [
    ("POST", "TC3-HMAC-SHA256", False),
    ("POST", "TC3-HMAC-SHA256", True),
    ("GET", "TC3-HMAC-SHA256", False),
    ("POST", "HmacSHA1", False),
    ("GET", "HmacSHA1", False),
    ("POST", "HmacSHA256", False),
    ("GET", "HmacSHA256", False),
]


class Client:
    """The SDK's client, callable from the loop; requests are plain dicts."""

    def __init__(
        self,
        port: int,
        *,
        method: str = "POST",
        sign: str = "TC3-HMAC-SHA256",
        unsigned: bool = False,
        key: str = SECRET_KEY,
    ) -> None:
        profile = ClientProfile(
            signMethod=sign, httpProfile=HttpProfile(protocol="http", endpoint=f"127.0.0.1:{port}", reqMethod=method)
        )
        profile.unsignedPayload = unsigned
        self._client = scf_client.ScfClient(credential.Credential(SECRET_ID, key), "ap-guangzhou", profile)

    async def call(self, action: str, **fields: Any) -> Any:
        request = getattr(models, f"{action}Request")()
        request.from_json_string(json.dumps(fields))
        answer = await asyncio.to_thread(getattr(self._client, action), request)
        return json.loads(answer.to_json_string())

    async def error(self, action: str, **fields: Any) -> TencentCloudSDKException:
        with pytest.raises(TencentCloudSDKException) as caught:
            await self.call(action, **fields)
        assert caught.value.get_request_id()
        return caught.value

    async def code(self, action: str, **fields: Any) -> str:
        return str((await self.error(action, **fields)).get_code())


@pytest.fixture
async def door() -> AsyncIterator[Served]:
    async with served(FakeFabric()) as up:
        yield up


@pytest.mark.parametrize(("method", "sign", "unsigned"), WAYS)
async def test_the_whole_life_of_a_function(door: Served, method: str, sign: str, unsigned: bool) -> None:
    client = Client(door.port, method=method, sign=sign, unsigned=unsigned)
    variables = {"Variables": [{"Key": "COLOUR", "Value": "blue & <grün>"}, {"Key": "SIZE", "Value": "3"}]}
    await client.call(
        "CreateFunction", **creation(MemorySize=256, Timeout=30, Environment=variables, Description="first")
    )
    seen = await client.call("GetFunction", FunctionName="hello")
    assert (seen["Status"], seen["MemorySize"], seen["Timeout"], seen["Handler"]) == (
        "Active",
        256,
        30,
        "index.main_handler",
    )
    assert seen["Environment"] == variables
    assert seen["CodeSize"] == len(zip_of())
    listed = await client.call("ListFunctions", Limit=5)
    assert (listed["TotalCount"], listed["Functions"][0]["FunctionName"]) == (1, "hello")

    ran = (await client.call("Invoke", FunctionName="hello", ClientContext='{"msg": "你好"}', LogType="Tail"))["Result"]
    assert (ran["InvokeResult"], json.loads(ran["RetMsg"])) == (0, {"msg": "你好"})
    assert (ran["Duration"], ran["BillDuration"], ran["MemUsage"]) == (1.5, 2, 2_048 * 1024)
    assert "hello" in ran["Log"]
    ran = (await client.call("InvokeFunction", FunctionName="hello", Event='{"a": 1}'))["Result"]
    assert ran["RetMsg"] == '{"a": 1}'
    assert ran["Log"] == ""
    failed = (await client.call("Invoke", FunctionName="hello", ClientContext='"fail"'))["Result"]
    assert failed["InvokeResult"] == 430
    assert json.loads(failed["RetMsg"])["requestId"] == failed["FunctionRequestId"]
    assert "boom" in failed["ErrMsg"]

    made = await client.call(
        "CreateTrigger",
        FunctionName="hello",
        TriggerName="in",
        Type="ckafka",
        TriggerDesc=json.dumps({"topic": "orders", "maxMsgNum": 10, "offset": "earliest", "concurrency": 8}),
    )
    assert made["TriggerInfo"]["Enable"] == 1
    assert [t["TriggerName"] for t in (await client.call("GetFunction", FunctionName="hello"))["Triggers"]] == ["in"]
    assert (await client.call("ListTriggers", FunctionName="hello"))["TotalCount"] == 1
    await client.call("UpdateTriggerStatus", FunctionName="hello", TriggerName="in", Type="ckafka", Enable="CLOSE")
    assert (await client.call("ListTriggers", FunctionName="hello"))["Triggers"][0]["Enable"] == 0
    await client.call("DeleteTrigger", FunctionName="hello", TriggerName="in", Type="ckafka")
    assert (await client.call("ListTriggers", FunctionName="hello"))["TotalCount"] == 0

    await client.call("UpdateFunctionConfiguration", FunctionName="hello", Timeout=5, Environment={"Variables": []})
    seen = await client.call("GetFunction", FunctionName="hello")
    assert (seen["Timeout"], seen["MemorySize"], seen["Description"]) == (5, 256, "first")
    await client.call(
        "UpdateFunctionCode", FunctionName="hello", ZipFile=base64.b64encode(zip_of({"a.py": "x=1"})).decode()
    )
    assert (await client.call("GetFunction", FunctionName="hello"))["CodeSize"] == len(zip_of({"a.py": "x=1"}))
    await client.call("DeleteFunction", FunctionName="hello")
    assert await client.code("GetFunction", FunctionName="hello") == "ResourceNotFound.FunctionName"


async def test_a_wrong_key_is_told_so(door: Served) -> None:
    assert await Client(door.port, key="other").code("ListFunctions") == "AuthFailure.SignatureFailure"
    assert await Client(door.port, key="other", sign="HmacSHA1").code("ListFunctions") == "AuthFailure.SignatureFailure"


@pytest.mark.parametrize("shift_s", [-310, 310])
async def test_a_clock_that_is_off_is_told_so(door: Served, shift_s: int) -> None:
    door.fabric.clock.shift_ms = shift_s * 1000
    assert await Client(door.port).code("ListFunctions") == "AuthFailure.SignatureExpire"


async def test_a_created_function_shows_at_once_and_stays_until_the_registry_has_it() -> None:
    async with served(FakeFabric(delay_s=None)) as door:
        client, streams = Client(door.port), door.fabric.streams
        await client.call("CreateFunction", **creation())
        assert (await client.call("GetFunction", FunctionName="hello"))["Status"] == "Creating"
        assert (await client.call("ListFunctions"))["TotalCount"] == 1
        assert await client.code("CreateFunction", **creation()) == "ResourceInUse.FunctionName"
        assert await client.code("Invoke", FunctionName="hello") == "FailedOperation.FunctionStatusError"
        assert (
            await client.code("UpdateFunctionConfiguration", FunctionName="hello", Timeout=9)
            == "FailedOperation.FunctionStatusError"
        )
        streams.work()
        assert (await client.call("GetFunction", FunctionName="hello"))["Status"] == "Active"
        await client.call("UpdateFunctionConfiguration", FunctionName="hello", Timeout=9)
        seen = await client.call("GetFunction", FunctionName="hello")
        assert (seen["Status"], seen["Timeout"]) == ("Updating", 9)
        await client.call("DeleteFunction", FunctionName="hello")
        assert (await client.call("GetFunction", FunctionName="hello"))["Status"] == "Deleting"
        streams.work()
        assert await client.code("GetFunction", FunctionName="hello") == "ResourceNotFound.FunctionName"


async def test_a_failed_creation_tells_why(door: Served) -> None:
    door.fabric.streams.code_fails = (
        StatusReason("InvalidParameterValue.Handler", "index.py has no function main_handler"),
    )
    client = Client(door.port)
    await client.call("CreateFunction", **creation())
    seen = await client.call("GetFunction", FunctionName="hello")
    assert (seen["Status"], seen["CodeResult"]) == ("CreateFailed", "failed")
    assert seen["StatusReasons"] == [
        {"ErrorCode": "InvalidParameterValue.Handler", "ErrorMessage": "index.py has no function main_handler"}
    ]
    assert "main_handler" in seen["StatusDesc"]


async def test_a_dead_broker_is_a_coded_error_and_leaves_nothing_half_shown(door: Served) -> None:
    door.fabric.streams.broken = True
    client = Client(door.port)
    assert await client.code("CreateFunction", **creation()) == "ResourceUnavailable"
    assert await client.code("GetFunction", FunctionName="hello") == "ResourceNotFound.FunctionName"


async def test_a_defect_is_answered_internal_error_with_the_request_id(door: Served) -> None:
    door.fabric.logs = None  # type: ignore[assignment]
    object.__setattr__(door.fabric.services, "logs", None)
    await Client(door.port).call("CreateFunction", **creation())
    answer = await raw(door.port, "GetFunctionLogLines", {"FunctionName": "hello"})
    assert answer["Error"]["Code"] == "InternalError"
    assert answer["RequestId"] in answer["Error"]["Message"]


async def raw(port: int, action: str, fields: dict[str, Any]) -> Any:
    """A call by the SDK's untyped client."""
    from tencentcloud.common.common_client import CommonClient

    profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint=f"127.0.0.1:{port}"))
    client = CommonClient("scf", "2018-04-16", credential.Credential(SECRET_ID, SECRET_KEY), "", profile)
    try:
        return (await asyncio.to_thread(client.call_json, action, fields))["Response"]
    except TencentCloudSDKException as exc:
        return {"Error": {"Code": exc.get_code(), "Message": exc.get_message()}, "RequestId": exc.get_request_id()}


async def test_unknown_actions_versions_and_fields_are_told_so(door: Served) -> None:
    assert (await raw(door.port, "MakeCoffee", {}))["Error"]["Code"] == "InvalidAction"
    assert (await raw(door.port, "ListFunctions", {"Colour": 1}))["Error"]["Code"] == "UnknownParameter"
    assert (await raw(door.port, "ListFunctions", {"Limit": "x"}))["Error"]["Code"] == "InvalidParameter"


async def test_a_tenant_sees_only_its_own() -> None:
    fabric = FakeFabric(more_keys=(KeyPair(SECRET_ID + "2", "k2", "1250000002", "2"),))
    async with served(fabric) as door:
        await Client(door.port).call("CreateFunction", **creation())
        other = Client(door.port, key="k2")
        other._client.credential = credential.Credential(SECRET_ID + "2", "k2")
        assert (await other.call("ListFunctions"))["TotalCount"] == 0
        assert await other.code("Invoke", FunctionName="hello") == "ResourceNotFound.FunctionName"
        assert await other.code("DeleteFunction", FunctionName="hello") == "ResourceNotFound.FunctionName"
        await other.call("CreateFunction", **creation())
        assert {key.split("/")[0] for key in fabric.functions.rows} == {APPID, "1250000002"}
