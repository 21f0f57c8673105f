"""What each action accepts and how it refuses: rules of SCF.md section 3, called through `Api` with signed bytes."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from infra import clock
from ingest.api.services import accepted
from schemas import tc3
from schemas.errors import BadRequest, StoreUnavailable
from schemas.limits import FUNCTIONS_PER_NAMESPACE, PACKAGE_ZIP_BYTES, TRIGGERS_PER_KIND
from schemas.records import FunctionActivity, LanePartition, LogLine, Member, Outcome
from tests.api_fakes import APPID, SECRET_ID, SECRET_KEY, FakeFabric, creation, zip_of


async def ask(fabric: FakeFabric, action: str, fields: Any) -> dict[str, Any]:
    body = json.dumps(fields).encode()
    now = clock.unix_ms() // 1000
    headers = tc3.signed_post(
        secret_id=SECRET_ID,
        secret_key=SECRET_KEY,
        host="h",
        action=action,
        version="2018-04-16",
        body=body,
        timestamp_s=now,
    )
    answer = await fabric.api.answer(tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body))
    response: dict[str, Any] = json.loads(answer)["Response"]
    return response


async def code(fabric: FakeFabric, action: str, fields: Any) -> str:
    return str((await ask(fabric, action, fields)).get("Error", {}).get("Code", ""))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def fabric() -> FakeFabric:
    return FakeFabric()


@pytest.fixture
async def active(fabric: FakeFabric) -> FakeFabric:
    """With an Active function `hello`."""
    assert await code(fabric, "CreateFunction", creation()) == ""
    fabric.streams.work()
    return fabric


ENV = "InvalidParameterValue.Environment"
REFUSED = [
    ({"FunctionName": "1abc"}, "InvalidParameterValue.FunctionName"),
    ({"FunctionName": "a"}, "InvalidParameterValue.FunctionName"),
    ({"FunctionName": "abc-"}, "InvalidParameterValue.FunctionName"),
    ({"FunctionName": "a" * 61}, "InvalidParameterValue.FunctionName"),
    ({"FunctionName": "a/b"}, "InvalidParameterValue.FunctionName"),
    ({"FunctionName": None}, "MissingParameter"),
    ({"FunctionName": 5}, "InvalidParameter"),
    ({"Namespace": "../x"}, "InvalidParameterValue.Namespace"),
    ({"Handler": "nodot"}, "InvalidParameterValue.Handler"),
    ({"Handler": "../x.f"}, "InvalidParameterValue.Handler"),
    ({"Handler": None}, "InvalidParameterValue.Handler"),
    ({"Runtime": None}, "InvalidParameterValue.Runtime"),
    ({"Runtime": ""}, "InvalidParameterValue.Runtime"),
    ({"Runtime": "Python2.7"}, "InvalidParameterValue.Runtime"),
    ({"Runtime": "Nodejs16.13"}, "InvalidParameterValue.Runtime"),
    ({"Runtime": "Php7"}, "InvalidParameterValue.Runtime"),
    ({"Runtime": "Java8"}, "InvalidParameterValue.Runtime"),
    ({"Runtime": "Go1"}, "InvalidParameterValue.Runtime"),
    ({"Runtime": "CustomRuntime", "Handler": "bootstrap"}, "InvalidParameterValue.Handler"),
    ({"Runtime": "customruntime"}, "InvalidParameterValue.Runtime"),
    ({"MemorySize": 100}, "InvalidParameterValue.MemorySize"),
    ({"MemorySize": 3200}, "InvalidParameterValue.MemorySize"),
    ({"MemorySize": "128"}, "InvalidParameter"),
    ({"MemorySize": True}, "InvalidParameter"),
    ({"MemorySize": 128.0}, "InvalidParameter"),
    ({"Timeout": 0}, "LimitExceeded.Timeout"),
    ({"Timeout": 901}, "LimitExceeded.Timeout"),
    ({"InitTimeout": 1}, "LimitExceeded.InitTimeout"),
    ({"Type": "HTTP"}, "UnsupportedOperation"),
    ({"Type": "Other"}, "InvalidParameterValue.FunctionType"),
    ({"Environment": {"Variables": [{"Key": "1", "Value": "x"}]}}, ENV),
    ({"Environment": {"Variables": [{"Key": "A", "Value": "\0"}]}}, ENV),
    ({"Environment": {"Variables": [{"Key": "A"}, {"Key": "A"}]}}, ENV),
    ({"Environment": {"Variables": [{"Value": "x"}]}}, "MissingParameter"),
    ({"Environment": {"Variables": [{"Key": "SCF_X", "Value": "x"}]}}, ENV + "SystemProtect"),
    ({"Environment": {"Variables": [{"Key": "TENCENTCLOUD_X", "Value": "x"}]}}, ENV + "SystemProtect"),
    ({"Environment": {"Variables": [{"Key": "A", "Value": "x" * 4096}]}}, ENV + "ExceededLimit"),
    ({"Environment": {"Variables": "A=1"}}, "InvalidParameter"),
    ({"Environment": []}, "InvalidParameter"),
    ({"Description": "x" * 1001}, "InvalidParameterValue.Description"),
    ({"Description": "\ud800"}, "InvalidParameter"),
    ({"Code": None}, "MissingParameter.Code"),
    ({"Code": {}}, "MissingParameter.Code"),
    ({"Code": {"ZipFile": "!!!"}}, "InvalidParameterValue.ZipFileBase64BinasciiError"),
    ({"Code": {"ZipFile": "AAA"}}, "InvalidParameterValue.ZipFileBase64BinasciiError"),
    ({"Code": {"ZipFile": base64.b64encode(b"no zip").decode()}}, "InvalidParameterValue.ZipFile"),
    ({"Code": {"ZipFile": base64.b64encode(zip_of({"../x.py": ""})).decode()}}, "InvalidParameterValue.ZipFile"),
    ({"Code": {"ZipFile": "AAAA", "CosBucketName": "b", "CosObjectName": "o"}}, "InvalidParameterValue.Code"),
    ({"Code": {"CosBucketName": "code", "CosObjectName": "none.zip"}}, "ResourceNotFound.CosObject"),
    ({"Code": {"CosBucketName": "penstock-code", "CosObjectName": "x"}}, "InvalidParameterValue.CosBucketName"),
    ({"Code": {"CosBucketName": "../x", "CosObjectName": "x"}}, "InvalidParameterValue.CosBucketName"),
    ({"Code": {"CosBucketName": "code"}}, "InvalidParameterValue.CosObjectName"),
    (
        {"Code": {"CosBucketName": "code", "CosObjectName": "o", "CosBucketRegion": "x"}},
        "InvalidParameterValue.CosBucketRegion",
    ),
    ({"Code": {"GitUrl": "https://x"}}, "UnsupportedOperation"),
    ({"Code": {"ImageConfig": {"ImageUri": "x"}}}, "UnsupportedOperation"),
    ({"Code": {"DemoId": "1"}}, "UnsupportedOperation"),
    ({"CodeSource": "Git"}, "UnsupportedOperation"),
    ({"CodeSource": "Cos"}, "InvalidParameterValue.CodeSource"),
    ({"VpcConfig": {"VpcId": "v", "SubnetId": "s"}}, "UnsupportedOperation"),
    ({"Layers": [{"LayerName": "l", "LayerVersion": 1}]}, "ResourceNotFound.Layer"),
    ({"CfsConfig": {"CfsInsList": [{"CfsId": "x"}]}}, "UnsupportedOperation"),
    ({"PublicNetConfig": {"PublicNetStatus": "ENABLE", "EipConfig": {"EipStatus": "ENABLE"}}}, "UnsupportedOperation"),
    ({"PublicNetConfig": "x"}, "UnsupportedOperation"),
    ({"ProtocolType": "WS"}, "UnsupportedOperation"),
    ({"DeadLetterConfig": {"Type": "topic", "Name": "x"}}, "UnsupportedOperation"),
    ({"Role": "r"}, "UnsupportedOperation"),
    ({"Tags": [{"Key": "a", "Value": "b"}]}, "UnsupportedOperation"),
    ({"AsyncRunEnable": "TRUE"}, "UnsupportedOperation.AsyncRunEnable"),
    ({"TraceEnable": "TRUE"}, "UnsupportedOperation"),
    ({"InstanceConcurrencyConfig": {"MaxConcurrency": 2}}, "UnsupportedOperation"),
    ({"ClsTopicId": "x"}, "UnsupportedOperation"),
    ({"Surprise": 1}, "UnknownParameter"),
    ({"Code": {"Surprise": 1}}, "UnknownParameter"),
]


@pytest.mark.parametrize(("change", "wanted"), REFUSED, ids=[f"{i}-{c[1]}" for i, c in enumerate(REFUSED)])
async def test_create_function_refuses(fabric: FakeFabric, change: dict[str, Any], wanted: str) -> None:
    answer = await ask(fabric, "CreateFunction", {**creation(), **change})
    assert answer["Error"]["Code"] == wanted
    assert len(answer["Error"]["Message"]) > 10
    assert fabric.streams.sent == []
    assert fabric.store.packages == {}


@pytest.mark.parametrize("runtime", ["Python2.7", "Nodejs18.15", "Php8.0", "Java8", "Go1", None])
async def test_a_runtime_that_is_not_there_names_the_way_out(fabric: FakeFabric, runtime: str | None) -> None:
    message = (await ask(fabric, "CreateFunction", creation(Runtime=runtime)))["Error"]["Message"]
    assert "CustomRuntime" in message
    assert "Python3.10" in message


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"Runtime": "Python3.6"},
    {"Runtime": "Python3.9"},
    {"Runtime": "CustomRuntime"},
    {"Runtime": "CustomRuntime", "Handler": None},
    {"MemorySize": 64},
    {"MemorySize": 3072, "Timeout": 900, "InitTimeout": 300},
    {"Handler": "pkg/mod.main"},
    {"Type": "Event", "CodeSource": "ZipFile", "Role": "", "Tags": [], "Layers": []},
    {"VpcConfig": {"VpcId": "", "SubnetId": ""}, "CfsConfig": {"CfsInsList": []}, "DeadLetterConfig": {}},
    {"PublicNetConfig": {"PublicNetStatus": "ENABLE", "EipConfig": {"EipStatus": "DISABLE"}}},
    {"PublicNetConfig": {"PublicNetStatus": "DISABLE"}, "IntranetConfig": {"IpFixed": "DISABLE"}},
    {"AsyncRunEnable": "FALSE", "TraceEnable": "FALSE", "InstallDependency": "FALSE", "DnsCache": "FALSE"},
    {"Namespace": "", "Environment": {}, "Description": ""},
    {"Environment": {"Variables": [{"Key": "A", "Value": "x" * 4095}]}},
    {"Environment": {"Variables": [{"Key": "EMPTY", "Value": ""}]}},
]


@pytest.mark.parametrize("change", ACCEPTED, ids=range(len(ACCEPTED)))
async def test_create_function_accepts(fabric: FakeFabric, change: dict[str, Any]) -> None:
    assert set(await ask(fabric, "CreateFunction", {**creation(), **change})) == {"RequestId"}
    assert [command.kind for command in fabric.streams.sent] == ["create-function"]


async def test_the_command_carries_the_package_that_the_store_has(fabric: FakeFabric) -> None:
    await ask(fabric, "CreateFunction", creation())
    config = fabric.streams.sent[0].config
    assert config is not None
    assert fabric.store.packages[config.code_sha256] == zip_of()
    assert (config.version, config.code_size, config.memory_mib, config.timeout_s) == ("$LATEST", len(zip_of()), 128, 3)


@pytest.mark.parametrize("bucket", ["code", f"code-{APPID}"])
async def test_a_package_comes_from_the_fabrics_store_under_either_name_of_the_bucket(
    fabric: FakeFabric, bucket: str
) -> None:
    fabric.store.objects[f"code-{APPID}", "f.zip"] = zip_of()
    given = {"CosBucketName": bucket, "CosObjectName": "/f.zip", "CosBucketRegion": "ap-guangzhou"}
    assert await code(fabric, "CreateFunction", creation(Code=given)) == ""
    assert list(fabric.store.packages.values()) == [zip_of()]


async def test_a_package_in_the_store_that_is_too_large_is_refused(fabric: FakeFabric) -> None:
    fabric.store.objects["code", "f.zip"] = bytes(PACKAGE_ZIP_BYTES + 1)
    given = {"CosBucketName": "code", "CosObjectName": "f.zip"}
    assert await code(fabric, "CreateFunction", creation(Code=given)) == "InvalidParameterValue.Code"


async def test_a_store_that_is_away_is_a_coded_error_and_nothing_is_made(fabric: FakeFabric) -> None:
    async def away(sha256: str, package: bytes) -> None:
        raise StoreUnavailable("no answer")

    fabric.store.put_package = away  # type: ignore[method-assign]
    assert await code(fabric, "CreateFunction", creation()) == "ResourceUnavailable"
    assert fabric.streams.sent == []


async def test_two_creations_of_one_name_at_once_make_one(fabric: FakeFabric) -> None:
    codes = await asyncio.gather(*(code(fabric, "CreateFunction", creation()) for _ in range(3)))
    assert sorted(codes) == ["", "ResourceInUse.FunctionName", "ResourceInUse.FunctionName"]


async def test_a_namespace_holds_so_many_functions(fabric: FakeFabric) -> None:
    for i in range(FUNCTIONS_PER_NAMESPACE):
        assert await code(fabric, "CreateFunction", creation(f"f{i}x")) == ""
    assert await code(fabric, "CreateFunction", creation("more")) == "LimitExceeded.Function"
    assert await code(fabric, "CreateNamespace", {"Namespace": "other"}) == ""
    assert await code(fabric, "CreateFunction", creation("more", Namespace="other")) == ""


async def test_an_update_changes_what_is_given_and_nothing_else(active: FakeFabric) -> None:
    before = active.functions.rows[f"{APPID}/default/hello"]
    assert (
        await code(
            active, "UpdateFunctionConfiguration", {"FunctionName": "hello", "MemorySize": 512, "Description": ""}
        )
        == ""
    )
    command = active.streams.sent[-1]
    assert before.serving is not None
    assert command.config == replace(before.serving, memory_mib=512)
    assert command.description == ""
    active.streams.work()
    package = base64.b64encode(zip_of({"b.py": "1"})).decode()
    assert (
        await code(
            active, "UpdateFunctionCode", {"FunctionName": "hello", "Code": {"ZipFile": package}, "Handler": "b.f"}
        )
        == ""
    )
    config = active.streams.sent[-1].config
    assert config is not None
    assert (config.handler, config.memory_mib) == ("b.f", 512)


UPDATES_REFUSED = [
    ("UpdateFunctionConfiguration", {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
    ("UpdateFunctionConfiguration", {"FunctionName": "hello", "Runtime": "Go1"}, "InvalidParameterValue.Runtime"),
    (
        "UpdateFunctionConfiguration",
        {"FunctionName": "hello", "Publish": "perhaps"},
        "InvalidParameterValue",
    ),
    ("UpdateFunctionConfiguration", {"FunctionName": "hello", "L5Enable": "TRUE"}, "UnsupportedOperation"),
    ("UpdateFunctionConfiguration", {"FunctionName": "hello", "IgnoreSysLog": True}, "UnsupportedOperation"),
    ("UpdateFunctionCode", {"FunctionName": "hello"}, "MissingParameter.Code"),
    ("UpdateFunctionCode", {"FunctionName": "none", "ZipFile": "AAAA"}, "ResourceNotFound.FunctionName"),
    (
        "UpdateFunctionCode",
        {"FunctionName": "hello", "ZipFile": "AAAA", "Code": {"ZipFile": "AAAA"}},
        "InvalidParameterValue.Code",
    ),
    ("UpdateFunctionCode", {"FunctionName": "hello", "ZipFile": "AAAA"}, "InvalidParameterValue.ZipFile"),
    ("DeleteFunction", {"FunctionName": "hello", "Qualifier": "1"}, "ResourceNotFound.FunctionVersion"),
    ("DeleteFunction", {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
    ("GetFunction", {"FunctionName": "hello", "Qualifier": "1"}, "ResourceNotFound.FunctionVersion"),
    ("GetFunction", {"FunctionName": "hello", "ShowCode": "TRUE"}, "UnsupportedOperation"),
    ("GetFunction", {"FunctionName": "hello", "Namespace": "other"}, "ResourceNotFound.Namespace"),
    ("ListFunctions", {"Limit": -1}, "InvalidParameterValue.Limit"),
    ("ListFunctions", {"Offset": -1}, "InvalidParameterValue.Offset"),
    ("ListFunctions", {"Order": "UP"}, "InvalidParameterValue.Order"),
    ("ListFunctions", {"Orderby": "Size"}, "InvalidParameterValue.OrderBy"),
    ("ListFunctions", {"Filters": [{"Name": "VpcId", "Values": ["x"]}]}, "UnsupportedOperation"),
    ("ListFunctions", {"Filters": [{"Name": "Status", "Values": ["x"] * 21}]}, "InvalidParameterValue.Filters"),
    ("Invoke", {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
    ("Invoke", {"FunctionName": "hello", "Qualifier": "1"}, "ResourceNotFound.Qualifier"),
    ("Invoke", {"FunctionName": "hello", "InvocationType": "Other"}, "InvalidParameterValue.InvokeType"),
    ("Invoke", {"FunctionName": "hello", "LogType": "All"}, "InvalidParameterValue"),
    ("Invoke", {"FunctionName": "hello", "RoutingKey": "[]"}, "InvalidParameter.RoutingConfig"),
    ("Invoke", {"FunctionName": "hello", "RoutingKey": '{"a": 1}'}, "InvalidParameter.RoutingConfig"),
    ("Invoke", {"FunctionName": "hello", "RoutingKey": "x" * 1_025}, "InvalidParameter.RoutingConfig"),
    ("Invoke", {"FunctionName": "hello", "ClientContext": "{"}, "InvalidParameterValue.ClientContext"),
    ("Invoke", {"FunctionName": "hello", "ClientContext": "NaN"}, "InvalidParameterValue.ClientContext"),
    ("Invoke", {"FunctionName": "hello", "ClientContext": "[" * 50_000}, "InvalidParameterValue.ClientContext"),
    (
        "Invoke",
        {"FunctionName": "hello", "ClientContext": '"' + "x" * 6 * 1024 * 1024 + '"'},
        "InvalidParameter.RequestTooLarge",
    ),
    (
        "Invoke",
        {"FunctionName": "hello", "ClientContext": '"' + "é" * (4 * 1024 * 1024) + '"'},
        "InvalidParameter.RequestTooLarge",
    ),
    ("InvokeFunction", {"FunctionName": "hello", "Event": "x"}, "InvalidParameter.Payload"),
    ("GetFunctionLogLines", {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
    ("GetFunctionLogLines", {"FunctionName": "hello", "Cursor": "x"}, "InvalidParameterValue"),
    ("GetFunctionLogLines", {"FunctionName": "hello", "WaitMs": 5001}, "InvalidParameterValue"),
    ("ListEventSources", {"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
    ("GetActivity", {"X": 1}, "UnknownParameter"),
]


@pytest.mark.parametrize(
    ("action", "fields", "wanted"), UPDATES_REFUSED, ids=[f"{i}-{u[0]}" for i, u in enumerate(UPDATES_REFUSED)]
)
async def test_other_actions_on_functions_refuse(
    active: FakeFabric, action: str, fields: dict[str, Any], wanted: str
) -> None:
    before = len(active.streams.sent)
    assert await code(active, action, fields) == wanted
    assert len(active.streams.sent) == before
    assert active.invoker.calls == []


async def test_an_empty_event_is_an_empty_object_and_the_qualifiers_of_latest_pass(active: FakeFabric) -> None:
    for fields in (
        {},
        {"ClientContext": ""},
        {"Qualifier": "$LATEST"},
        {"Qualifier": "$DEFAULT"},
        {"InvocationType": "RequestResponse"},
    ):
        assert (await ask(active, "Invoke", {"FunctionName": "hello", **fields}))["Result"]["RetMsg"] == "{}"


async def test_listings_order_page_search_and_filter(fabric: FakeFabric) -> None:
    for i, name in enumerate(("bb", "aa", "ab")):
        fabric.clock.shift_ms = i * 1000
        await ask(fabric, "CreateFunction", creation(name, Description=f"number {i}"))
    fabric.streams.work()

    async def listed(**fields: Any) -> list[str]:
        return [f["FunctionName"] for f in (await ask(fabric, "ListFunctions", fields))["Functions"]]

    assert await listed() == ["ab", "aa", "bb"]
    assert await listed(Order="ASC") == ["bb", "aa", "ab"]
    assert await listed(Orderby="FunctionName", Order="ASC") == ["aa", "ab", "bb"]
    assert await listed(Offset=1, Limit=1) == ["aa"]
    assert await listed(SearchKey="a") == ["ab", "aa"]
    assert await listed(Description="number 0") == ["bb"]
    assert (
        await listed(Filters=[{"Name": "Status", "Values": ["Active"]}, {"Name": "Runtime", "Values": ["Python3.10"]}])
        != []
    )
    assert await listed(Filters=[{"Name": "Status", "Values": ["CreateFailed"]}]) == []


def trigger(desc: Any = None, **more: Any) -> dict[str, Any]:
    text = desc if isinstance(desc, str) else json.dumps({"topic": "orders"} if desc is None else desc)
    return {"FunctionName": "hello", "TriggerName": "in", "Type": "ckafka", "TriggerDesc": text, **more}


DESC = "InvalidParameterValue.TriggerDesc"
TRIGGERS_REFUSED = [
    (trigger(FunctionName="none"), "ResourceNotFound.FunctionName"),
    (trigger(Type="timer"), "UnsupportedOperation.Trigger"),
    (trigger(Type="pigeon"), "InvalidParameterValue.Type"),
    (trigger(TriggerName="a b"), "InvalidParameterValue.TriggerName"),
    (trigger(TriggerName=None), "MissingParameter"),
    (trigger(Qualifier="1"), "ResourceNotFound.Qualifier"),
    (trigger(Enable="MAYBE"), "InvalidParameterValue.Enable"),
    (trigger(CustomArgument="x"), "InvalidParameterValue.CustomArgument"),
    (trigger("no json"), DESC),
    (trigger("[]"), DESC),
    (trigger("[" * 4000), DESC),
    (trigger("{}"), DESC),
    (trigger({"topic": "a b"}), DESC),
    (trigger({"topic": "__consumer_offsets"}), DESC),
    (trigger({"topic": "penstock.registry.functions.v1"}), DESC),
    (trigger({"topic": "orders", "maxMsgNum": 0}), DESC),
    (trigger({"topic": "orders", "maxMsgNum": 10_001}), DESC),
    (trigger({"topic": "orders", "maxMsgNum": "many"}), DESC),
    (trigger({"topic": "orders", "retry": -1}), DESC),
    (trigger({"topic": "orders", "concurrency": 0}), DESC),
    (trigger({"topic": "orders", "concurrency": 1_001}), DESC),
    (trigger({"topic": "orders", "ordering": "size"}), DESC),
    (trigger({"topic": "orders", "onPoison": "drink"}), DESC),
    (trigger({"topic": "orders", "onPoison": "park-key"}), DESC),
    (trigger({"topic": "orders", "offset": "middle"}), DESC),
    (trigger({"topic": "orders", "offset": -5}), DESC),
    (trigger({"topic": "orders", "offset": True}), DESC),
    (trigger({"topic": "orders", "bootstrapServers": "host"}), DESC),
    (trigger({"topic": "orders", "bootstrapServers": "host:99999"}), DESC),
    (trigger({"topic": "orders", "colour": 1}), DESC),
    (trigger({"topic": "orders", "consumerGroupName": "g"}), "UnsupportedOperation.Trigger"),
    (trigger({"topic": "none"}), "ResourceNotFound.Ckafka"),
]


@pytest.mark.parametrize(
    ("fields", "wanted"), TRIGGERS_REFUSED, ids=[f"{i}-{t[1]}" for i, t in enumerate(TRIGGERS_REFUSED)]
)
async def test_create_trigger_refuses_and_makes_nothing(
    active: FakeFabric, fields: dict[str, Any], wanted: str
) -> None:
    answer = await ask(active, "CreateTrigger", fields)
    assert answer.get("Error", {}).get("Code") == wanted
    asked = ["create-function", "create-trigger"] if wanted == "ResourceNotFound.Ckafka" else ["create-function"]
    assert [c.kind for c in active.streams.sent] == asked
    assert active.triggers.rows == {}
    assert (active.sources.pinned, active.sources.dead_letter_topics) == ([], {})


async def test_a_trigger_pins_its_offsets_and_has_a_dead_letter_topic_before_it_is(active: FakeFabric) -> None:
    assert (
        await code(active, "CreateTrigger", trigger({"topic": "orders", "offset": 1_700_000_000_000, "retry": "5"}))
        == ""
    )
    source = active.triggers.rows[f"{APPID}/default/hello/in"].kafka
    assert source is not None
    assert (source.retries, source.batch, source.concurrency, source.ordering) == (5, 1, 32, "key")
    assert active.sources.pinned == [(source.group_id, "orders", "1700000000000")]
    assert active.sources.dead_letter_topics == {"penstock.dead.default.hello.in": 3}
    assert await code(active, "CreateTrigger", trigger()) == "ResourceInUse.Trigger"


@pytest.mark.parametrize("name", ["ckafka-8tfxzia3-orders", "kafka-orders"])
async def test_scfs_own_trigger_names_name_the_topic(active: FakeFabric, name: str) -> None:
    assert await code(active, "CreateTrigger", trigger({"maxMsgNum": 1}, TriggerName=name)) == ""
    assert active.sources.pinned[0][1] == "orders"


@pytest.mark.parametrize(
    ("servers", "wanted"), [(None, "InternalError.Ckafka"), ("other:9092", "InvalidParameterValue.Ckafka")]
)
async def test_brokers_that_do_not_answer_are_a_coded_error(
    active: FakeFabric, servers: str | None, wanted: str
) -> None:
    active.sources.unreachable = True
    answer = await ask(
        active, "CreateTrigger", trigger({"topic": "orders", **({"bootstrapServers": servers} if servers else {})})
    )
    assert answer["Error"]["Code"] == wanted
    assert (servers or "127.0.0.1:9092") in answer["Error"]["Message"]


async def test_a_function_has_so_many_triggers(active: FakeFabric) -> None:
    for i in range(TRIGGERS_PER_KIND):
        assert await code(active, "CreateTrigger", trigger(TriggerName=f"in{i}")) == ""
    assert await code(active, "CreateTrigger", trigger(TriggerName="more")) == "LimitExceeded.Trigger"


async def test_a_trigger_needs_a_function_that_ran_once(fabric: FakeFabric) -> None:
    fabric.streams.delay_s = None
    await ask(fabric, "CreateFunction", creation())
    assert await code(fabric, "CreateTrigger", trigger()) == "FailedOperation.FunctionStatusError"


async def test_a_trigger_that_streams_refuses_is_told_so_and_nothing_is_bound(active: FakeFabric) -> None:
    active.streams.refuse = Outcome("", "", "LimitExceeded.Trigger", "too many")
    assert await code(active, "CreateTrigger", trigger()) == "LimitExceeded.Trigger"
    assert active.sources.pinned == []


async def test_a_trigger_that_is_not_confirmed_in_time_is_told_so(
    active: FakeFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.api.services.OUTCOME_S", 0.05)
    active.streams.delay_s = None
    assert await code(active, "CreateTrigger", trigger()) == "FailedOperation.CreateTrigger"
    assert active.sources.deleted_groups == []


async def test_a_trigger_made_anew_has_a_group_of_its_own(active: FakeFabric) -> None:
    await ask(active, "CreateTrigger", trigger())
    await ask(active, "DeleteTrigger", trigger(TriggerDesc=None))
    assert await code(active, "CreateTrigger", trigger()) == ""
    groups = [pinned[0] for pinned in active.sources.pinned]
    assert len(set(groups)) == 2
    await settle()
    assert active.sources.deleted_groups == groups[:1]
    await active.streams.close()


async def test_a_group_is_deleted_when_its_members_have_left(active: FakeFabric) -> None:
    await ask(active, "CreateTrigger", trigger())
    active.sources.members_for = 2
    assert await code(active, "DeleteTrigger", trigger()) == ""
    async with asyncio.timeout(5):
        while not active.sources.deleted_groups:
            await asyncio.sleep(0.01)
    await active.streams.close()


@pytest.mark.parametrize("action", ["DeleteTrigger", "UpdateTriggerStatus"])
async def test_a_trigger_that_is_not_there_is_told_so(active: FakeFabric, action: str) -> None:
    fields = {"FunctionName": "hello", "TriggerName": "none", "Type": "ckafka", "Enable": "OPEN"}
    if action == "DeleteTrigger":
        del fields["Enable"]
    assert await code(active, action, fields) == "ResourceNotFound.Trigger"


async def test_deleting_a_function_deletes_its_triggers_first(active: FakeFabric) -> None:
    await ask(active, "CreateTrigger", trigger())
    active.streams.delay_s = None
    assert await code(active, "DeleteFunction", {"FunctionName": "hello"}) == ""
    assert [c.kind for c in active.streams.sent[-2:]] == ["delete-trigger", "delete-function"]
    assert (await ask(active, "GetFunction", {"FunctionName": "hello"}))["Triggers"] == []
    assert await code(active, "DeleteFunction", {"FunctionName": "hello"}) == "FailedOperation.FunctionStatusError"
    active.streams.work()
    assert active.triggers.rows == {}
    await settle()
    assert len(active.sources.deleted_groups) == 1
    await active.streams.close()


async def test_event_sources_tell_where_they_stand_and_why_they_do_not_move(active: FakeFabric) -> None:
    await ask(active, "CreateTrigger", trigger())
    key = active.trigger_key("hello", "in")
    source = (await ask(active, "ListEventSources", {}))["Sources"][0]
    assert (source["Name"], source["Function"], source["Source"], source["State"]) == (
        "in",
        "hello",
        "orders",
        "starting",
    )
    active.lane("hello", "in", "running", LanePartition(1, 5, 12, 4, 9, 0, 2, "key k is parked"))
    active.lanes.dead_by_trigger[key] = {1: 3}
    source = (await ask(active, "ListEventSources", {"TriggerName": "in", "FunctionName": "hello"}))["Sources"][0]
    assert source["State"] == "running"
    assert source["Partitions"][1] == {
        "Partition": 1,
        "Committed": 10,
        "End": 17,
        "Lag": 7,
        "InFlight": 4,
        "Parked": 2,
        "Dead": 3,
        "Why": "key k is parked",
    }
    assert (await ask(active, "ListEventSources", {"TriggerName": "out"}))["Sources"] == []
    active.sources.unreachable = True
    source = (await ask(active, "ListEventSources", {}))["Sources"][0]
    assert (source["State"], source["Partitions"][0]["Committed"]) == ("unreachable", None)
    assert "does not answer" in source["Partitions"][0]["Why"]
    active.sources.unreachable = False
    await ask(
        active,
        "UpdateTriggerStatus",
        {"FunctionName": "hello", "TriggerName": "in", "Type": "ckafka", "Enable": "CLOSE"},
    )
    assert (await ask(active, "ListEventSources", {}))["Sources"][0]["State"] == "paused"


async def test_log_lines_come_in_pages(active: FakeFabric) -> None:
    active.logs.lines = [LogLine("r", 1_000 + i, "stdout", f"line {i}") for i in range(5)]
    first = await ask(active, "GetFunctionLogLines", {"FunctionName": "hello", "Limit": 3})
    assert [line["Line"] for line in first["Lines"]] == ["line 0", "line 1", "line 2"]
    rest = await ask(active, "GetFunctionLogLines", {"FunctionName": "hello", "Cursor": first["Cursor"]})
    assert (first["AtEnd"], rest["AtEnd"], len(rest["Lines"])) == (False, True, 2)
    assert rest["Lines"][1] == {"RequestId": "r", "UnixMs": 1_004, "Stream": "stdout", "Line": "line 4"}


async def test_activity_shows_the_tenants_own_functions_and_all_members(active: FakeFabric) -> None:
    numbers = (10, 1, 2, 3, 4, 5, 6, 7, 8)
    for appid in (APPID, "9"):
        row = FunctionActivity(1, f"{appid}/default/hello", *numbers, 1.5, 1.0, 0.5, 100, 200, 10)
        active.activity.put(row.key, row)
    active.members.put("agent/a", Member("agent", "a", "host", "zone", "unix:@x", 1, 2))
    seen = await ask(active, "GetActivity", {})
    assert [f["Key"] for f in seen["Functions"]] == [f"{APPID}/default/hello"]
    assert (seen["Functions"][0]["InFlight"], seen["Functions"][0]["ArrivalsPerS"]) == (7, 1.5)
    assert seen["Members"][0]["MemberId"] == "a"


async def test_what_an_answer_has_spent_already_is_taken_off_its_wait_for_the_outcome() -> None:
    waits: list[float] = []

    class Slow:
        offset = 0

        async def outcome(self, timeout_s: float) -> None:
            waits.append(timeout_s)

    for spent_s in (0.0, 3.0, 60.0):
        with pytest.raises(BadRequest, match="not confirmed"):
            await accepted(Slow(), failed_code="FailedOperation", what="it", spent_s=spent_s)
    assert waits == [5.0, 2.0, 0.05]
