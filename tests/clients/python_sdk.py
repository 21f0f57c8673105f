"""The Python SDK, in this process: its synchronous client by POST and by GET, and its asynchronous client (which speaks httpx)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from tencentcloud.common import credential
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.scf.v20180416 import models, scf_client, scf_client_async

from tests.clients.client import Access, Client
from tests.fabric import Fabric


class Sdk(Client):
    """The SDK's client of one way to call: POST, GET, async POST, async GET."""

    def __init__(self, fabric: Fabric, way: str, *, secret_key: str | None = None, endpoint: str = "") -> None:
        access = Access.of(fabric)
        access = replace(access, secret_key=secret_key or access.secret_key)
        host = urlsplit(endpoint).netloc or access.host
        method = "GET" if way.endswith("GET") else "POST"
        profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint=host, reqMethod=method))
        self._is_async = way.startswith("async")
        self._arguments = (credential.Credential(access.secret_id, access.secret_key), access.region, profile)

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        request = getattr(models, f"{action}Request")()
        request.from_json_string(json.dumps(fields))
        if self._is_async:
            answer = asyncio.run(self._awaited(action, request))
        else:
            answer = getattr(scf_client.ScfClient(*self._arguments), action)(request)
        return dict(json.loads(answer.to_json_string()))

    async def _awaited(self, action: str, request: Any) -> Any:
        async with scf_client_async.ScfClient(*self._arguments) as client:
            return await getattr(client, action)(request)
