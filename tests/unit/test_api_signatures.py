"""Who is let in, and how each client spells it: the traps of the vendor's SDKs and both older signatures, GET and POST, through the whole API.

Vectors are in test_tc3.py, real SDK clients in test_api_sdk.py, bytes on the wire in test_api_server.py; here is what these leave.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest

from infra import clock
from schemas import legacy_signature, tc3
from tests.api_fakes import SECRET_ID, SECRET_KEY, FakeFabric

LEGACY_WAYS = [(m, a) for m in ("GET", "POST") for a in ("HmacSHA1", "HmacSHA256", "")]


@pytest.fixture
async def fabric() -> FakeFabric:
    return FakeFabric()


async def code(fabric: FakeFabric, sent: tc3.SignedCall) -> str:
    """The error's code; empty when it was let in and answered."""
    answer: dict[str, Any] = json.loads(await fabric.api.answer(sent))["Response"]
    assert answer["RequestId"]
    return str(answer.get("Error", {}).get("Code", ""))


def now_s(fabric: FakeFabric) -> int:
    return fabric.clock.unix_ms() // 1000


def signed(method: str = "POST", *, service: str = "scf", at_s: int | None = None, **headers: str) -> tc3.SignedCall:
    """ListFunctions, signed over its content-type and host as they are sent."""
    timestamp_s = clock.unix_ms() // 1000 if at_s is None else at_s
    body, query = (b"", "Limit=1&SearchKey=a+b") if method == "GET" else (b'{"Limit": 1}', "")
    content_type = tc3.FORM_TYPE if method == "GET" else tc3.JSON_TYPE
    named = {"host": "h:1", "content-type": content_type, **headers}
    call = tc3.SignedCall(method, query, named, body)
    authorization = tc3.sign(call, secret_id=SECRET_ID, secret_key=SECRET_KEY, timestamp_s=timestamp_s, service=service)
    own = {"x-tc-action": "ListFunctions", "x-tc-version": "2018-04-16", "x-tc-timestamp": str(timestamp_s)}
    return dataclasses.replace(call, headers={**named, **own, "authorization": authorization})


def sent_with(call: tc3.SignedCall, **headers: str) -> tc3.SignedCall:
    return dataclasses.replace(call, headers={**call.headers, **headers})


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("signed_host", "sent_host"),
    [("h:1", "h:1"), ("h", "h:1"), ("http://h:1", "http://h:1")],
    ids=["Python and Go", "Node", "tccli"],
)
@pytest.mark.parametrize("service", ["scf", "127"], ids=["scf", "Node's first label"])
async def test_each_client_is_let_in(
    fabric: FakeFabric, method: str, signed_host: str, sent_host: str, service: str
) -> None:
    assert await code(fabric, sent_with(signed(method, service=service, host=signed_host), host=sent_host)) == ""


@pytest.mark.parametrize("sent_host", ["h:2x", "other:1", "1"])
async def test_a_request_for_another_host_is_not(fabric: FakeFabric, sent_host: str) -> None:
    assert await code(fabric, sent_with(signed(host="h"), host=sent_host)) == "AuthFailure.SignatureFailure"


async def test_header_values_may_be_signed_in_lower_case(fabric: FakeFabric) -> None:
    assert await code(fabric, sent_with(signed(host="abc:1"), host="ABC:1")) == ""


async def test_an_action_that_was_signed_can_not_be_changed(fabric: FakeFabric) -> None:
    """SDKs don't sign it; a client that does is protected."""
    timestamp_s = now_s(fabric)
    names = ("content-type", "host", "x-tc-action")
    headers = {"content-type": tc3.JSON_TYPE, "host": "h:1", "x-tc-action": "ListFunctions"}
    call = tc3.SignedCall("POST", "", headers, b"{}")
    date, key = tc3.utc_date(timestamp_s), tc3.signing_key(SECRET_KEY, tc3.utc_date(timestamp_s), "scf")
    canonical = "POST\n/\n\n" + "".join(f"{n}:{headers[n].lower()}\n" for n in names) + "\n" + ";".join(names)
    canonical += "\n" + tc3._payload_hash(call)
    signature = tc3._signature(key, str(timestamp_s), f"{date}/scf", canonical)
    authorization = f"TC3-HMAC-SHA256 Credential={SECRET_ID}/{date}/scf/tc3_request, SignedHeaders={';'.join(names)}, Signature={signature}"
    own = {"x-tc-version": "2018-04-16", "x-tc-timestamp": str(timestamp_s), "authorization": authorization}
    whole = dataclasses.replace(call, headers={**headers, **own})
    assert await code(fabric, whole) == ""
    assert await code(fabric, sent_with(whole, **{"x-tc-action": "GetAccount"})) == "AuthFailure.SignatureFailure"


