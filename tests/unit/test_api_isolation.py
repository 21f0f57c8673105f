"""Two tenants, every action of the table: nobody sees, changes or can tell anything of another's, whatever it guesses.

Generic over the table: a new action is called with the other tenant's names by itself. `TOUCHED` says which fields name what.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from infra import clock
from ingest.api.actions import ACTIONS
from ingest.api.ports import KeyPair
from schemas import tc3
from schemas.ids import FunctionKey
from schemas.records import FunctionActivity, LogLine, Member
from tests.api_fakes import APPID, SECRET_ID, SECRET_KEY, FakeFabric, creation

STRANGER = KeyPair("AKIDstranger", "strangersecret", "1250000002", "200000000002")
MARK = "victims-own"
"""In every name and text of the victim's; no answer to the stranger may hold it but as an echo of what it sent."""
REQUEST_ID = "11111111-1111-4111-8111-111111111111"
FUNCTION, NAMESPACE, TRIGGER, ALIAS, LAYER = (f"{MARK}-{what}" for what in ("fn", "ns", "trigger", "alias", "layer"))


def signed(keys: tuple[str, str], action: str, fields: dict[str, Any], tick: int = 0) -> tc3.SignedCall:
    body = json.dumps(fields).encode()
    headers = tc3.signed_post(
        secret_id=keys[0], secret_key=keys[1], host="h:1", action=action, version="2018-04-16", body=body,
        timestamp_s=clock.unix_ms() // 1000 + tick,
    )  # fmt: skip
    return tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body)


async def call(fabric: FakeFabric, keys: tuple[str, str], action: str, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await fabric.api.answer(signed(keys, action, fields)))["Response"]
    await asyncio.sleep(0.005)
    return answer


VICTIM, OTHER = (SECRET_ID, SECRET_KEY), (STRANGER.secret_id, STRANGER.secret_key)


async def furnished() -> FakeFabric:
    """A fabric whose owner, the victim, has one of everything, and a stranger who has the same names in its own tenant where it can."""
    fabric = FakeFabric(more_keys=(STRANGER,))
    for place in ({}, {"Namespace": NAMESPACE}):
        if place:
            assert "Error" not in await call(fabric, VICTIM, "CreateNamespace", Namespace=NAMESPACE, Description=MARK)
        made = await call(fabric, VICTIM, "CreateFunction", **creation(FUNCTION, Description=MARK, **place))
        assert "Error" not in made, made
        where = {"FunctionName": FUNCTION, "TriggerName": TRIGGER, "Type": "ckafka", **place}
        made = await call(fabric, VICTIM, "CreateTrigger", **where, TriggerDesc='{"topic": "orders"}', Description=MARK)
        assert "Error" not in made, made
        named = {"FunctionName": FUNCTION, **place}
        assert "Error" not in await call(fabric, VICTIM, "PublishVersion", **named, Description=MARK)
        made = await call(fabric, VICTIM, "CreateAlias", **named, Name=ALIAS, FunctionVersion="1", Description=MARK)
        assert "Error" not in made, made
        assert "Error" not in await call(
            fabric, VICTIM, "PutReservedConcurrencyConfig", **named, ReservedConcurrencyMem=13_056
        )
        provision = {**named, "Qualifier": "1", "VersionProvisionedConcurrencyNum": 2}
        assert "Error" not in await call(fabric, VICTIM, "PutProvisionedConcurrencyConfig", **provision)
        total = {**place, "TotalConcurrencyMem": 100_000}
        assert "Error" not in await call(fabric, VICTIM, "PutTotalConcurrencyConfig", **total)
        key = f"{APPID}/{place.get('Namespace', 'default')}/{FUNCTION}"
        fabric.logs.of[FunctionKey.parse(key)] = [LogLine(REQUEST_ID, 1, "stdout", MARK)]
        fabric.activity.put(key, FunctionActivity(1, key, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0))
    content = {"CompatibleRuntimes": ["Python3.10"], "Content": creation()["Code"], "Description": MARK}
    assert "Error" not in await call(fabric, VICTIM, "PublishLayerVersion", LayerName=LAYER, **content)
    assert "Error" not in await call(fabric, VICTIM, "CreateKey", Description=MARK)
    fabric.members.put("agent/a", Member("agent", MARK, MARK, "z", "unix:@x", 1, 1))
    return fabric


