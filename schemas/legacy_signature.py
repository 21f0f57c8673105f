"""Tencent Cloud's older request signature, HmacSHA1 or HmacSHA256, which all SDKs still offer: pure.

The signed text is METHOD + host + path + `?` + the parameters sorted by name and joined as `name=value` with `&`, values raw (not
percent-encoded), `_` in names written as `.`; the signature is the base64 HMAC, sent as the parameter Signature among the others, in
the query of a GET or the form body of a POST. There is no Authorization header: that tells the two schemes apart.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterator, Mapping
from typing import Final

METHODS: Final = {"HmacSHA1": "sha1", "HmacSHA256": "sha256"}
COMMON_PARAMETERS: Final = frozenset(
    {
        "Action",
        "Version",
        "Region",
        "Timestamp",
        "Nonce",
        "SecretId",
        "SignatureMethod",
        "Signature",
        "Token",
        "Language",
        "RequestClient",
    }
)
"""Parameters that belong to every call and not to its action."""
_PORT: Final = re.compile(r":\d{1,5}\Z")


def signature(secret_key: str, method: str, host: str, parameters: Mapping[str, str], *, hash_name: str) -> str:
    """The base64 signature of a call to path `/`; `parameters` may hold Signature, which is left out."""
    named = {name.replace("_", "."): value for name, value in parameters.items() if name != "Signature"}
    text = f"{method}{host}/?" + "&".join(f"{name}={named[name]}" for name in sorted(named))
    digest = hmac.digest(secret_key.encode(), text.encode("utf-8", "surrogatepass"), hash_name)
    return base64.b64encode(digest).decode()


def is_signed(secret_key: str, method: str, host: str, parameters: Mapping[str, str]) -> bool:
    """True when Signature is right by SignatureMethod (HmacSHA1 when absent), for the host as sent or without its port."""
    hash_name = METHODS.get(parameters.get("SignatureMethod", "HmacSHA1"))
    presented = parameters.get("Signature", "").encode("utf-8", "surrogatepass")
    if hash_name is None or not presented:
        return False
    return any(
        hmac.compare_digest(signature(secret_key, method, form, parameters, hash_name=hash_name).encode(), presented)
        for form in _host_forms(host)
    )


def _host_forms(host: str) -> Iterator[str]:
    yield host
    if (bare := _PORT.sub("", host)) != host:
        yield bare
