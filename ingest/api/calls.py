"""One call from signed bytes to answer bytes: authenticate, find the action, parse, handle, wrap. No HTTP in here.

Every answer is `{"Response": {…, "RequestId": uuid}}`; a failed call has `Error: {Code, Message}` in it. `answer` never raises (but for
cancellation): what nobody foresaw is answered InternalError and logged once, under the RequestId that the caller got.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import uuid4

from infra.metrics import API_CALLS, API_SECONDS, MetricRegistry
from infra.telemetry import get_logger
from ingest.api.actions import ACTIONS, HAVE_SECRETS, Action, changes_something, find
from ingest.api.auth import Authenticator, Caller
from ingest.api.fields import unflatten
from ingest.api.ports import KeyStore, RequestLog
from ingest.api.resends import Resends, Sent, mark_of, used_before
from ingest.api.services import Call, Services
from schemas import legacy_signature, tc3
from schemas.errors import BadRequest, DeadlineExceeded, DependencyError
from schemas.tenants import CarriedOut

LEGACY_POST_BYTES: Final = 1024 * 1024
_MAX_PARAMETERS: Final = 5_000
AGAIN_S: Final = 30.0
"""How long a request that came again waits for the end of the first."""
_NOT_FINAL: Final = ("ResourceUnavailable", "InternalError")
"""Ends after which the same request may be carried out again."""
_QUIET: Final = ("Invoke", "InvokeFunction", "Get", "List")

log = get_logger("ingest.api")


@dataclass(frozen=True, slots=True)
class _Opened:
    """A call whose caller is known. `text` says that values are text, as in a flattened request; `has_nonce` that no two are signed alike."""

    caller: Caller
    name: str
    action: Action[Any]
    raw: Mapping[str, Any]
    text: bool
    signature: str
    has_nonce: bool


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_decoder: Final = json.JSONDecoder(parse_constant=_no_constant)
_encoder: Final = json.JSONEncoder(separators=(",", ":"))


class Api:
    """The cloud API of one gateway."""

    def __init__(
        self, services: Services, keys: KeyStore, metrics: MetricRegistry, requests: RequestLog | None = None
    ) -> None:
        self._services = services
        self._authenticator = Authenticator(keys)
        self._resends, self._requests = Resends(), requests
        if requests is not None:
            requests.subscribe(self._heard)
        self._calls = metrics.counter(API_CALLS)
        self._seconds = metrics.histogram(API_SECONDS)
        self._observers: dict[tuple[str, str], tuple[Callable[[], None], Callable[[float], None]]] = {}

    async def answer(self, sent: tc3.SignedCall, refusal: BadRequest | None = None) -> bytes:
        """The answer's body. With `refusal` (the door already knows why it can't be served) it only wraps that."""
        request_id = str(uuid4())
        started_s = self._services.clock.mono_s()
        name = sent.headers.get("x-tc-action", "")
        opened: _Opened | None = None
        once: Sent | None = None
        try:
            if refusal is not None:
                raise refusal
            opened = self._open(sent)
            name = opened.name
            if changes_something(name):
                once, earlier = await self._first(opened, request_id, started_s)
                if earlier is not None:
                    return earlier
            call = Call(opened.caller, request_id, self._services.clock.unix_ms())
            fields = await opened.action.run(self._services, call, opened.raw, text=opened.text)
            code = ""
        except BadRequest as exc:
            code, fields = exc.api_code, _error(exc.api_code, exc.message)
        except DependencyError as exc:
            code = "ResourceUnavailable"
            fields = _error(code, f"a part of the fabric does not answer; try again in a moment ({exc})")
            log.warning("call not served", action=name[:64], request_id=request_id, error=str(exc))
        except Exception:
            code = "InternalError"
            fields = _error(code, f"an error of Penstock itself; its log has it under {request_id}")
            log.exception("call failed", action=name[:64], request_id=request_id)
        except asyncio.CancelledError:
            if once is not None:
                once.end(None, is_final=True)
            raise
        self._observe(name if name in ACTIONS else "other", code, request_id, self._services.clock.mono_s() - started_s)
        body = _encoder.encode({"Response": {**fields, "RequestId": request_id}}).encode()
        if once is not None and opened is not None:
            self._ended(once, opened, request_id, code, body)
        return body

    async def _first(self, opened: _Opened, request_id: str, now_mono_s: float) -> tuple[Sent | None, bytes | None]:
        """What to `end` when this call is over, or the answer of the same request's first sending; raises BadRequest when that isn't kept."""
        known, is_first = self._resends.first(
            opened.caller.appid, opened.signature, opened.name, has_nonce=opened.has_nonce, mono_s=now_mono_s
        )
        return (known, None) if is_first else (None, await self._again(known, opened.name, request_id))

    def _ended(self, once: Sent, opened: _Opened, request_id: str, code: str, body: bytes) -> None:
        is_final = code not in _NOT_FINAL
        once.end(None if opened.name in HAVE_SECRETS else body, is_final=is_final)
        if self._requests is not None and is_final:
            age_ms = round(1000 * (self._services.clock.mono_s() - once.first_mono_s))
            first_ms = self._services.clock.unix_ms() - age_ms
            caller, mark = opened.caller, mark_of(opened.signature)
            self._requests.note(CarriedOut(mark, caller.appid, caller.uin, opened.name, request_id, first_ms, code))

    def _heard(self, request: CarriedOut) -> None:
        now_s = self._services.clock.mono_s()
        first_s = now_s - (self._services.clock.unix_ms() - request.unix_ms) / 1000
        self._resends.heard(request.appid, request.mark, request.action, first_mono_s=first_s, mono_s=now_s)

    async def _again(self, known: Sent, name: str, request_id: str) -> bytes:
        """What a request that came again is answered; raises BadRequest when its first answer is not kept."""
        try:
            async with asyncio.timeout(AGAIN_S):
                body = await known.ended()
        except TimeoutError as exc:
            raise DeadlineExceeded(f"this request is still being worked on after {AGAIN_S:g} s") from exc
        log.warning("a signed request came again, and was not carried out again", action=name, request_id=request_id)
        if body is None:
            raise used_before()
        return body

    def _open(self, sent: tc3.SignedCall) -> _Opened:
        now_s = self._services.clock.unix_ms() / 1000
        if sent.method not in ("GET", "POST"):
            raise BadRequest("UnsupportedProtocol", f"method {sent.method[:16]} is not supported; use POST or GET")
        if (parameters := _legacy_parameters(sent)) is not None:
            return self._open_legacy(sent, parameters, now_s)
        caller = self._authenticator.authenticate(sent, now_s=now_s)
        name = sent.headers.get("x-tc-action", "")
        signature = sent.headers.get("authorization", "").strip()[-64:]  # hex, as its parser made sure
        action = find(name, sent.headers.get("x-tc-version", ""))
        if sent.method == "GET":
            return _Opened(caller, name, action, unflatten(_pairs(sent.query)), True, signature, False)
        return _Opened(caller, name, action, _json_object(sent), False, signature, False)

    def _open_legacy(self, sent: tc3.SignedCall, parameters: list[tuple[str, str]], now_s: float) -> _Opened:
        named = dict(parameters)
        if len(named) != len(parameters):
            raise BadRequest("InvalidParameter", "a parameter is given twice")
        caller = self._authenticator.authenticate_legacy(sent.method, sent.headers.get("host", ""), named, now_s=now_s)
        name = named.get("Action", "")
        action = find(name, named.get("Version", ""))
        fields = [pair for pair in parameters if pair[0] not in legacy_signature.COMMON_PARAMETERS]
        return _Opened(caller, name, action, unflatten(fields), True, named["Signature"], True)

    def _observe(self, action: str, code: str, request_id: str, seconds: float) -> None:
        observers = self._observers.get((action, code))
        if observers is None:
            observers = (self._calls.labels(action, code).inc, self._seconds.labels(action).observe)
            self._observers[action, code] = observers
        observers[0]()
        observers[1](seconds)
        if not action.startswith(_QUIET):
            log.info("call", action=action, code=code, request_id=request_id, ms=round(seconds * 1000, 1))


def _error(code: str, message: str) -> dict[str, Any]:
    return {"Error": {"Code": code, "Message": message}}


def _legacy_parameters(sent: tc3.SignedCall) -> list[tuple[str, str]] | None:
    """Parameters of a call with the older signature; None when it is none (it has an Authorization header, or no form)."""
    if "authorization" in sent.headers:
        return None
    if sent.method == "GET":
        return _pairs(sent.query)
    if sent.headers.get("content-type", "").split(";")[0].strip().lower() != tc3.FORM_TYPE:
        return None
    if len(sent.body) > LEGACY_POST_BYTES:
        raise BadRequest(
            "InvalidParameter.RequestTooLarge",
            f"a request with this signature method has at most {LEGACY_POST_BYTES} bytes; use TC3-HMAC-SHA256",
        )
    return _pairs(sent.body.decode("ascii", "replace"))


def _pairs(query: str) -> list[tuple[str, str]]:
    if not query:
        return []
    try:
        return parse_qsl(
            query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_MAX_PARAMETERS
        )
    except ValueError as exc:
        raise BadRequest("InvalidParameter", f"the parameters are not form-encoded UTF-8: {exc}") from exc


def _json_object(sent: tc3.SignedCall) -> dict[str, Any]:
    content_type = sent.headers.get("content-type", "")
    if content_type != tc3.JSON_TYPE and content_type.split(";")[0].strip().lower() != tc3.JSON_TYPE:
        raise BadRequest("InvalidParameter", f"Content-Type is {content_type[:64]!r}; this API takes {tc3.JSON_TYPE}")
    if not sent.body:
        return {}
    try:
        value = _decoder.decode(sent.body.decode())
    except (ValueError, RecursionError) as exc:
        raise BadRequest("InvalidParameter", f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise BadRequest("InvalidParameter", "the body must be a JSON object")
    return value