@pytest.mark.parametrize(
    ("off_s", "wanted"),
    [(-302, "AuthFailure.SignatureExpire"), (-298, ""), (298, ""), (302, "AuthFailure.SignatureExpire")],
)
async def test_300_seconds_either_way_pass(fabric: FakeFabric, off_s: int, wanted: str) -> None:
    at_s = now_s(fabric) + off_s
    assert await code(fabric, signed(at_s=at_s)) == wanted
    assert await code(fabric, legacy("POST", "HmacSHA1", at_s=at_s)) == wanted


def legacy(method: str, algorithm: str, *, at_s: int | None = None, **fields: str) -> tc3.SignedCall:
    """ListFunctions with an older signature; without an algorithm it is HmacSHA1."""
    named = {
        "Action": "ListFunctions", "Version": "2018-04-16", "Region": "ap-guangzhou", "Nonce": "12345",
        "Timestamp": str(clock.unix_ms() // 1000 if at_s is None else at_s), "SecretId": SECRET_ID, "Limit": "1",
        "SearchKey": "a b+c&d=ü", **({"SignatureMethod": algorithm} if algorithm else {}), **fields,
    }  # fmt: skip
    hash_name = legacy_signature.METHODS.get(algorithm or "HmacSHA1", "sha1")
    named["Signature"] = legacy_signature.signature(SECRET_KEY, method, "h:1", named, hash_name=hash_name)
    return legacy_call(method, named)


def legacy_call(method: str, named: dict[str, str]) -> tc3.SignedCall:
    text = urlencode(named)
    headers = {"host": "h:1", "content-type": tc3.FORM_TYPE}
    if method == "GET":
        return tc3.SignedCall("GET", text, headers, b"")
    return tc3.SignedCall("POST", "", headers, text.encode())


@pytest.mark.parametrize(("method", "algorithm"), LEGACY_WAYS)
async def test_the_older_signatures_are_let_in(fabric: FakeFabric, method: str, algorithm: str) -> None:
    assert await code(fabric, legacy(method, algorithm)) == ""


@pytest.mark.parametrize(("method", "algorithm"), LEGACY_WAYS)
@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"Limit": "2"}, "AuthFailure.SignatureFailure"),
        ({"Action": "GetAccount"}, "AuthFailure.SignatureFailure"),
        ({"Signature": ""}, "AuthFailure.SignatureFailure"),
        ({"Nonce": ""}, "AuthFailure.SignatureFailure"),
        ({"Timestamp": "soon"}, "AuthFailure.SignatureFailure"),
        ({"SecretId": "AKIDother"}, "AuthFailure.SecretIdNotFound"),
        ({"Token": "x"}, "AuthFailure.TokenFailure"),
        ({"SignatureMethod": "HmacMD5"}, "AuthFailure.SignatureFailure"),
    ],
)
async def test_an_older_signature_covers_everything(
    fabric: FakeFabric, method: str, algorithm: str, change: dict[str, str], wanted: str
) -> None:
    good = legacy(method, algorithm)
    text = good.query or good.body.decode()
    assert await code(fabric, legacy_call(method, {**dict(parse_qsl(text)), **change})) == wanted


async def test_a_post_with_an_older_signature_has_one_megabyte(fabric: FakeFabric) -> None:
    assert await code(fabric, legacy("POST", "HmacSHA256", SearchKey="a" * 2**20)) == "InvalidParameter.RequestTooLarge"


async def test_lists_and_structures_come_flattened_with_an_older_signature(fabric: FakeFabric) -> None:
    flat: dict[str, Any] = {"Filters.0.Name": "Status", "Filters.0.Values.0": "Active"}
    for method in ("GET", "POST"):
        assert await code(fabric, legacy(method, "HmacSHA256", **flat)) == ""
    assert await code(fabric, legacy("GET", "HmacSHA1", **{**flat, "Filters.0.Name": "No"})) == "UnsupportedOperation"
