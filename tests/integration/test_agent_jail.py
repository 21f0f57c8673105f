"""The host agent on the real jail: what a gateway gets for what functions do."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.agent.host import HostLimits
from schemas.frames import WANT_LOG_TAIL, Flow, Result
from schemas.records import FunctionConfig, StepCommand
from tests.agent_client import FolderStore, Gateway, Running, below, running_agent, until
from tests.packages import zipped

pytestmark = [pytest.mark.jail, pytest.mark.timeout(120)]

ECHO = "def main_handler(event, context):\n    return event\n"
SLEEPS = """
import time

def main_handler(event, context):
    began = time.monotonic_ns()
    time.sleep(event)
    return [began, time.monotonic_ns()]
"""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_agent(tmp_path) as made:
        yield made


def error(result: Result) -> str:
    said = json.loads(result.body)
    assert said["statusCode"] == result.status
    return str(said["errorMessage"])


async def test_a_function_gets_its_event_and_scfs_context_and_environment(running: Running) -> None:
    gateway = await running.gateway()
    spec = running.spec(
        "import os\n"
        "def main_handler(event, context):\n"
        "    return [event, context, os.environ['GREETING'], os.environ['SCF_NAMESPACE'], os.getcwd()]\n",
        environment={"GREETING": "hello"},
    )
    cold = await gateway.call({"a": [1, "ü"]}, spec)
    event, context, greeting, namespace, folder = json.loads(cold.body)
    assert (event, greeting, namespace, folder) == ({"a": [1, "ü"]}, "hello", "default", "/var/user")
    assert context["function_name"] == "f"
    assert (context["memory_limit_in_mb"], context["time_limit_in_ms"]) == (128, 5000)
    warm = await gateway.call({}, spec)
    assert (cold.level, warm.level) == (5, 0)
    assert cold.wait_us > warm.wait_us
    assert 1_000 < warm.memory_kib < 128 * 1024


async def test_32_callers_of_a_50_ms_handler_run_side_by_side(running: Running) -> None:
    gateway = await running.gateway()
    spec = running.spec(SLEEPS)
    spans: list[list[int]] = []

    async def caller() -> None:
        spans.extend([await gateway.value(0.05, spec) for _ in range(8)])

    await asyncio.gather(*(caller() for _ in range(32)))
    most = max(sum(b <= began < e for b, e in spans) for began, _ in spans)
    assert most >= 28
    assert running.agent.host.facts()["workers"] <= 32


async def test_a_large_event_and_reply_come_through_and_one_too_large_is_407(running: Running) -> None:
    gateway = await running.gateway()
    spec = running.spec(
        "def main_handler(event, context):\n    return event if isinstance(event, str) else 'x' * event\n"
    )
    text = "y" * 5_000_000
    assert await gateway.value(text, spec) == text
    assert (await gateway.call(7_000_000, spec)).status == 407
    assert await gateway.value(3, spec) == "xxx"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("def main_handler(e, c):\n    raise ValueError('boom')\n", 430, "user code exception caught"),
        ("import time\ndef main_handler(e, c):\n    time.sleep(30)\n", 433, "time limit of 1 s"),
        ("def main_handler(e, c):\n    while True: pass\n", 433, "time limit of 1 s"),
        ("def main_handler(e, c):\n    return len(bytearray(400 << 20))\n", 434, "more memory than its 128 MB"),
        ("import os\ndef main_handler(e, c):\n    os._exit(3)\n", 439, "exited with code 3"),
        ("import ctypes\ndef main_handler(e, c):\n    ctypes.string_at(0)\n", 439, "ended by signal 11"),
        ("import os\ndef main_handler(e, c):\n    os.close(3)\n    while True: pass\n", 439, "connection"),
        ("def other(e, c):\n    pass\n", 437, "no function main_handler"),
        ("def main_handler(e, c)\n    pass\n", 443, "SyntaxError"),
        ("raise RuntimeError('at import')\n", 443, "at import"),
        ("import os\nos._exit(4)\n", 439, "exited with code 4 while it was loaded"),
        ("x = bytearray(400 << 20)\n", 434, "while it was loaded"),
        ("import time\ntime.sleep(30)\n", 450, "not loaded within 1 s"),
    ],
)
async def test_each_way_to_fail_has_its_status_and_the_neighbour_keeps_working(
    running: Running, code: str, status: int, words: str
) -> None:
    gateway = await running.gateway()
    spec = running.spec(code, timeout_s=1, init_timeout_s=1)
    neighbour = running.spec(ECHO, function="neighbour")
    assert await gateway.value(1, neighbour) == 1
    result, beside = await asyncio.gather(gateway.call({}, spec), gateway.call(2, neighbour))
    assert result.status == status
    assert words in error(result)
    assert beside.body == b"2"
    assert await gateway.value(3, neighbour) == 3
    await until(lambda: all(w.usable for p in running.agent.host.pools.values() for w in p.all))


async def test_a_package_of_many_files_starts_several_workers_at_once_and_holds_nobody_up(running: Running) -> None:
    gateway = await running.gateway()
    many = zipped(("index.py", SLEEPS.encode()), *((f"data/{i}.txt", b"x") for i in range(5_000)))
    neighbour = running.spec(ECHO, function="neighbour")
    spec = dataclasses.replace(neighbour, function="many", code_sha256=running.store.add_zip(many))
    assert await gateway.value(1, neighbour) == 1
    answers = [gateway.send(0.3, spec) for _ in range(4)]
    assert await gateway.value(2, neighbour) == 2
    assert not any(a.done() for a in answers)
    assert [r.status for r in await asyncio.gather(*answers)] == [200] * 4


async def test_after_a_death_the_function_serves_again(running: Running) -> None:
    gateway = await running.gateway()
    spec = running.spec("import os\ndef main_handler(e, c):\n    return os._exit(1) if e == 'die' else e\n")
    for _ in range(3):
        assert (await gateway.call("die", spec)).status == 439
        assert await gateway.value("live", spec) == "live"


async def test_the_log_has_the_frame_the_lines_of_both_streams_and_native_output(running: Running) -> None:
    gateway = await running.gateway()
    spec = running.spec(
        "import os, sys\n"
        "print('importing')\n"
        "def main_handler(event, context):\n"
        "    print('out'); print('err', file=sys.stderr); os.write(1, b'native\\n'); os.system('echo child')\n"
        "    return 1\n"
    )
    result = await gateway.call({}, spec, flags=WANT_LOG_TAIL)
    lines = await running.lines(result.corr, 8)
    assert lines[0][1].startswith("START")
    assert sorted(lines[1:-2]) == sorted(
        [("stdout", "importing"), ("stdout", "out"), ("stderr", "err"), ("stdout", "native"), ("stdout", "child")]
    )
    assert [text.split()[0] for _, text in lines[-2:]] == ["END", "REPORT"]
    assert result.tail.decode().splitlines() == [text for _, text in lines]


async def test_a_failures_traceback_and_error_stand_in_the_log(running: Running) -> None:
    gateway = await running.gateway()
    failed = await gateway.call({}, running.spec("def main_handler(e, c):\n    raise ValueError('boom')\n"))
    broken = await gateway.call({}, running.spec("import nothing_of_this_name\n"))
    assert any("boom" in text for _, text in await running.lines(failed.corr, 4))
    assert any("nothing_of_this_name" in text for _, text in await running.lines(broken.corr, 4))


async def test_a_running_call_is_cancelled_by_its_workers_death(running: Running) -> None:
    gateway = await running.gateway()
    spec = running.spec(SLEEPS, timeout_s=60)
    await gateway.call(0, spec)
    answer = gateway.send(30, spec)
    await until(lambda: any(p.busy for p in running.agent.host.pools.values()))
    [worker] = [w.driver.pid for p in running.agent.host.pools.values() for w in p.all]
    assert worker in below(os.getpid())
    gateway.cancel(answer)
    assert (await answer).status == 499
    assert running.agent.host.facts()["workers"] == 0
    assert worker not in below(os.getpid())


async def test_an_orphan_is_dead_before_its_successor_begins_and_neighbours_are_untouched(running: Running) -> None:
    """The orphan says each 2 ms that it lives; on the monotonic clock all of it lies before the successor's begin."""
    code = """
import time

def main_handler(event, context):
    began = time.monotonic_ns()
    while event and time.monotonic_ns() < began + event * 1e9:
        print(time.monotonic_ns(), flush=True)
        time.sleep(0.002)
    return began
"""
    old, new = await running.gateway(), await running.gateway()
    spec = running.spec(code, timeout_s=20)
    orphan = old.send(5, spec, flow=Flow("t", 0, 1))
    neighbour = old.send(1, spec, flow=Flow("t", 1, 1))
    await until(lambda: sum(len(p.busy) for p in running.agent.host.pools.values()) == 2)
    await until(lambda: len(running.topics.lines) > 20)
    successor = await new.call(0, spec, flow=Flow("t", 0, 2))
    ended = await orphan
    assert (ended.status, successor.status, (await neighbour).status) == (499, 200, 200)
    said = await running.lines(ended.corr, 5)
    alive_ns = [int(text) for stream, text in said if stream == "stdout"]
    assert alive_ns
    assert max(alive_ns) < json.loads(successor.body)
    late = await old.call(0, spec, flow=Flow("t", 0, 1))
    assert late.status == 499


