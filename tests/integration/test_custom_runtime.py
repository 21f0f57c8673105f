"""Custom runtimes on the real jail: what a bootstrap is given, what its callers get, and what it can't do."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.frames import WANT_LOG_TAIL, Result, Spec
from tests.agent_client import Running, running_agent, until
from tests.custom_runtimes import ECHO, SCF, bootstrap

pytestmark = [pytest.mark.jail, pytest.mark.timeout(120)]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_agent(tmp_path) as made:
        yield made


def custom(running: Running, code: str | bytes, **fields: Any) -> Spec:
    """A function version of Runtime CustomRuntime whose package has this bootstrap."""
    digest = running.store.add_zip(bootstrap(code))
    return dataclasses.replace(running.spec(""), runtime="CustomRuntime", code_sha256=digest, **fields)


def error(result: Result) -> str:
    said = json.loads(result.body)
    assert said["statusCode"] == result.status
    return str(said["errorMessage"])


async def test_a_bootstrap_gets_events_headers_and_scfs_environment_in_one_process(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "names = ['GREETING', '_HANDLER', 'SCF_FUNCTIONNAME', 'SCF_NAMESPACE', 'SCF_RUNTIME', 'USER_CODE_ROOT', 'SCF_RUNTIME_API']\n"
        "loop(lambda event, headers: [event, [os.environ[n] for n in names], os.getcwd(), os.getpid(), headers['request_id'],\n"
        "     headers['memory_limit_in_mb'], headers['time_limit_in_ms']])\n"
    )
    spec = custom(running, code, environment={"GREETING": "hello"}, handler="main.go")
    said = await gateway.value({"a": [1, "ü"]}, spec)
    again = await gateway.value({}, spec)
    assert said[0] == {"a": [1, "ü"]}
    assert said[1] == ["hello", "main.go", "f", "default", "CustomRuntime", "/var/user/", "127.0.0.1"]
    assert said[2] == "/var/user"
    assert (said[5], said[6]) == ("128", "5000")
    assert again[3] == said[3]
    assert again[4] != said[4]
