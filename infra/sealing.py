"""Secrets at rest: sealed with a key derived from the fabric's (`infra.credentials.fabric_key`), opened by whoever has that file.

AES-256-GCM under HKDF-SHA256 of the fabric's key; a fresh random nonce for each sealing. What a secret belongs to is authenticated with
it, so a sealed secret that is moved to another row does not open. This is the only module that imports `cryptography`.

    sealed = 01 | nonce (12 bytes) | ciphertext and tag
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from schemas.errors import PlatformError

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32


class Seal:
    """Seals and opens the secrets of one purpose; secrets of another purpose don't open."""

    def __init__(self, fabric_key: bytes, *, purpose: str) -> None:
        derived = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=f"penstock {purpose}".encode())
        self._cipher = AESGCM(derived.derive(fabric_key))

    def seal(self, secret: str, *, owner: str) -> bytes:
        """The sealed form; `owner` names what the secret belongs to and must be the same when it is opened."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret.encode(), owner.encode())

    def open(self, sealed: bytes, *, owner: str) -> str:
        """The secret. Raises PlatformError when it was sealed by another fabric's key, for another owner, or is damaged."""
        nonce, rest = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if sealed[:1] != _VERSION or not rest:
                raise InvalidTag
            return self._cipher.decrypt(nonce, rest, owner.encode()).decode()
        except (InvalidTag, ValueError) as exc:
            raise PlatformError(
                f"a secret of {owner} does not open with this fabric's key (fabric.key): was that file replaced?"
            ) from exc
