"""Who is calling: a request's signature checked against the key store.

Answers (SCF.md 1.4): AuthFailure.SignatureFailure for a signature that is missing, malformed or wrong; SecretIdNotFound for an unknown
key; SignatureExpire beyond 300 s of skew either way (300 s itself passes); TokenFailure for a token that is not the key's.
A captured request can be sent again within those 300 s: what a changing action does about that is `ingest.api.resends`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ingest.api.ports import KeyPair, KeyStore
from schemas import legacy_signature, tc3
from schemas.errors import BadRequest
from schemas.limits import SIGNATURE_SKEW_S

_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}\Z")
_REMEMBERED_KEYS: Final = 1_024


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant on whose behalf a call is made."""

    appid: str
    uin: str


class Authenticator:
    """Checks signatures. Remembers derived signing keys (of proven callers only, so that nobody else can fill the memory)."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._derived: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()

    def authenticate(self, call: tc3.SignedCall, *, now_s: float) -> Caller:
        """The caller of a TC3-signed request; raises BadRequest."""
        header = call.headers.get("authorization", "")
        authorization = tc3.parse_authorization(header)
        if authorization is None:
            raise _signature_failure(
                "the request is not signed"
                if not header
                else "Authorization is no TC3-HMAC-SHA256 over content-type and host"
            )
        timestamp_text = call.headers.get("x-tc-timestamp", "")
        timestamp_s = _fresh(timestamp_text, now_s)
        if tc3.utc_date(timestamp_s) != authorization.date:
            raise _signature_failure("the credential's date is not the UTC day of X-TC-Timestamp")
        pair = self._pair(authorization.secret_id, call.headers.get("x-tc-token", ""))
        for secret in _secrets(pair):
            scope = (secret, authorization.date, authorization.service)
            key = self._derived.get(scope)
            if tc3.is_signed(call, authorization, timestamp_text, key or tc3.signing_key(*scope)):
                if key is None:
                    self._remember(scope)
                return Caller(pair.appid, pair.uin)
        raise _signature_failure(
            "the signature is wrong; check the secret key, and that nothing changes the request on its way"
        )

    def authenticate_legacy(self, method: str, host: str, parameters: Mapping[str, str], *, now_s: float) -> Caller:
        """The caller of a request signed with HmacSHA1 or HmacSHA256; raises BadRequest."""
        for name in ("Timestamp", "Nonce", "SecretId", "Signature"):
            if not parameters.get(name):
                raise _signature_failure(f"the request is not signed: it has no {name}")
        if parameters.get("SignatureMethod", "HmacSHA1") not in legacy_signature.METHODS:
            raise _signature_failure("SignatureMethod must be HmacSHA1 or HmacSHA256")
        _fresh(parameters["Timestamp"], now_s)
        pair = self._pair(parameters["SecretId"], parameters.get("Token", ""))
        if any(legacy_signature.is_signed(secret, method, host, parameters) for secret in _secrets(pair)):
            return Caller(pair.appid, pair.uin)
        raise _signature_failure(
            "the signature is wrong; check the secret key, and that nothing changes the request on its way"
        )

    def _pair(self, secret_id: str, token: str) -> KeyPair:
        pair = self._keys.find(secret_id)
        if pair is None:
            raise BadRequest(
                "AuthFailure.SecretIdNotFound",
                "the SecretId is not known here, or is no longer good; see the fabric's credentials file, or penstock keys list",
            )
        if token != pair.token:
            raise BadRequest("AuthFailure.TokenFailure", "the token does not belong to this SecretId")
        return pair

    def _remember(self, scope: tuple[str, str, str]) -> None:
        self._derived[scope] = tc3.signing_key(*scope)
        if len(self._derived) > _REMEMBERED_KEYS:
            self._derived.popitem(last=False)


def _secrets(pair: KeyPair) -> tuple[str, ...]:
    return (pair.secret_key, pair.earlier_secret) if pair.earlier_secret else (pair.secret_key,)


def _fresh(timestamp: str, now_s: float) -> int:
    if not _TIMESTAMP.match(timestamp):
        raise _signature_failure("the timestamp is missing or is not unix seconds")
    skew_s = int(timestamp) - now_s
    if abs(skew_s) > SIGNATURE_SKEW_S:
        raise BadRequest(
            "AuthFailure.SignatureExpire",
            f"the timestamp is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the fabric's clock;"
            f" the limit is {SIGNATURE_SKEW_S} s: check this machine's clock",
        )
    return int(timestamp)


def _signature_failure(why: str) -> BadRequest:
    return BadRequest("AuthFailure.SignatureFailure", why)