def state(fabric: FakeFabric) -> dict[str, Any]:
    """All that is the victim's."""
    streams = fabric.streams
    return {
        "functions": {k: v for k, v in fabric.functions.rows.items() if k.startswith(APPID)},
        "triggers": {k: v for k, v in fabric.triggers.rows.items() if k.startswith(APPID)},
        "versions": {k: v for k, v in streams.versions.rows.items() if k.startswith(APPID)},
        "aliases": {k: v for k, v in streams.aliases.rows.items() if k.startswith(APPID)},
        "namespaces": {k: v for k, v in streams.namespaces.rows.items() if k.startswith(APPID)},
        "limits": {k: v for k, v in streams.limits.rows.items() if k.startswith(APPID)},
        "provisions": {k: v for k, v in streams.provisions.rows.items() if k.startswith(APPID)},
        "layers": {k: v for k, v in streams.layers.rows.items() if k.startswith(APPID)},
        "keys": {k: v for k, v in streams.keys.rows.items() if v.appid == APPID},
        "calls": [c for c in fabric.invoker.calls if c["function"].appid == APPID],
        "groups": [g for g in fabric.sources.deleted_groups if f".{APPID}." in g],
    }


def guesses(action: str, fabric: FakeFabric, namespace: str) -> dict[str, Any]:
    """A request with the victim's names in every field that the action has."""
    [secret_id] = [k for k, v in fabric.streams.keys.rows.items() if v.appid == APPID]
    known = {
        "FunctionName": FUNCTION,
        "Namespace": namespace,
        "TriggerName": TRIGGER,
        "Type": "ckafka",
        "Enable": "CLOSE",
        "FunctionRequestId": REQUEST_ID,
        "InvokeRequestId": REQUEST_ID,
        "AppId": APPID,
        "SecretId": secret_id,
        "Description": "changed",
        "Name": ALIAS,
        "FunctionVersion": "1",
        "LayerName": LAYER,
        "LayerVersion": 1,
        "Layers": [{"LayerName": LAYER, "LayerVersion": 1}],
        "NewFunctionName": "stolen",
        "ReservedConcurrencyMem": 128,
        "TotalConcurrencyMem": 20_000,
        "VersionProvisionedConcurrencyNum": 1,
        "Qualifier": "$LATEST",
    }
    if action == "CreateFunction":
        return creation("mine", Layers=known["Layers"])
    names = ACTIONS[action].schema.names
    fields = {name: value for name, value in known.items() if name in names}
    if action == "UpdateFunctionCode":
        fields["ZipFile"] = creation()["Code"]["ZipFile"]
    if action == "CreateTrigger":
        fields["TriggerDesc"] = '{"topic": "orders"}'
    if action == "PublishLayerVersion":
        fields |= {"CompatibleRuntimes": ["Python3.10"], "Content": creation()["Code"]}
    if action == "CreateNamespace":
        fields["Namespace"] = "mine"
    if "ProvisionedConcurrency" in action:
        fields["Qualifier"] = "1"
    if action in ("Invoke", "GetFunctionLogs"):
        fields.pop("Qualifier")
    return fields


async def stranger_calls(fabric: FakeFabric, action: str, fields: dict[str, Any]) -> dict[str, Any]:
    answer = await call(fabric, OTHER, action, **fields)
    answer.pop("RequestId")
    return answer


@pytest.mark.parametrize("has_the_same", [False, True], ids=["nothing of its own", "the same names of its own"])
@pytest.mark.parametrize("namespace", ["default", NAMESPACE])
@pytest.mark.parametrize("action", sorted(ACTIONS))
async def test_no_action_reaches_another_tenants(action: str, namespace: str, has_the_same: bool) -> None:
    fabric = await furnished()
    if has_the_same:
        await call(fabric, OTHER, "CreateNamespace", Namespace=NAMESPACE)
        await call(fabric, OTHER, "CreateFunction", **creation(FUNCTION, Namespace=namespace))
        where = {"FunctionName": FUNCTION, "Namespace": namespace, "TriggerName": TRIGGER, "Type": "ckafka"}
        made = await call(fabric, OTHER, "CreateTrigger", **where, TriggerDesc='{"topic": "orders"}')
        assert "Error" not in made, made
    before = state(fabric)
    fields = guesses(action, fabric, namespace)
    answer = await stranger_calls(fabric, action, fields)
    assert state(fabric) == before
    text = json.dumps(answer)
    if has_the_same:  # it has things of these names
        text = text.replace(NAMESPACE, "").replace(FUNCTION, "").replace(TRIGGER, "")
    guessed = {v for v in fields.values() if isinstance(v, str)} | ({LAYER} if "Layers" in fields else set())
    for sent in sorted(guessed, key=len, reverse=True):
        text = text.replace(sent, "")
    assert MARK not in text, answer
    assert APPID not in text, answer
    await fabric.streams.close()


