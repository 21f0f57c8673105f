"""The command line's way to the cloud API: signed (TC3) JSON calls over one HTTP request each, standard library only.

A call that could not be sent, because the gateway is being started again, is sent again for some seconds. One whose answer was
lost is sent again only when it changes nothing (`Get…`, `List…`).
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from infra import clock
from infra.app.state import FabricFolder, Phase, running_state
from infra.credentials import Credentials, credentials
from schemas import tc3
from schemas.errors import ApiUnavailable, BadRequest, PlatformError

VERSION: Final = "2018-04-16"
_TIMEOUT_S: Final = 30.0
_PATIENCE_S: Final = 15.0
_PAUSE_S: Final = 0.1


class Client:
    """Calls of one tenant.

    Args:
        api: `http://host:port`.
        keys: who calls.
        is_running: asked while the API does not answer; False ends the patience at once.
        patience_s: how long to wait for an API that does not answer; by default 15 s.
    """

    def __init__(
        self,
        api: str,
        keys: Credentials,
        *,
        is_running: Callable[[], bool] = lambda: True,
        patience_s: float | None = None,
    ) -> None:
        self._api, self._keys = api, keys
        self._host = urlsplit(api).netloc
        self._is_running = is_running
        self._patience_s = _PATIENCE_S if patience_s is None else patience_s

    def call(self, action: str, fields: Mapping[str, Any], *, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """The fields of the answer.

        Args:
            action: e.g. `GetFunction`.
            fields: its request; None values are left out.
            timeout_s: for one answer.

        Raises:
            BadRequest: the API refused; has its code and message.
            ApiUnavailable: no answer.
            PlatformError: an answer that makes no sense.
        """
        body = json.dumps({k: v for k, v in fields.items() if v is not None}).encode()
        deadline_s = clock.mono_s() + self._patience_s
        while True:
            connection = http.client.HTTPConnection(self._host, timeout=timeout_s)
            sent = False
            try:
                connection.connect()
                sent = True
                return _fields(self._exchange(connection, action, body))
            except (OSError, http.client.HTTPException) as exc:
                lost = sent and not action.startswith(("Get", "List"))
                if lost or isinstance(exc, TimeoutError) or clock.mono_s() >= deadline_s or not self._is_running():
                    raise self._unavailable(action, exc, sent=sent) from exc
            finally:
                connection.close()
            time.sleep(_PAUSE_S)

    def _exchange(self, connection: http.client.HTTPConnection, action: str, body: bytes) -> bytes:
        headers = tc3.signed_post(
            secret_id=self._keys.secret_id,
            secret_key=self._keys.secret_key,
            host=self._host,
            action=action,
            version=VERSION,
            body=body,
            timestamp_s=clock.unix_ms() // 1000,
            region=self._keys.region,
        )
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise PlatformError(f"{self._api} is not Penstock's cloud API: it answers HTTP {answer.status}")
        return answer.read()

    def _unavailable(self, action: str, exc: BaseException, *, sent: bool) -> ApiUnavailable:
        if sent:
            return ApiUnavailable(
                f"the answer to {action} was lost ({str(exc) or type(exc).__name__}), so it is not known whether it took effect;"
                " see `penstock status`, then look and try again"
            )
        return ApiUnavailable(f"the cloud API at {self._api} does not answer ({exc}): see `penstock status`")


def _fields(answer: bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(answer)["Response"]
        error = fields.get("Error")
        if error is not None:
            raise BadRequest(str(error["Code"]), str(error["Message"]))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise PlatformError(f"the answer is none of the cloud API: {answer[:200]!r}") from exc
    return fields


def connect(folder: FabricFolder) -> Client:
    """A client of the fabric that runs in this folder.

    Raises:
        ApiUnavailable: none runs there, or it is not far enough yet.
        ConfigError: its credentials can't be read.
    """
    state = running_state(folder)
    if state is None:
        raise ApiUnavailable(
            f"no fabric runs in {folder.path}: start it with `penstock up`, or name another folder with --data-dir"
        )
    api = state.endpoints.get("api")
    if api is None or state.phase is Phase.STOPPING:
        raise ApiUnavailable(
            f"the fabric in {folder.path} is {state.phase}; try again when `penstock status` says ready"
        )
    return Client(api, credentials(folder.path), is_running=lambda: _still_serves(folder))


def _still_serves(folder: FabricFolder) -> bool:
    state = running_state(folder)
    return state is not None and state.phase is not Phase.STOPPING
