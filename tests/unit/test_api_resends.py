"""A signed request that comes again: what a changing action does about it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from infra import clock
from infra.metrics import MetricRegistry
from ingest.api.actions import ACTIONS, changes_something
from ingest.api.calls import Api
from ingest.api.resends import KEPT_S, PER_TENANT, Resends
from schemas import legacy_signature, tc3
from schemas.errors import BadRequest
from schemas.tenants import CarriedOut
from tests.api_fakes import APPID, SECRET_ID, SECRET_KEY, FakeFabric, creation


def signed(action: str, fields: dict[str, Any]) -> tc3.SignedCall:
    body = json.dumps(fields).encode()
    headers = tc3.signed_post(
        secret_id=SECRET_ID, secret_key=SECRET_KEY, host="h:1", action=action, version="2018-04-16", body=body,
        timestamp_s=clock.unix_ms() // 1000,
    )  # fmt: skip
    return tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body)


def legacy(action: str, method: str, **fields: str) -> tc3.SignedCall:
    named = {
        "Action": action, "Version": "2018-04-16", "Timestamp": str(clock.unix_ms() // 1000), "Nonce": "7",
        "SecretId": SECRET_ID, "SignatureMethod": "HmacSHA256", **fields,
    }  # fmt: skip
    named["Signature"] = legacy_signature.signature(SECRET_KEY, method, "h:1", named, hash_name="sha256")
    text = urlencode(named)
    headers = {"host": "h:1", "content-type": tc3.FORM_TYPE}
    if method == "GET":
        return tc3.SignedCall("GET", text, headers, b"")
    return tc3.SignedCall("POST", "", headers, text.encode())


async def response(fabric: FakeFabric, sent: tc3.SignedCall) -> dict[str, Any]:
    return dict(json.loads(await fabric.api.answer(sent))["Response"])


def code(answer: dict[str, Any]) -> str:
    return str(answer.get("Error", {}).get("Code", ""))


@pytest.fixture
async def fabric() -> FakeFabric:
    return FakeFabric()


async def test_a_captured_deletion_does_not_delete_what_was_made_anew(fabric: FakeFabric) -> None:
    await response(fabric, signed("CreateFunction", creation()))
    await asyncio.sleep(0.01)
    captured = signed("DeleteFunction", {"FunctionName": "hello"})
    first = await response(fabric, captured)
    await asyncio.sleep(0.01)
    await response(fabric, signed("CreateFunction", creation(Description="anew")))
    await asyncio.sleep(0.01)
    fabric.clock.shift_ms += 120_000
    assert await response(fabric, captured) == first
    await asyncio.sleep(0.01)
    assert code(await response(fabric, signed_at(fabric, "GetFunction", {"FunctionName": "hello"}))) == ""


def signed_at(fabric: FakeFabric, action: str, fields: dict[str, Any]) -> tc3.SignedCall:
    """Signed by the fabric's clock."""
    body = json.dumps(fields).encode()
    headers = tc3.signed_post(
        secret_id=SECRET_ID, secret_key=SECRET_KEY, host="h:1", action=action, version="2018-04-16", body=body,
        timestamp_s=fabric.clock.unix_ms() // 1000,
    )  # fmt: skip
    return tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body)


async def test_equal_wishes_of_one_second_are_calls_of_their_own(fabric: FakeFabric) -> None:
    made = signed("CreateFunction", creation())
    assert code(await response(fabric, made)) == ""
    assert code(await response(fabric, made)) == "ResourceInUse.FunctionName"


async def test_a_resend_after_a_lost_answer_gets_the_first_answer(fabric: FakeFabric) -> None:
    made = signed("CreateNamespace", {"Namespace": "ns"})
    first = await response(fabric, made)
    fabric.clock.shift_ms += 10_000
    assert await response(fabric, made) == first
    assert len(fabric.streams.sent_of_tenants) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_with_a_nonce_is_carried_out_once_at_any_time(fabric: FakeFabric, method: str) -> None:
    made = legacy("CreateNamespace", method, Namespace="ns")
    first = await response(fabric, made)
    assert code(first) == ""
    assert await response(fabric, made) == first
    assert len(fabric.streams.sent_of_tenants) == 1


async def test_a_resend_while_the_first_is_under_way_waits_for_its_answer() -> None:
    fabric = FakeFabric(delay_s=None)
    made = legacy("CreateNamespace", "POST", Namespace="ns")
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        both = [group.create_task(response(fabric, made)) for _ in range(2)]
        while not fabric.streams.waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        fabric.streams.work()
    assert both[0].result() == both[1].result()
    assert len(fabric.streams.sent_of_tenants) == 1


