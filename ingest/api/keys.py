"""CreateKey, ListKeys, RotateKey, DeleteKey, Penstock's own actions: key pairs of tenants (`penstock keys`).

The tenant of the fabric's credentials file owns the fabric: it manages every tenant's keys, and makes a new tenant by making its first key.
Any other tenant manages its own, and can't tell whether another's exist. A secret is in one answer only, of the call that made it; from
there on it is sealed. The pair of the credentials file is no row here: it stays good as long as the file says it.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ingest.api.describe import time_text
from ingest.api.fields import param
from ingest.api.keystore import seal_owner
from ingest.api.params import must, switch
from ingest.api.services import Call, Services, new_command_id
from schemas.errors import BadRequest
from schemas.limits import KEY_GRACE_DEFAULT_S, KEY_GRACE_RANGE_S, KEY_VALID_RANGE_S, KEYS_PER_TENANT
from schemas.tenants import KeyRecord, TenantCommand

Answer = Mapping[str, Any]
_ALPHABET: Final = string.ascii_letters + string.digits
_SECRET_CHARS: Final = 32


def _is_appid(text: str) -> bool:
    return text.isascii() and text.isdigit() and 5 <= len(text) <= 15


def _app_id() -> Any:
    return param("", check=must(_is_appid, "5 to 15 digits"))


def _secret_id() -> Any:
    return param(max_chars=128)


@dataclass(frozen=True, slots=True)
class CreateKey:
    """Request. `app_id` is whose key it is to be (the caller's own when absent); `new_tenant` makes an AppId up. Seconds; 0 is for ever."""

    app_id: str = _app_id()
    new_tenant: str = switch("InvalidParameterValue")
    description: str = param("", code="InvalidParameterValue.Description", max_chars=200)
    valid_seconds: int = param(0, low=0, high=KEY_VALID_RANGE_S[1])


@dataclass(frozen=True, slots=True)
class ListKeys:
    """Request. `every_tenant` is for the fabric's owner."""

    app_id: str = _app_id()
    every_tenant: str = switch("InvalidParameterValue")


@dataclass(frozen=True, slots=True)
class RotateKey:
    """Request. The secret before stays good for `grace_seconds`."""

    secret_id: str = _secret_id()
    grace_seconds: int = param(KEY_GRACE_DEFAULT_S, low=KEY_GRACE_RANGE_S[0], high=KEY_GRACE_RANGE_S[1])


@dataclass(frozen=True, slots=True)
class DeleteKey:
    """Request."""

    secret_id: str = _secret_id()


async def create_key(services: Services, call: Call, request: CreateKey) -> Answer:
    """CreateKey: the answer has the secret, and nothing has it after that."""
    appid = _tenant(services, call, request)
    if len(rows := _rows(services, appid)) >= KEYS_PER_TENANT:
        raise BadRequest("LimitExceeded", f"the tenant has {len(rows)} keys, which is the limit; delete one first")
    expires_ms = call.now_ms + 1_000 * request.valid_seconds if request.valid_seconds else 0
    fresh = KeyRecord(
        seq=0,
        secret_id="AKID" + _random(_SECRET_CHARS),
        appid=appid,
        uin=_uin(services, appid, rows),
        sealed=b"",
        earlier=b"",
        earlier_until_unix_ms=0,
        description=request.description,
        enabled=True,
        created_unix_ms=call.now_ms,
        rotated_unix_ms=0,
        expires_unix_ms=expires_ms,
        applied=-1,
        command_id="",
    )
    secret = _random(_SECRET_CHARS)
    record = replace(fresh, sealed=services.seal.seal(secret, owner=seal_owner(fresh)))
    await _send(services, call, "create-key", record, record)
    return {"Key": {**_describe(record), "SecretKey": secret}}


async def list_keys(services: Services, call: Call, request: ListKeys) -> Answer:
    """ListKeys: without secrets, oldest first."""
    every = request.every_tenant == "TRUE"
    if every or request.app_id:
        _check_reach(services, call, "" if every else request.app_id)
    appid = request.app_id or call.caller.appid
    rows = sorted(services.keys.within(""), key=lambda k: (k.created_unix_ms, k.secret_id))
    shown = [_describe(row) for row in rows if every or row.appid == appid]
    if every or appid == services.owner.appid:
        shown.insert(0, _describe_file(services))
    return {"Keys": shown, "TotalCount": len(shown)}


async def rotate_key(services: Services, call: Call, request: RotateKey) -> Answer:
    """RotateKey: the same SecretId with a new secret, which only this answer has."""
    existing = _row(services, call, request.secret_id)
    secret = _random(_SECRET_CHARS)
    changed = replace(
        existing,
        sealed=services.seal.seal(secret, owner=seal_owner(existing)),
        earlier=existing.sealed if request.grace_seconds else b"",
        earlier_until_unix_ms=call.now_ms + 1_000 * request.grace_seconds if request.grace_seconds else 0,
        rotated_unix_ms=call.now_ms,
    )
    await _send(services, call, "rotate-key", changed, changed)
    return {"Key": {**_describe(changed), "SecretKey": secret}}


async def delete_key(services: Services, call: Call, request: DeleteKey) -> Answer:
    """DeleteKey: at once. A tenant's last key goes only by the fabric's owner, and only when the tenant has nothing."""
    existing = _row(services, call, request.secret_id)
    await _send(services, call, "delete-key", existing, None, last_too=_may_go_last(services, call, existing.appid))
    return {}


def _may_go_last(services: Services, call: Call, appid: str) -> bool:
    owner = services.owner
    if appid == owner.appid:
        return True  # it has the pair of the credentials file besides
    has_something = services.functions.scopes(f"{appid}/") or services.namespaces.within(appid)
    return call.caller.appid == owner.appid and not has_something


def _check_reach(services: Services, call: Call, appid: str) -> None:
    """Raises BadRequest unless the caller may act for this tenant."""
    if call.caller.appid not in (appid, services.owner.appid):
        raise BadRequest(
            "UnauthorizedOperation", "only the tenant of the fabric's credentials file manages keys of other tenants"
        )


def _tenant(services: Services, call: Call, request: CreateKey) -> str:
    if request.new_tenant == "TRUE":
        if request.app_id:
            raise BadRequest("InvalidParameterValue", "give AppId or NewTenant, not both")
        _check_reach(services, call, "")
        taken = {k.appid for k in services.keys.within("")} | {services.owner.appid}
        while (appid := "12" + _random(8, string.digits)) in taken:
            pass
        return appid
    appid = request.app_id or call.caller.appid
    _check_reach(services, call, appid)
    return appid


def _uin(services: Services, appid: str, rows: list[KeyRecord]) -> str:
    if appid == services.owner.appid:
        return services.owner.uin
    return rows[0].uin if rows else "1000" + _random(8, string.digits)


def _rows(services: Services, appid: str) -> list[KeyRecord]:
    return [k for k in services.keys.within("") if k.appid == appid]


def _row(services: Services, call: Call, secret_id: str) -> KeyRecord:
    """A key that the caller may manage; another tenant's is as one that does not exist."""
    owner = services.owner
    if secret_id == owner.secret_id and call.caller.appid == owner.appid:
        raise BadRequest(
            "UnsupportedOperation",
            "this is the pair of the fabric's credentials file, which is changed there: with the fabric stopped, delete"
            " the file, write another, and start again",
        )
    record = services.keys.get(secret_id)
    if record is None or call.caller.appid not in (record.appid, owner.appid):
        raise BadRequest("ResourceNotFound", f"there is no key {secret_id[:64]!r}; penstock keys list shows them")
    return record


async def _send(
    services: Services, call: Call, kind: str, record: KeyRecord, shown: KeyRecord | None, *, last_too: bool = False
) -> None:
    command = TenantCommand(
        new_command_id(), kind, call.now_ms, record.appid, call.caller.uin, key=record, last_too=last_too
    )
    await services.change_tenant(
        services.keys, record.secret_id, command, shown, failed_code="FailedOperation", what=f"key {record.secret_id}"
    )


def _describe(record: KeyRecord) -> dict[str, Any]:
    return {
        "SecretId": record.secret_id,
        "AppId": record.appid,
        "Uin": record.uin,
        "Description": record.description,
        "Enabled": record.enabled,
        "AddTime": time_text(record.created_unix_ms),
        "RotateTime": _time_or_empty(record.rotated_unix_ms),
        "ExpireTime": _time_or_empty(record.expires_unix_ms),
        "EarlierUntil": _time_or_empty(record.earlier_until_unix_ms),
        "InFile": False,
    }


def _describe_file(services: Services) -> dict[str, Any]:
    owner = services.owner
    return {
        "SecretId": owner.secret_id,
        "AppId": owner.appid,
        "Uin": owner.uin,
        "Description": "the fabric's credentials file",
        "Enabled": True,
        "AddTime": time_text(owner.since_unix_ms),
        "RotateTime": "",
        "ExpireTime": "",
        "EarlierUntil": "",
        "InFile": True,
    }


def _time_or_empty(unix_ms: int) -> str:
    return time_text(unix_ms) if unix_ms else ""


def _random(length: int, alphabet: str = _ALPHABET) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
