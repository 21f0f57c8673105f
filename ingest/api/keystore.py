"""Key pairs by secret id: the one of the credentials file, and those of the keys topic as this gateway may show them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from infra.credentials import Credentials
from infra.telemetry import get_logger
from ingest.api.ports import Clock, KeyPair, Seal
from ingest.api.registry import Registry
from schemas.errors import PlatformError
from schemas.tenants import KeyRecord, is_usable

_OPENED: Final = 4_096

log = get_logger("ingest.api.keystore")


class TenantKeys:
    """Where the authenticator looks keys up; local. A secret is opened once and remembered by its sealed form."""

    def __init__(self, own: Credentials, keys: Registry[KeyRecord], seal: Seal, clock: Clock) -> None:
        self._own = KeyPair(own.secret_id, own.secret_key, own.appid, own.uin)
        self._keys, self._seal, self._clock = keys, seal, clock
        self._opened: OrderedDict[bytes, str] = OrderedDict()

    def find(self, secret_id: str) -> KeyPair | None:
        """The pair, when it is known, enabled and not expired."""
        if secret_id == self._own.secret_id:
            return self._own
        record = self._keys.get(secret_id)
        now_ms = self._clock.unix_ms()
        if record is None or not is_usable(record, now_ms):
            return None
        secret = self._open(record.sealed, record)
        if not secret:
            return None
        earlier = self._open(record.earlier, record) if now_ms < record.earlier_until_unix_ms else ""
        return KeyPair(record.secret_id, secret, record.appid, record.uin, earlier_secret=earlier)

    def _open(self, sealed: bytes, record: KeyRecord) -> str:
        """The secret; empty when it does not open, which is logged once."""
        secret = self._opened.get(sealed)
        if secret is None:
            try:
                secret = self._seal.open(sealed, owner=seal_owner(record))
            except PlatformError as exc:
                log.error("key not usable", secret_id=record.secret_id, why=str(exc))
                secret = ""
            self._opened[sealed] = secret
            if len(self._opened) > _OPENED:
                self._opened.popitem(last=False)
        return secret


def seal_owner(record: KeyRecord) -> str:
    """What a sealed secret belongs to: it opens in no other row and for no other tenant."""
    return f"{record.appid}/{record.secret_id}"