@pytest.mark.parametrize("action", sorted(ACTIONS))
async def test_no_answer_tells_whether_another_tenant_has_what_was_guessed(action: str) -> None:
    """The same request is answered alike on a fabric where the victim has it, and on one where nobody does."""
    furnished_fabric, empty = await furnished(), FakeFabric(more_keys=(STRANGER,))
    fields = guesses(action, furnished_fabric, NAMESPACE)
    there = await stranger_calls(furnished_fabric, action, fields)
    not_there = await stranger_calls(empty, action, fields)
    if action == "CreateKey" and "AppId" not in fields:
        return
    assert there == not_there
    for fabric in (furnished_fabric, empty):
        await fabric.streams.close()


@pytest.mark.parametrize(
    "action", sorted(a for a in ACTIONS if a.startswith("List") or a in ("GetActivity", "GetAccount"))
)
async def test_listings_without_names_hold_the_callers_own_only(action: str) -> None:
    fabric = await furnished()
    await call(fabric, OTHER, "CreateFunction", **creation("mine"))
    names = ACTIONS[action].schema.names
    fields = {"FunctionName": "mine"} if "FunctionName" in names else {}
    if "LayerName" in names:
        content = {"CompatibleRuntimes": ["Python3.10"], "Content": creation()["Code"]}
        fields = {"LayerName": "mine"}
        assert "Error" not in await call(fabric, OTHER, "PublishLayerVersion", **fields, **content)
    answer = await stranger_calls(fabric, action, fields)
    assert "Error" not in answer
    assert MARK not in json.dumps(answer)
    assert APPID not in json.dumps(answer)


async def test_the_same_names_in_two_tenants_are_two_things() -> None:
    fabric = await furnished()
    assert "Error" not in await call(fabric, OTHER, "CreateNamespace", Namespace=NAMESPACE)
    assert "Error" not in await call(fabric, OTHER, "CreateFunction", **creation(FUNCTION, Namespace=NAMESPACE))
    before = state(fabric)
    where = {"FunctionName": FUNCTION, "Namespace": NAMESPACE}
    assert "Error" not in await call(fabric, OTHER, "Invoke", **where)
    assert fabric.invoker.calls[-1]["function"].appid == STRANGER.appid
    assert "Error" not in await call(fabric, OTHER, "DeleteFunction", **where)
    assert "Error" not in await call(fabric, OTHER, "DeleteNamespace", Namespace=NAMESPACE)
    assert state(fabric) == before


async def test_another_tenant_manages_its_own_keys_only() -> None:
    fabric = await furnished()
    made = (await call(fabric, OTHER, "CreateKey", Description="mine"))["Key"]
    assert made["AppId"] == STRANGER.appid
    listed = (await call(fabric, OTHER, "ListKeys"))["Keys"]
    assert [k["SecretId"] for k in listed] == [made["SecretId"]]
    for fields in ({"AppId": APPID}, {"NewTenant": "TRUE"}):
        assert (await call(fabric, OTHER, "CreateKey", **fields))["Error"]["Code"] == "UnauthorizedOperation"
    assert (await call(fabric, OTHER, "ListKeys", EveryTenant="TRUE"))["Error"]["Code"] == "UnauthorizedOperation"
    assert (await call(fabric, VICTIM, "ListKeys", EveryTenant="TRUE"))["TotalCount"] == 3


@pytest.mark.parametrize(
    "topic", ["penstock.dead.default.f.t", "penstock.logs.lines.v1", "penstock-streams-registry-changelog"]
)
async def test_no_trigger_reads_what_holds_every_tenants(topic: str) -> None:
    fabric = await furnished()
    fabric.sources.topics["127.0.0.1:9092", topic] = 1
    await call(fabric, OTHER, "CreateFunction", **creation("mine"))
    where = {"FunctionName": "mine", "TriggerName": "t", "Type": "ckafka", "TriggerDesc": json.dumps({"topic": topic})}
    assert (await call(fabric, OTHER, "CreateTrigger", **where))["Error"]["Code"] == "InvalidParameterValue.TriggerDesc"