async def test_an_orphan_whose_gateway_is_gone_ends_when_the_partition_is_owned_again(running: Running) -> None:
    old, new = await running.gateway(), await running.gateway()
    spec = running.spec(SLEEPS, timeout_s=60)
    old.send(50, spec, flow=Flow("t", 0, 1))
    await until(lambda: any(p.busy for p in running.agent.host.pools.values()))
    (worker,) = next(iter(running.agent.host.pools.values())).busy
    old.close()
    result = await new.call(0, spec, flow=Flow("t", 0, 2))
    assert result.status == 200
    assert worker.ended is not None


async def test_new_code_takes_over_and_the_old_workers_finish_first(tmp_path: Path) -> None:
    async with running_agent(tmp_path, limits=HostLimits(superseded_s=0.2)) as running:
        gateway = await running.gateway()
        old, new = running.spec(SLEEPS), running.spec("def main_handler(e, c):\n    return 'new'\n")
        slow = gateway.send(1, old)
        await until(lambda: any(p.busy for p in running.agent.host.pools.values()))
        assert await gateway.value(0, new) == "new"
        assert (await slow).status == 200
        await until(lambda: running.agent.host.facts()["workers"] == 1)
        assert await gateway.value(0, new) == "new"


async def test_the_code_module_says_why_a_package_can_not_run(running: Running) -> None:
    def step(code_sha256: str, handler: str = "index.main_handler") -> StepCommand:
        config = FunctionConfig("$LATEST", code_sha256, 1, handler, "Python3.10", 128, 3, 65)
        return StepCommand("s", "g", "code", "check", "1250000000/default/f", 0, config)

    store, handle = running.store, running.agent.modules["code"]
    ran = "import os\nos.write(1, b'user code ran')\nopen('/tmp/ran', 'w')\n" + ECHO
    assert await handle(step(store.add(ran))) == ()
    assert await handle(step(store.add(ran))) == ()
    cases = [
        (step(store.add("def other(e, c): pass\n")), "main_handler"),
        (step(store.add("def main_handler(e, c)\n")), "index.py, line 1"),
        (step(store.add(ECHO), "missing.main_handler"), "missing.py"),
        (step(store.add_zip(zipped(("../index.py", b"")))), "leads out of the package"),
        (step(store.add_zip(b"no zip")), "not a zip"),
        (step("ab" * 32), "not in the object store"),
        (dataclasses.replace(step("ab" * 32), config=None), "no configuration"),
    ]
    for command, words in cases:
        (reason,) = await handle(command)
        assert words in reason.message, reason
    assert running.agent.host.facts()["workers"] == 0


