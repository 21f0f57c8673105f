"""The command line over the API in memory: a user's desk."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.app import cli
from infra.app.state import FabricFolder, FabricState, Phase, ProcessState, process_mark, write_state
from tests.api_fakes import APPID, SECRET_ID, SECRET_KEY, UIN, FakeFabric

GOOD = "def main_handler(event, context):\n    return event\n"


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Desk:
    """A user's desk: a data folder that knows the served API, and a folder of code."""

    def __init__(self, fabric: FakeFabric, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fabric, self.folder, self._capsys = fabric, folder, capsys
        self.code = folder / "hello"
        self.code.mkdir()
        (self.code / "index.py").write_text(GOOD)

    async def run(self, *arguments: str) -> Ran:
        self._capsys.readouterr()
        data_dir = ["--data-dir", str(self.folder / "data")]
        code = await asyncio.to_thread(self._run, [*data_dir, *arguments])
        said = self._capsys.readouterr()
        assert "Traceback (most" not in said.err
        return Ran(code, said.out, said.err)

    @staticmethod
    def _run(arguments: list[str]) -> int:
        try:
            return cli.run(arguments)
        except SystemExit as ended:  # argparse: help and usage
            return int(ended.code or 0)

    async def deploy(self, *flags: str, name: str = "hello") -> Ran:
        return await self.run("deploy", str(self.code), "--name", name, "--handler", "index.main_handler", *flags)


def settle(folder: Path, api: str, *, phase: Phase = Phase.READY, key: str = SECRET_KEY) -> None:
    """Make the folder look like one in which this very process is `up`."""
    folder.mkdir(exist_ok=True)
    credentials = {"secret_id": SECRET_ID, "secret_key": key, "region": "ap-guangzhou", "appid": APPID, "uin": UIN}
    (folder / "credentials.json").write_text(json.dumps(credentials))
    me = ProcessState("up", os.getpid(), "ready", 0, "", process_mark(os.getpid()))
    write_state(FabricFolder(folder), FabricState(str(folder), phase, me, {"api": api}))
