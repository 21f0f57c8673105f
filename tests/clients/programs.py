"""Clients that are programs of their own: `tccli`, started for each call, and the drivers of Node's and Go's SDK, which take calls by lines.

What `tests/clients/install` made of each is found here, or the test skips with the reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException

from infra.broker.installation import build_folder
from tests.clients.client import Access, Client

HERE = Path(__file__).parent
_SOURCES = {
    "tccli": [HERE.parent.parent / "requirements" / "tccli.txt"],
    "node": [HERE / "node" / "package-lock.json"],
    "go": [HERE / "go" / "main.go", HERE / "go" / "go.sum"],
}
_TOLD = re.compile(r"\[TencentCloudSDKException\] code:(\S+) message:(.*) requestId:(\S+)\s*$", re.DOTALL)


def installed(name: str) -> Path:
    """The folder of a client; the test skips when it is not there or older than what it is made of."""
    folder = build_folder() / "clients" / name
    if name == "node" and shutil.which("node") is None:
        pytest.skip("no node on PATH; with it, `make clients` makes the Node SDK's client")
    stamp = folder / "ready"
    if not stamp.exists() or any(source.stat().st_mtime > stamp.stat().st_mtime for source in _SOURCES[name]):
        pytest.skip(f"the {name} client is not made, or older than its source: run `make clients`")
    return folder


def _environ(access: Access, home: Path) -> dict[str, str]:
    """The environment of a user who has set keys and region, and nothing else."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {
        **kept, "HOME": str(home), "TENCENTCLOUD_SECRET_ID": access.secret_id,
        "TENCENTCLOUD_SECRET_KEY": access.secret_key, "TENCENTCLOUD_REGION": access.region,
    }  # fmt: skip


class Tccli(Client):
    """The command line: `tccli scf ACTION --FIELD VALUE ...`."""

    def __init__(self, access: Access, home: Path) -> None:
        self._program = str(installed("tccli") / "bin" / "tccli")
        self._host = access.host
        self._environ = _environ(access, home)

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        given = [f"--{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in fields.items()]
        ran = subprocess.run(
            [self._program, "scf", action, "--endpoint", f"http://{self._host}", *given],
            env=self._environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if ran.returncode == 0:
            return dict(json.loads(ran.stdout))
        told = _TOLD.search(ran.stderr)
        assert told, f"tccli {action} ended with {ran.returncode}: {ran.stdout}{ran.stderr}"
        raise TencentCloudSDKException(*told.groups())


class Driver(Client):
    """Node's or Go's SDK in a driver that makes one client and takes calls by lines of JSON.

    `http_method` and `sign_method` are left to the SDK's own choice (POST, TC3-HMAC-SHA256) when they are empty.
    """

    def __init__(self, access: Access, home: Path, name: str, *, http_method: str = "", sign_method: str = "") -> None:
        folder = installed(name)
        chosen = {"CLIENT_HTTP_METHOD": http_method, "CLIENT_SIGN_METHOD": sign_method}
        command = [str(folder / "driver")] if name == "go" else ["node", str(HERE / "node" / "driver.js")]
        self._ended = home / f"{name}.stderr"
        with self._ended.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
                env=_environ(access, home) | {"CLIENT_HOST": access.host, "NODE_PATH": str(folder / "node_modules")}
                | {key: value for key, value in chosen.items() if value},
            )  # fmt: skip

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            if kind is not None:
                process.kill()

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"action": action, "fields": fields}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the driver ended at {action}: {self._ended.read_text()}"
        outcome = json.loads(line)
        if "error" in outcome:
            error = outcome["error"]
            raise TencentCloudSDKException(error["code"], error["message"], error["requestId"])
        return dict(outcome["answer"])
