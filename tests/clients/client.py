"""What every client of the cloud API does here: call an action with fields, give the answer's fields, or raise the refusal."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException

from tests.fabric import Fabric, until

CODE = """
import json, os

def main_handler(event, context):
    print("{word}", json.dumps(event))
    if event == "boom":
        raise ValueError("boom")
    return {{"word": "{word}", "event": event, "colour": os.environ.get("COLOUR"), "limit_ms": context["time_limit_in_ms"]}}
"""


@dataclass(frozen=True)
class Access:
    """All that a client is given: where the API listens (`host:port`), keys, and the region they belong to."""

    host: str
    secret_id: str
    secret_key: str
    region: str

    @staticmethod
    def of(fabric: Fabric) -> Access:
        """The keys that `penstock up` made."""
        status = fabric.status()
        with open(status["credentials_file"]) as file:
            keys = json.load(file)
        host = urlsplit(status["endpoints"]["api"]).netloc
        return Access(host, keys["secret_id"], keys["secret_key"], keys["region"])


class Client(ABC):
    """`call("GetFunction", FunctionName="f")` gives the answer's fields."""

    @abstractmethod
    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        """The answer's fields; what the client raises as its own error is raised as TencentCloudSDKException."""

    def code(self, action: str, **fields: Any) -> str:
        """The code of the error that the call ends with."""
        with pytest.raises(TencentCloudSDKException) as caught:
            self.call(action, **fields)
        assert caught.value.get_request_id()
        assert caught.value.get_message()
        return str(caught.value.get_code())

    def settled(self, name: str) -> dict[str, Any]:
        """GetFunction's answer when nothing is under way with the function."""
        asked: list[dict[str, Any]] = []

        def quiet() -> dict[str, Any] | None:
            asked.append(self.call("GetFunction", FunctionName=name))
            return asked[-1] if not asked[-1]["Status"].endswith("ing") else None

        return dict(until(quiet, within_s=20, what=f"{name} settled"))

    def invoke(self, name: str, event: Any, **fields: Any) -> dict[str, Any]:
        return dict(self.call("Invoke", FunctionName=name, ClientContext=json.dumps(event), **fields)["Result"])

    def gone(self, name: str) -> bool:
        """Whether the function is there no longer."""
        try:
            self.call("GetFunction", FunctionName=name)
        except TencentCloudSDKException as exc:
            return str(exc.get_code()) == "ResourceNotFound.FunctionName"
        return False


def zip_of(word: str, code: str | None = None) -> str:
    """A base64 package of the function that says `word`, or of other code."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("index.py", CODE.format(word=word) if code is None else code)
    return base64.b64encode(data.getvalue()).decode()
