"""The HTTP door: shape of answers, bounds, and what is no call at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from infra import clock
from ingest.api import server
from schemas import tc3
from schemas.errors import ConfigError, PortTaken
from tests.api_fakes import SECRET_ID, SECRET_KEY, FakeFabric, Served, creation, served


@pytest.fixture
async def door() -> AsyncIterator[Served]:
    async with served(FakeFabric()) as up:
        yield up


def signed(port: int, action: str, fields: Any, *, host: str | None = None, version: str = "2018-04-16") -> bytes:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    headers = tc3.signed_post(
        secret_id=SECRET_ID,
        secret_key=SECRET_KEY,
        host=host or f"127.0.0.1:{port}",
        action=action,
        version=version,
        body=body,
        timestamp_s=clock.unix_ms() // 1000,
    )
    return http("POST / HTTP/1.1", headers, body)


def http(line: str, headers: dict[str, str], body: bytes = b"", *, length: int | None = None) -> bytes:
    lines = [line, *(f"{name}: {value}" for name, value in headers.items())]
    if body or length is not None:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Answer:
    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = dict(line.split(": ", 1) for line in lines if line)
        self.body = body

    @property
    def response(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)["Response"]
        return value

    @property
    def code(self) -> str:
        return str(self.response["Error"]["Code"])


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    return Answer(head, await reader.readexactly(length))


async def ask(port: int, request: bytes) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await read_answer(reader)
    finally:
        writer.close()


async def test_every_answer_is_200_with_exactly_application_json_and_a_request_id(door: Served) -> None:
    for request in (
        signed(door.port, "ListFunctions", {}),
        signed(door.port, "GetFunction", {"FunctionName": "none"}),
        signed(door.port, "ListFunctions", b"not json"),
        signed(door.port, "Nothing", {}),
        http("POST / HTTP/1.1", {"Host": "h", "Content-Type": "application/json"}, b"{}"),
        http("GET / HTTP/1.1", {"Host": "h"}),
        http("DELETE / HTTP/1.1", {"Host": "h"}),
        http("GET /?Action=ListFunctions&Version=1 HTTP/1.1", {"Host": "h"}),
    ):
        answer = await ask(door.port, request)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert len(answer.response["RequestId"]) == 36


async def test_connections_are_kept_and_requests_may_be_pipelined(door: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(signed(door.port, "ListFunctions", {}) * 3)
    async with asyncio.timeout(10):
        ids = {(await read_answer(reader)).response["RequestId"] for _ in range(3)}
    assert len(ids) == 3
    writer.close()


@pytest.mark.parametrize("host", ["http://127.0.0.1:{port}", "127.0.0.1", "example.org"])
async def test_the_host_is_taken_as_each_client_sends_it(door: Served, host: str) -> None:
    sent = host.format(port=door.port)
    assert "Error" not in (await ask(door.port, signed(door.port, "ListFunctions", {}, host=sent))).response


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("Authorization", "SKIP", "AuthFailure.SignatureFailure"),
        ("Authorization", "", "AuthFailure.SignatureFailure"),
        ("X-TC-Timestamp", "1", "AuthFailure.SignatureExpire"),
        ("X-TC-Timestamp", "now", "AuthFailure.SignatureFailure"),
        ("X-TC-Timestamp", "9" * 12, "AuthFailure.SignatureExpire"),
        ("X-TC-Token", "x", "AuthFailure.TokenFailure"),
        ("X-TC-Version", "2017-01-01", "NoSuchVersion"),
        ("X-TC-Version", "", "MissingParameter"),
        ("X-TC-Action", "", "MissingParameter"),
        ("X-TC-Action", "Nothing", "InvalidAction"),
    ],
)
async def test_a_header_that_is_wrong_has_its_code(door: Served, header: str, value: str, code: str) -> None:
    head, _, body = signed(door.port, "ListFunctions", {}).partition(b"\r\n\r\n")
    lines = [line for line in head.decode().split("\r\n") if not line.startswith(header + ":")]
    request = "\r\n".join([*lines, f"{header}: {value}"]).encode() + b"\r\n\r\n" + body
    assert (await ask(door.port, request)).code == code


async def test_an_unknown_key_has_its_code(door: Served) -> None:
    request = signed(door.port, "ListFunctions", {}).replace(SECRET_ID.encode(), b"AKIDother")
    assert (await ask(door.port, request)).code == "AuthFailure.SecretIdNotFound"


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "multipart/form-data; boundary=x"])
async def test_another_content_type_is_refused_after_the_signature_held(door: Served, content_type: str) -> None:
    host, now = f"127.0.0.1:{door.port}", clock.unix_ms() // 1000
    call = tc3.SignedCall("POST", "", {"content-type": content_type, "host": host}, b"{}")
    text = tc3.sign(call, secret_id=SECRET_ID, secret_key=SECRET_KEY, timestamp_s=now, service="scf")
    headers = {"Host": host, "Content-Type": content_type, "X-TC-Timestamp": str(now), "Authorization": text}
    request = http("POST / HTTP/1.1", {**headers, "X-TC-Action": "ListFunctions", "X-TC-Version": "2018-04-16"}, b"{}")
    answer = await ask(door.port, request)
    assert answer.code == "InvalidParameter"
    assert "Content-Type" in answer.response["Error"]["Message"]


async def test_a_body_that_is_said_to_be_too_large_is_answered_before_it_comes(door: Served) -> None:
    answer = await ask(door.port, http("POST / HTTP/1.1", {"Host": "h"}, b"x", length=11 * 1024 * 1024))
    assert (answer.status, answer.code) == (200, "InvalidParameter.RequestTooLarge")
    assert answer.headers["Connection"] == "close"


async def test_a_chunked_body_is_cut_at_the_limit(door: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(http("POST / HTTP/1.1", {"Host": "h", "Transfer-Encoding": "chunked"}))
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    async with asyncio.timeout(20):
        for _ in range(11 * 16):
            writer.write(chunk)
            await writer.drain()
        assert (await read_answer(reader)).code == "InvalidParameter.RequestTooLarge"
    writer.close()


async def test_ten_megabytes_pass(door: Served) -> None:
    body = b'{"SearchKey": "' + b"x" * (10 * 1024 * 1024 - 17) + b'"}'
    answer = await ask(door.port, signed(door.port, "ListFunctions", body))
    assert answer.code == "InvalidParameterValue.SearchKey"


@pytest.mark.parametrize("length", [33_000, 60_000, 200_000])
async def test_a_long_query_is_refused(door: Served, length: int) -> None:
    answer = await ask(door.port, http(f"GET /?a={'x' * length} HTTP/1.1", {"Host": "h"}))
    assert (answer.status, answer.code) == (200, "InvalidParameter.RequestTooLarge")


async def test_a_body_that_stops_coming_is_answered(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_S", 0.1)
    answer = await ask(door.port, http("POST / HTTP/1.1", {"Host": "h"}, b"x", length=100))
    assert answer.code == "InvalidParameter"
    assert "did not arrive" in answer.response["Error"]["Message"]


async def test_a_head_that_stops_coming_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.2)
    async with served(FakeFabric()) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\n")
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_goes_away_in_its_body_hurts_nobody(door: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(http("POST / HTTP/1.1", {"Host": "h"}, b"x", length=100))
    await writer.drain()
    writer.transport.abort()
    assert (await ask(door.port, signed(door.port, "ListFunctions", {}))).response["TotalCount"] == 0


async def test_a_client_that_goes_away_in_its_call_does_not_stop_the_run(door: Served) -> None:
    door.fabric.streams.delay_s = 0.0
    invoker = door.fabric.invoker
    invoker.held = []
    await _made(door)
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(signed(door.port, "Invoke", {"FunctionName": "hello"}))
    async with asyncio.timeout(10):
        while not invoker.held:
            await asyncio.sleep(0.01)
    writer.transport.abort()
    assert (await ask(door.port, http("GET /healthz HTTP/1.1", {"Host": "h"}))).status == 200
    invoker.held[0]()
    assert (await ask(door.port, signed(door.port, "ListFunctions", {}))).response["TotalCount"] == 1


async def _made(door: Served) -> None:
    answer = await ask(door.port, signed(door.port, "CreateFunction", creation()))
    assert "Error" not in answer.response
    async with asyncio.timeout(5):
        while not any(record.serving for record in door.fabric.functions.rows.values()):
            await asyncio.sleep(0.01)


async def test_bytes_that_are_no_http_get_400(door: Served) -> None:
    assert (await ask(door.port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")).status == 400


async def test_expect_continue_is_answered(door: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    head, _, body = signed(door.port, "ListFunctions", {}).partition(b"\r\n\r\n")
    writer.write(head + b"\r\nExpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_answer(reader)).response["TotalCount"] == 0
    writer.close()


async def test_health_pages(door: Served) -> None:
    async def get(path: str) -> Answer:
        return await ask(door.port, http(f"GET {path} HTTP/1.1", {"Host": "h"}))

    assert (await get("/healthz")).status == 200
    ready = await get("/readyz")
    assert (ready.status, json.loads(ready.body)["ready"]) == (200, True)
    door.fabric.health.state["agent"] = False
    ready = await get("/readyz")
    assert (ready.status, json.loads(ready.body)) == (
        503,
        {"ready": False, "parts": {"tables": True, "agent": False, "streams": True}},
    )
    await ask(door.port, signed(door.port, "ListFunctions", {}))
    metrics = (await get("/metrics")).body.decode()
    assert 'penstock_ingest_api_calls_total{action="ListFunctions",code=""} 1.0' in metrics
    missing = await get("/nowhere")
    assert (missing.status, missing.headers["Content-Type"].split(";")[0]) == (404, "text/plain")
    assert (await ask(door.port, http("POST /healthz HTTP/1.1", {"Host": "h"}, b"x"))).status == 405


async def test_a_taken_port_is_told_so(door: Served) -> None:
    other = server.ApiServer(door.fabric.api, door.fabric.metrics, door.fabric.health)
    with pytest.raises(PortTaken):
        await other.start("127.0.0.1", door.port)
    with pytest.raises(ConfigError):
        await other.start("203.0.113.1", 0)
