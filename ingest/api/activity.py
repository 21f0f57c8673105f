"""GetActivity, Penstock's own action: what runs, as streams counts it, and which processes are alive (`penstock top`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ingest.api.fields import NoFields
from ingest.api.services import Call, Services


def camel_case(name: str) -> str:
    """`in_flight` → `InFlight`."""
    return "".join(part.capitalize() for part in name.split("_"))


def camel_fields(record: Any) -> dict[str, Any]:
    """A record's fields under CamelCase names."""
    return {camel_case(field.name): getattr(record, field.name) for field in dataclasses.fields(record)}


async def get_activity(services: Services, call: Call, request: NoFields) -> Mapping[str, Any]:
    """Functions of the caller's tenant, and to the fabric's owner all its processes. Scans the activity view: for people, not for loops."""
    own = call.caller.appid + "/"
    is_owner = call.caller.appid == services.owner.appid
    members = services.members.items() if is_owner else {}
    return {
        "Functions": [camel_fields(a) for key, a in sorted(services.activity.items().items()) if key.startswith(own)],
        "Members": [camel_fields(m) for _, m in sorted(members.items())],
    }
