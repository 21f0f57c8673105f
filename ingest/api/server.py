"""The gateway's HTTP door: the cloud API at `/`, and /healthz, /readyz, /metrics beside it, unsigned.

Every answer at `/` has HTTP status 200 and Content-Type exactly `application/json` (clients take anything else for a network error, or
miss the error in it: SCF.md section 0, points 2 and 3). Bounds: 10 MB for a POST body, 32 KB for a GET, 60 s for a body to arrive, 75 s
for a connection to bring its next request's head, `BUFFERED_BYTES` for all bodies that are being read. A body that is too large is
answered before it was read.

aiohttp's low-level server, not its Application: one route needs no router.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from infra.metrics import MetricRegistry
from infra.telemetry import get_logger
from ingest.api.calls import Api
from ingest.api.ports import Health
from schemas import tc3
from schemas.errors import BadRequest, ConfigError, PortTaken
from schemas.limits import API_BODY_BYTES, API_GET_BYTES

BODY_S: Final = 60.0
HEAD_S: Final = 75.0
DRAIN_S: Final = 5.0
"""How long what is left of a refused body is read away, so that the client gets to see the answer."""
STOP_S: Final = 1.5
"""How long running calls may go on when the gateway stops; less than its supervisor waits."""
BUFFERED_BYTES: Final = 256 * 1024 * 1024
_HEADERS: Final = {"Content-Type": tc3.JSON_TYPE, "Server": "penstock"}

Page = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = get_logger("ingest.api.server")


class ApiServer:
    """Serves one `Api`. `pages` are more paths for GET, by exact path."""

    def __init__(
        self, api: Api, metrics: MetricRegistry, health: Health, *, pages: Mapping[str, Page] | None = None
    ) -> None:
        self._api, self._metrics, self._health = api, metrics, health
        self._pages: dict[str, Page] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._show_metrics,
            **(pages or {}),
        }
        self._buffered = 0
        self._runner: web.ServerRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (of the system's choice when 0 was asked for). Raises PortTaken or ConfigError."""
        server = _Server(
            self._handle,
            keepalive_timeout=HEAD_S,
            max_line_size=2 * API_GET_BYTES,
            lingering_time=DRAIN_S,
            auto_decompress=False,
            access_log=None,
        )
        runner = web.ServerRunner(server, shutdown_timeout=STOP_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=1_024).start()
        except OSError as exc:
            await runner.cleanup()
            if exc.errno == errno.EADDRINUSE:
                raise PortTaken(port, wanted_for="the cloud API") from exc
            raise ConfigError(f"the cloud API can't listen on {host}:{port}: {exc.strerror}") from exc
        self._runner = runner
        bound: int = runner.addresses[0][1]
        return bound

    async def close(self) -> None:
        """Stop listening, let running calls end for `STOP_S`, then cut them."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/":
            return await self._call(request)
        page = self._pages.get(request.path)
        if page is None:
            return web.Response(status=404, text=f"nothing is at {request.path[:200]}; the cloud API is at /\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="GET only\n", headers={"Allow": "GET, HEAD"})
        return await page(request)

    async def _call(self, request: web.BaseRequest) -> web.Response:
        refusal: BadRequest | None = None
        body = b""
        query = request.raw_path.partition("?")[2]
        taken = 0
        try:
            if request.method == "GET" and len(query) > API_GET_BYTES:
                raise _too_large(API_GET_BYTES, "the query")
            if request.body_exists:
                taken = self._reserve(request)
                body = await _read(request)
        except BadRequest as exc:
            refusal = exc
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            answer = await self._api.answer(tc3.SignedCall(request.method, query, headers, body), refusal)
        finally:
            self._buffered -= taken
        response = web.Response(body=answer, headers=_HEADERS)
        if refusal is not None:
            response.force_close()
        return response

    def _reserve(self, request: web.BaseRequest) -> int:
        """Count a body's bytes in, before it is read. Raises BadRequest."""
        limit = API_GET_BYTES if request.method == "GET" else API_BODY_BYTES
        wanted = limit if request.content_length is None else request.content_length
        if wanted > limit:
            raise _too_large(limit, "the body")
        if self._buffered + wanted > BUFFERED_BYTES:
            raise BadRequest("RequestLimitExceeded", "too many large requests at once; try again in a moment")
        self._buffered += wanted
        return wanted

    async def _healthz(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.BaseRequest) -> web.Response:
        parts = dict(self._health.parts())
        ready = all(parts.values())
        body = json.dumps({"ready": ready, "parts": parts}).encode()
        return web.Response(status=200 if ready else 503, body=body, headers=_HEADERS)

    async def _show_metrics(self, _request: web.BaseRequest) -> web.Response:
        body, content_type = self._metrics.render()
        return web.Response(body=body, headers={"Content-Type": content_type})


async def _read(request: web.BaseRequest) -> bytes:
    """The body. Raises BadRequest when it is too large, too slow or broken."""
    limit = API_GET_BYTES if request.method == "GET" else API_BODY_BYTES
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            while chunk := await request.content.readany():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit, "the body")
                chunks.append(chunk)
    except TimeoutError as exc:
        raise BadRequest("InvalidParameter", f"the body did not arrive within {BODY_S:g} s") from exc
    except (web.RequestPayloadError, ConnectionError) as exc:
        raise BadRequest("InvalidParameter", "the body broke off") from exc
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int, what: str) -> BadRequest:
    return BadRequest("InvalidParameter.RequestTooLarge", f"{what} is too large; the limit is {limit} bytes")


class _Server(web.Server):
    """aiohttp's, with our protocol."""

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    """aiohttp's, but for how it answers what is no request for us."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Bytes that are no HTTP: 400 and no log line. A request line beyond the bounds: the API's own error. Closes the connection."""
        if status != 400:
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong):
            error = {
                "Code": "InvalidParameter.RequestTooLarge",
                "Message": f"a request line has at most {API_GET_BYTES} bytes",
            }
            body = json.dumps({"Response": {"Error": error, "RequestId": ""}}).encode()
            response = web.Response(body=body, headers=_HEADERS)
        else:
            response = web.Response(status=400, text="this is no HTTP request\n")
        response.force_close()
        return response
