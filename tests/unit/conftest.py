"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.api_fakes import FakeFabric, served
from tests.cli_desk import Desk, settle


@pytest.fixture
def make_desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("infra.app.client._PATIENCE_S", 0.3)

    @asynccontextmanager
    async def make(**wishes: Any) -> AsyncIterator[Desk]:
        fabric = FakeFabric(**wishes)
        async with served(fabric) as door:
            settle(tmp_path / "data", f"http://127.0.0.1:{door.port}")
            with structlog.testing.capture_logs():  # the gateway's own log is another process's
                yield Desk(fabric, tmp_path, capsys)

    return make