async def test_the_agent_announces_itself_and_says_goodbye(tmp_path: Path) -> None:
    async with running_agent(tmp_path) as running:
        await until(lambda: running.topics.members)
        member = running.topics.members[0]
        assert member is not None
        assert (member.kind, member.member_id, member.address) == ("agent", "agent-1", running.agent.address)
        assert json.loads(member.detail)["driver"] == "jail"
    assert running.topics.members[-1] is None


async def test_when_it_stops_running_calls_may_end_and_nothing_is_left(tmp_path: Path) -> None:
    async with running_agent(tmp_path) as running:
        gateway = await running.gateway()
        spec = running.spec(SLEEPS, timeout_s=60)
        ends, hangs = gateway.send(0.5, spec), gateway.send(50, spec)
        await until(lambda: sum(len(p.busy) for p in running.agent.host.pools.values()) == 2)
    assert ((await ends).status, (await hangs).status) == (200, 500)
    assert below(os.getpid()) == []


@pytest.mark.chaos
async def test_a_killed_agent_takes_its_workers_along_and_its_successor_serves(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "packages")
    spec = Running(None, store, None, tmp_path, []).spec(SLEEPS, timeout_s=60)  # type: ignore[arg-type]
    for round_number in range(2):
        address = f"unix:@penstock-kill-{os.getpid()}-{round_number}"
        command = [sys.executable, "-m", "tests.agent_client", address, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
            assert agent.stdout is not None
            assert await asyncio.to_thread(agent.stdout.readline) == "up\n"
            gateway = Gateway()
            await gateway.open(address)
            assert (await gateway.call(0, spec)).status == 200
            for _ in range(3):
                gateway.send(50, spec)
            processes = await until(lambda agent=agent: len(p := below(agent.pid)) >= 5 and p)  # type: ignore[misc]
            agent.send_signal(signal.SIGKILL)
            await asyncio.to_thread(agent.wait)
            await until(lambda processes=processes: not any(_lives(p) for p in processes))  # type: ignore[misc]
            gateway.close()
    mounts = Path("/proc/self/mounts").read_text()
    assert str(tmp_path) not in mounts


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
