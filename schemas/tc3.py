"""TC3-HMAC-SHA256, Tencent Cloud API v3's request signature: sign and verify, pure.

    canonical request = METHOD LF / LF query LF name:value LF... LF LF signed names LF hex SHA-256 of the payload
    string to sign    = TC3-HMAC-SHA256 LF timestamp LF DATE/SERVICE/tc3_request LF hex SHA-256 of the canonical request
    key               = HMAC chain ("TC3" + secret, DATE) -> SERVICE -> "tc3_request"

The query is that of a GET exactly as sent, and empty for a POST; the payload is the raw body of a POST, empty for a GET, and the
text UNSIGNED-PAYLOAD when the header X-TC-Content-SHA256 says so. Clients differ in the host they sign (with port, without, with a
scheme) and in the case of header values, so a verifier tries each form that a known client uses (SCF.md section 0, points 4 and 6).

What the scheme does not cover, so no verifier can notice a change of it: every header that is not signed (SDKs sign content-type
and host only; X-TC-Action is not among them).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Final

ALGORITHM: Final = "TC3-HMAC-SHA256"
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
JSON_TYPE: Final = "application/json"
FORM_TYPE: Final = "application/x-www-form-urlencoded"
_TERMINATOR: Final = "tc3_request"
_ALWAYS_SIGNED: Final = frozenset({"content-type", "host"})
_DAY_S: Final = 86_400
_AUTHORIZATION: Final = re.compile(
    r"TC3-HMAC-SHA256 +Credential=([^/,\s]{1,128})/(\d{4}-\d\d-\d\d)/([A-Za-z0-9._-]{1,64})/tc3_request,"
    r" *SignedHeaders=([a-z0-9;_-]{1,512}), *Signature=([0-9a-f]{64}) *\Z"
)
_PORT: Final = re.compile(r":\d{1,5}\Z")


@dataclass(frozen=True, slots=True)
class Authorization:
    """The parts of an Authorization header. `date` is YYYY-MM-DD; `signature` is lower-case hex."""

    secret_id: str
    date: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str


@dataclass(frozen=True, slots=True)
class SignedCall:
    """What was sent. `query` is raw, without `?`; header names are lower-case."""

    method: str
    query: str
    headers: Mapping[str, str]
    body: bytes


def parse_authorization(text: str) -> Authorization | None:
    """The parts of the header, or None when it is not of this scheme, or doesn't sign content-type and host."""
    match = _AUTHORIZATION.match(text)
    if match is None:
        return None
    secret_id, date, service, names, signature = match.groups()
    signed = tuple(names.split(";"))
    if not _ALWAYS_SIGNED.issubset(signed) or len(set(signed)) != len(signed):
        return None
    return Authorization(secret_id, date, service, signed, signature)


def utc_date(timestamp_s: int) -> str:
    """YYYY-MM-DD in UTC of unix seconds; raises ValueError or OverflowError for a time outside the calendar."""
    return _day(timestamp_s // _DAY_S)


@lru_cache(maxsize=16)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * _DAY_S, UTC).strftime("%Y-%m-%d")


def signing_key(secret_key: str, date: str, service: str) -> bytes:
    """The derived key of one day and service: three HMACs, worth keeping."""
    key = hmac.digest(b"TC3" + secret_key.encode(), date.encode(), "sha256")
    key = hmac.digest(key, service.encode(), "sha256")
    return hmac.digest(key, _TERMINATOR.encode(), "sha256")


def is_signed(call: SignedCall, authorization: Authorization, timestamp_s: str, key: bytes) -> bool:
    """True when the signature is right for the call in one of the forms that known clients sign.

    Args:
        call: as received.
        authorization: parsed from its header.
        timestamp_s: the text of X-TC-Timestamp, as sent.
        key: `signing_key` of the scope that was sent.
    """
    is_get = call.method == "GET"
    query = call.query if is_get else ""
    tail = f"{';'.join(authorization.signed_headers)}\n{_payload_hash(call)}"
    expected = authorization.signature.encode()
    scope = f"{authorization.date}/{authorization.service}"
    for headers in _header_forms(call.headers, authorization.signed_headers):
        canonical = f"{call.method}\n/\n{query}\n{headers}\n{tail}"
        if hmac.compare_digest(_signature(key, timestamp_s, scope, canonical).encode(), expected):
            return True
    return False


def _payload_hash(call: SignedCall) -> str:
    if call.headers.get("x-tc-content-sha256") == UNSIGNED_PAYLOAD:
        return sha256(UNSIGNED_PAYLOAD.encode()).hexdigest()
    return sha256(b"" if call.method == "GET" else call.body).hexdigest()


def _header_forms(headers: Mapping[str, str], names: tuple[str, ...]) -> Iterator[str]:
    """Canonical header blocks, the usual one first, none twice."""
    sent = {name: headers.get(name, "").strip() for name in names}
    tried: set[str] = set()
    for host in (sent["host"], _PORT.sub("", sent["host"])):
        values = {**sent, "host": host}
        block = "".join(f"{name}:{values[name]}\n" for name in names)
        for form in (block, block.lower()):
            if form not in tried:
                tried.add(form)
                yield form


def _signature(key: bytes, timestamp_s: str, scope: str, canonical: str) -> str:
    digest = sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
    text = f"{ALGORITHM}\n{timestamp_s}\n{scope}/{_TERMINATOR}\n{digest}"
    return hmac.digest(key, text.encode(), "sha256").hex()


def sign(call: SignedCall, *, secret_id: str, secret_key: str, timestamp_s: int, service: str) -> str:
    """The Authorization header of a call, over its content-type and host."""
    date = utc_date(timestamp_s)
    headers = f"content-type:{call.headers['content-type']}\nhost:{call.headers['host']}\n"
    query = call.query if call.method == "GET" else ""
    canonical = f"{call.method}\n/\n{query}\n{headers}\ncontent-type;host\n{_payload_hash(call)}"
    signature = _signature(signing_key(secret_key, date, service), str(timestamp_s), f"{date}/{service}", canonical)
    scope = f"{secret_id}/{date}/{service}/{_TERMINATOR}"
    return f"{ALGORITHM} Credential={scope}, SignedHeaders=content-type;host, Signature={signature}"


def signed_post(
    *,
    secret_id: str,
    secret_key: str,
    host: str,
    action: str,
    version: str,
    body: bytes,
    timestamp_s: int,
    region: str = "",
    service: str = "scf",
) -> dict[str, str]:
    """All headers of a JSON POST to `host` (with its port, when it is not the scheme's own)."""
    headers = {"content-type": JSON_TYPE, "host": host}
    call = SignedCall("POST", "", headers, body)
    return {
        "Content-Type": JSON_TYPE,
        "Host": host,
        "X-TC-Action": action,
        "X-TC-Version": version,
        "X-TC-Timestamp": str(timestamp_s),
        **({"X-TC-Region": region} if region else {}),
        "Authorization": sign(
            call, secret_id=secret_id, secret_key=secret_key, timestamp_s=timestamp_s, service=service
        ),
    }
