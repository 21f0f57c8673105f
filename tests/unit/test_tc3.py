"""Signing vectors of the vendor's SDK, as they are and altered (tests/data/vectors/tc3.json)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from schemas import legacy_signature, tc3

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data/vectors/tc3.json").read_text())["vectors"]
TC3_VECTORS = [v for v in VECTORS if v["scheme"] == tc3.ALGORITHM]
LEGACY_VECTORS = [v for v in VECTORS if v["scheme"] != tc3.ALGORITHM]


def call_of(vector: dict[str, Any]) -> tc3.SignedCall:
    body = base64.b64decode(vector["body_base64"]) if "body_base64" in vector else vector["body"].encode()
    return tc3.SignedCall(vector["method"], vector["query"], {k.lower(): v for k, v in vector["headers"].items()}, body)


def verify(call: tc3.SignedCall, secret_key: str) -> bool:
    authorization = tc3.parse_authorization(call.headers["authorization"])
    assert authorization is not None
    key = tc3.signing_key(secret_key, authorization.date, authorization.service)
    return tc3.is_signed(call, authorization, call.headers["x-tc-timestamp"], key)


def with_header(call: tc3.SignedCall, name: str, value: str) -> tc3.SignedCall:
    return tc3.SignedCall(call.method, call.query, {**call.headers, name: value}, call.body)


def ids(vectors: list[dict[str, Any]]) -> list[str]:
    return [v["id"] for v in vectors]


@pytest.mark.parametrize("vector", TC3_VECTORS, ids=ids(TC3_VECTORS))
def test_every_vector_verifies(vector: dict[str, Any]) -> None:
    assert verify(call_of(vector), vector["secret_key"])


@pytest.mark.parametrize("vector", TC3_VECTORS, ids=ids(TC3_VECTORS))
def test_our_signature_is_the_vendors(vector: dict[str, Any]) -> None:
    call = call_of(vector)
    parts = tc3.parse_authorization(call.headers["authorization"])
    assert parts is not None
    ours = tc3.sign(
        call,
        secret_id=vector["secret_id"],
        secret_key=vector["secret_key"],
        timestamp_s=int(call.headers["x-tc-timestamp"]),
        service=parts.service,
    )
    assert ours == call.headers["authorization"]


@pytest.mark.parametrize("vector", TC3_VECTORS, ids=ids(TC3_VECTORS))
def test_every_altered_vector_fails(vector: dict[str, Any]) -> None:
    call, secret = call_of(vector), vector["secret_key"]
    unsigned = call.headers.get("x-tc-content-sha256") == tc3.UNSIGNED_PAYLOAD
    altered = {
        "host": with_header(call, "host", "other." + call.headers["host"]),
        "content type": with_header(call, "content-type", call.headers["content-type"] + "x"),
        "timestamp": with_header(call, "x-tc-timestamp", str(int(call.headers["x-tc-timestamp"]) + 1)),
        "method": tc3.SignedCall("PUT", call.query, call.headers, call.body),
        "signature": with_header(call, "authorization", _last_digit_changed(call.headers["authorization"])),
    }
    if call.method == "GET":
        altered["query"] = tc3.SignedCall("GET", call.query + "&a=1", call.headers, call.body)
    elif not unsigned:
        altered["body"] = tc3.SignedCall("POST", call.query, call.headers, call.body + b" ")
        altered["payload mode"] = with_header(call, "x-tc-content-sha256", tc3.UNSIGNED_PAYLOAD)
    assert {what: verify(changed, secret) for what, changed in altered.items()} == dict.fromkeys(altered, False)
    assert not verify(call, secret + "x")


def _last_digit_changed(text: str) -> str:
    return text[:-1] + ("0" if text[-1] != "0" else "1")


@pytest.mark.parametrize(
    ("signed_host", "sent_host"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000"),  # Python, Go
        ("127.0.0.1", "127.0.0.1:9000"),  # Node
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),  # tccli
    ],
)
def test_each_clients_form_of_the_host_verifies(signed_host: str, sent_host: str) -> None:
    headers = tc3.signed_post(
        secret_id="id",
        secret_key="k",
        host=signed_host,
        action="Invoke",
        version="v",
        body=b"{}",
        timestamp_s=1_700_000_000,
    )
    call = tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, b"{}")
    assert verify(with_header(call, "host", sent_host), "k")


def test_lower_cased_header_values_verify() -> None:
    signed = tc3.SignedCall("POST", "", {"content-type": "multipart/form-data; boundary=abc", "host": "h"}, b"x")
    text = tc3.sign(signed, secret_id="id", secret_key="k", timestamp_s=1_700_000_000, service="scf")
    sent = {"content-type": "multipart/form-data; boundary=ABC", "host": "H", "authorization": text}
    assert verify(tc3.SignedCall("POST", "", {**sent, "x-tc-timestamp": "1700000000"}, b"x"), "k")


def test_another_service_in_the_scope_verifies_with_its_own_key() -> None:
    signed = tc3.SignedCall("POST", "", {"content-type": "application/json", "host": "127.0.0.1"}, b"{}")
    text = tc3.sign(signed, secret_id="id", secret_key="k", timestamp_s=1_700_000_000, service="127")
    headers = {**signed.headers, "authorization": text, "x-tc-timestamp": "1700000000"}
    assert verify(tc3.SignedCall("POST", "", headers, b"{}"), "k")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SKIP",
        "Basic abc",
        "TC3-HMAC-SHA256 Credential=id/2023-11-14/scf/tc3_request, SignedHeaders=content-type, Signature=" + "0" * 64,
        "TC3-HMAC-SHA256 Credential=id/2023-11-14/scf/aws4_request, SignedHeaders=content-type;host, Signature="
        + "0" * 64,
        "TC3-HMAC-SHA256 Credential=id/2023-11-14/scf/tc3_request, SignedHeaders=content-type;host, Signature=zz",
        "TC3-HMAC-SHA256 Credential=id/2023-11-14/scf/tc3_request, SignedHeaders=host;host;content-type, Signature="
        + "0" * 64,
        "TC3-HMAC-SHA256 Credential=id/2023-11-14/scf/tc3_request, SignedHeaders=content-type;host, Signature="
        + "0" * 64
        + "\n",
    ],
)
def test_a_malformed_authorization_is_none(text: str) -> None:
    assert tc3.parse_authorization(text) is None


def legacy_parameters(vector: dict[str, Any]) -> dict[str, str]:
    return dict(parse_qsl(vector["body"] or vector["query"], keep_blank_values=True))


@pytest.mark.parametrize("vector", LEGACY_VECTORS, ids=ids(LEGACY_VECTORS))
def test_every_legacy_vector_verifies_and_altered_ones_do_not(vector: dict[str, Any]) -> None:
    parameters, host, key = legacy_parameters(vector), vector["headers"]["Host"], vector["secret_key"]
    assert legacy_signature.is_signed(key, vector["method"], host, parameters)
    assert legacy_signature.is_signed(key, vector["method"], host + ":80", parameters)
    assert not legacy_signature.is_signed(key, vector["method"], "other", parameters)
    assert not legacy_signature.is_signed(key + "x", vector["method"], host, parameters)
    assert not legacy_signature.is_signed(key, vector["method"], host, {**parameters, "Region": "elsewhere"})
    assert not legacy_signature.is_signed(key, vector["method"], host, {**parameters, "Extra": "1"})
    assert not legacy_signature.is_signed(key, vector["method"], host, {**parameters, "Signature": ""})
    assert not legacy_signature.is_signed(key, vector["method"], host, {**parameters, "SignatureMethod": "none"})
