"""SCF's actions that Penstock knows by name and does not carry out, each with the reason that its caller is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.errors import BadRequest

_DOMAINS: Final = "functions are reached by the bridge's own address, and custom domains are not built"

UNBUILT: Final[Mapping[str, str]] = {
    "CreateCustomDomain": _DOMAINS,
    "GetCustomDomain": _DOMAINS,
    "ListCustomDomains": _DOMAINS,
    "UpdateCustomDomain": _DOMAINS,
    "DeleteCustomDomain": _DOMAINS,
}
"""Reason by action."""


def refusal(name: str) -> BadRequest | None:
    """What the caller of an action that is not built is told; None for a name that SCF does not have."""
    reason = UNBUILT.get(name)
    return None if reason is None else BadRequest("UnsupportedOperation", f"{name} is not supported: {reason}")
