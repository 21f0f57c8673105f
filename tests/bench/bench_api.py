"""Cost of a synchronous Invoke in the cloud API: authentication, parsing, checks, dispatch to an invoker that answers at once, answer.

`code` is CPU in our code alone (`Api.answer`); `http` is the CPU of the serving process for the same call over a kept-alive connection
(aiohttp, uvloop, the client's process not counted). Prints one JSON object a line. Run: python -m tests.bench.bench_api
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import platform
import socket
import statistics
import time
from collections.abc import Coroutine
from typing import Any

import uvloop

from infra import clock
from infra.telemetry import configure
from schemas import tc3
from tests.api_fakes import SECRET_ID, SECRET_KEY, FakeFabric, creation, served

CALLS = 2_000
REPEATS = 7
SIZES = (64, 1_024, 65_536)


def _headers_and_body(host: str, action: str, fields: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    body = json.dumps(fields).encode()
    now = clock.unix_ms() // 1000
    headers = tc3.signed_post(
        secret_id=SECRET_ID,
        secret_key=SECRET_KEY,
        host=host,
        action=action,
        version="2018-04-16",
        body=body,
        timestamp_s=now,
    )
    headers |= {
        "User-Agent": "python-requests/2",
        "Accept": "*/*",
        "Connection": "keep-alive",
        "X-TC-Language": "en-US",
    }
    return headers | {"X-TC-RequestClient": "SDK_PYTHON_3.1.100", "Content-Length": str(len(body))}, body


def _event(size: int) -> dict[str, Any]:
    return {"FunctionName": "hello", "ClientContext": json.dumps({"payload": "x" * size})}


async def _with_function() -> FakeFabric:
    fabric = FakeFabric()
    headers, body = _headers_and_body("h", "CreateFunction", creation())
    await fabric.api.answer(tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body))
    fabric.streams.work()
    return fabric


async def _code(size: int) -> list[float]:
    """CPU microseconds a call, one figure a repetition."""
    fabric = await _with_function()
    headers, body = _headers_and_body("h", "Invoke", _event(size))
    call = tc3.SignedCall("POST", "", {k.lower(): v for k, v in headers.items()}, body)
    figures = []
    for _ in range(REPEATS + 1):
        began = time.process_time()
        for _ in range(CALLS):
            await fabric.api.answer(call)
        figures.append((time.process_time() - began) / CALLS * 1e6)
        fabric.invoker.calls.clear()
    return figures[1:]


def _client(port: int, size: int, calls: int) -> None:
    headers, body = _headers_and_body(f"127.0.0.1:{port}", "Invoke", _event(size))
    request = ("POST / HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n").encode() + body
    with socket.create_connection(("127.0.0.1", port)) as connection:
        stream = connection.makefile("rb")
        for _ in range(calls):
            connection.sendall(request)
            length = 0
            while (header := stream.readline()) != b"\r\n":
                if header.lower().startswith(b"content-length"):
                    length = int(header.split(b":")[1])
            assert b'"InvokeResult":0' in stream.read(length)


async def _http(size: int) -> list[float]:
    figures = []
    async with served(await _with_function()) as door:
        for repetition in range(REPEATS + 1):
            process = multiprocessing.get_context("spawn").Process(target=_client, args=(door.port, size, CALLS))
            began = time.process_time()
            process.start()
            await asyncio.to_thread(process.join)
            assert process.exitcode == 0
            if repetition:
                figures.append((time.process_time() - began) / CALLS * 1e6)
            door.fabric.invoker.calls.clear()
    return figures


def _run(work: Coroutine[Any, Any, list[float]]) -> dict[str, float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = sorted(runner.run(work))
    return {
        "us_median": round(statistics.median(figures), 1),
        "us_min": round(figures[0], 1),
        "us_max": round(figures[-1], 1),
    }


def main() -> None:
    """Print all figures."""
    configure("bench", level="ERROR")
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    for size in SIZES:
        print(json.dumps({"bench": "api_invoke", "part": "code", "event_bytes": size, **_run(_code(size)), **machine}))
    for size in SIZES[:2]:
        print(json.dumps({"bench": "api_invoke", "part": "http", "event_bytes": size, **_run(_http(size)), **machine}))


if __name__ == "__main__":
    main()