async def test_a_captured_creation_of_a_key_gives_its_secret_to_nobody(fabric: FakeFabric) -> None:
    made = signed("CreateKey", {})
    assert (await response(fabric, made))["Key"]["SecretKey"]
    fabric.clock.shift_ms += 10_000
    again = await response(fabric, made)
    assert code(again) == "AuthFailure.SignatureExpire"
    assert "Key" not in again
    assert len(fabric.streams.keys.rows) == 1


async def test_a_used_signature_is_not_good_for_another_action_which_it_does_not_cover(fabric: FakeFabric) -> None:
    await response(fabric, signed("CreateNamespace", {"Namespace": "ns"}))
    captured = signed("UpdateNamespace", {"Namespace": "ns"})
    await response(fabric, captured)
    fabric.clock.shift_ms += 10_000
    turned = dataclasses.replace(captured, headers={**captured.headers, "x-tc-action": "DeleteNamespace"})
    assert code(await response(fabric, turned)) == "AuthFailure.SignatureExpire"
    assert list(fabric.streams.namespaces.rows) == [f"{APPID}/ns"]


async def test_what_a_part_of_the_fabric_did_not_answer_may_be_sent_again(fabric: FakeFabric) -> None:
    made = signed("CreateNamespace", {"Namespace": "ns"})
    fabric.streams.broken = True
    assert code(await response(fabric, made)) == "ResourceUnavailable"
    fabric.streams.broken = False
    fabric.clock.shift_ms += 10_000
    assert code(await response(fabric, made)) == ""


async def test_invocations_and_questions_may_come_again(fabric: FakeFabric) -> None:
    await response(fabric, signed("CreateFunction", creation()))
    await asyncio.sleep(0.01)
    call = signed("Invoke", {"FunctionName": "hello"})
    await response(fabric, call)
    fabric.clock.shift_ms += 10_000
    assert code(await response(fabric, call)) == ""
    assert len(fabric.invoker.calls) == 2


def test_every_action_is_known_to_change_something_or_not() -> None:
    unchanging = {name for name in ACTIONS if not changes_something(name)}
    assert all(name.startswith(("Get", "List")) for name in unchanging - {"Invoke", "InvokeFunction"})


def test_the_memory_is_bounded_by_tenant_and_by_time() -> None:
    resends = Resends()
    for number in range(PER_TENANT + 10):
        resends.first("a", str(number), "X", has_nonce=True, mono_s=0)
    assert len(resends) == PER_TENANT
    assert not resends.first("a", str(PER_TENANT), "X", has_nonce=True, mono_s=0)[1]
    resends.first("b", "1", "X", has_nonce=True, mono_s=0)
    assert len(resends) == PER_TENANT + 1
    resends.first("a", "new", "X", has_nonce=True, mono_s=KEPT_S + 1)
    assert len(resends) == 2


def test_a_signature_of_another_tenant_is_another() -> None:
    resends = Resends()
    resends.first("a", "s", "X", has_nonce=True, mono_s=0)
    assert resends.first("b", "s", "Y", has_nonce=True, mono_s=0)[1]
    with pytest.raises(BadRequest):
        resends.first("b", "s", "Z", has_nonce=True, mono_s=0)


class SharedLog:
    """What gateways tell each other, at once."""

    def __init__(self) -> None:
        self.told: list[CarriedOut] = []
        self._callbacks: list[Callable[[CarriedOut], None]] = []

    def note(self, request: CarriedOut) -> None:
        self.told.append(request)
        for callback in self._callbacks:
            callback(request)

    def subscribe(self, callback: Callable[[CarriedOut], None]) -> None:
        self._callbacks.append(callback)
        for request in self.told:
            callback(request)


async def test_what_another_gateway_carried_out_or_this_one_before_a_restart_is_refused(fabric: FakeFabric) -> None:
    log = SharedLog()
    keys = fabric.api._authenticator._keys
    first, other = (Api(fabric.services, keys, MetricRegistry(), log) for _ in range(2))
    made = signed("CreateNamespace", {"Namespace": "ns"})
    answer = json.loads(await first.answer(made))["Response"]
    fabric.clock.shift_ms += 10_000
    again = json.loads(await first.answer(made))["Response"]
    assert again == answer
    restarted = Api(fabric.services, keys, MetricRegistry(), log)
    for api in (other, restarted):
        assert code(json.loads(await api.answer(made))["Response"]) == "AuthFailure.SignatureExpire"
    assert len(fabric.streams.sent_of_tenants) == 1
    [told] = log.told
    assert (told.action, told.request_id, told.code, told.appid) == ("CreateNamespace", answer["RequestId"], "", APPID)
    assert made.headers["authorization"][-64:].encode() not in told.mark
