"""Mutual authentication of two Penstock processes by the fabric's key (challenge and response, HMAC-SHA256).

accepting side → 32-byte nonce A
connecting side → 32-byte nonce B, proof("connect", A, B), identity JSON
accepting side → proof("accept", A, B)
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Final, Literal

NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32


def proof(key: bytes, role: Literal["connect", "accept"], nonce_a: bytes, nonce_b: bytes) -> bytes:
    """What the side in `role` must present; 32 bytes."""
    return hmac.new(key, b"penstock/1 " + role.encode() + nonce_a + nonce_b, sha256).digest()


def is_proof(key: bytes, role: Literal["connect", "accept"], nonce_a: bytes, nonce_b: bytes, presented: bytes) -> bool:
    """Constant-time check of a presented proof."""
    return hmac.compare_digest(proof(key, role, nonce_a, nonce_b), presented)
