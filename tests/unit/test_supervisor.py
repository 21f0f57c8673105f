"""The supervisor with small children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.restarts import RestartPolicy
from infra.supervisor import ChildSpec, ChildState, ChildStatus, Supervisor, exit_text, last_lines, turn_over
from schemas.errors import BrokerUnavailable, DeadlineExceeded, PlatformError

SLEEPER = "import time; time.sleep(600)"
STUBBORN = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
QUICK = RestartPolicy(first_s=0.01, limit_s=0.05)


def child(folder: Path, name: str, code: str, *args: str, **more: Any) -> ChildSpec:
    return ChildSpec(name, lambda: [sys.executable, "-S", "-c", code, *args], folder / "log" / f"{name}.log", **more)


async def until(claim: Callable[[], Any], within_s: float = 10) -> Any:
    async with asyncio.timeout(within_s):
        while not (value := claim()):
            await asyncio.sleep(0.01)
        return value


def status(supervisor: Supervisor, name: str) -> ChildStatus:
    return next(s for s in supervisor.statuses() if s.name == name)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_a_killed_child_is_started_again_and_the_change_is_told(tmp_path: Path) -> None:
    seen: list[ChildStatus] = []
    async with Supervisor(on_change=seen.append, policy=QUICK) as supervisor:
        supervisor.start(child(tmp_path, "one", SLEEPER))
        await supervisor.ready(["one"], timeout_s=10)
        first = status(supervisor, "one").pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: status(supervisor, "one").restarts == 1)
        await supervisor.ready(["one"], timeout_s=10)
        assert status(supervisor, "one").pid not in (0, first)
        (told,) = [s for s in seen if s.state is ChildState.BACKOFF]
        assert told.ended is not None
        assert (exit_text(told.ended), told.next_start_in_s) == ("signal SIGKILL", 0.01)
        last = status(supervisor, "one").pid
    assert not is_alive(last)
    assert status(supervisor, "one").state is ChildState.STOPPED


async def test_a_child_that_ends_at_once_is_tried_with_growing_waits(tmp_path: Path) -> None:
    waits: list[float] = []

    def note(s: ChildStatus) -> None:
        if s.state is ChildState.BACKOFF:
            waits.append(s.next_start_in_s)

    async with Supervisor(on_change=note, policy=QUICK) as supervisor:
        supervisor.start(child(tmp_path, "crasher", "raise SystemExit(3)"))
        await until(lambda: len(waits) >= 5)
    assert waits[:5] == [0.01, 0.02, 0.04, 0.05, 0.05]


async def test_a_stop_in_the_middle_of_a_wait_ends_at_once(tmp_path: Path) -> None:
    async with Supervisor(policy=RestartPolicy(first_s=100, limit_s=100)) as supervisor:
        supervisor.start(child(tmp_path, "crasher", "raise SystemExit(3)"))
        await until(lambda: status(supervisor, "crasher").state is ChildState.BACKOFF)
        began = time.monotonic()
    assert time.monotonic() - began < 5


async def test_exit_78_is_not_tried_again_and_ends_the_wait_for_others(tmp_path: Path) -> None:
    async with Supervisor(policy=QUICK) as supervisor:
        supervisor.start(child(tmp_path, "slow", SLEEPER, probe=_never))
        supervisor.start(child(tmp_path, "refuser", "print('no such thing'); raise SystemExit(78)"))
        with pytest.raises(PlatformError, match=r"refuser ended \(exit status 78\)"):
            await supervisor.ready(["slow", "refuser"], timeout_s=10)
        failed = await supervisor.failure()
        assert (failed.name, failed.state, failed.restarts) == ("refuser", ChildState.FAILED, 0)
        assert last_lines(failed.log) == ["no such thing"]


async def _never() -> bool:
    return False


async def test_children_are_stopped_in_order_and_equals_together(tmp_path: Path) -> None:
    order: list[str] = []

    def note(s: ChildStatus) -> None:
        if s.state is ChildState.STOPPED:
            order.append(s.name)

    async with Supervisor(on_change=note) as supervisor:
        for name, stop_order in (("kafka", 3), ("gateway", 0), ("agent", 1), ("streams", 1)):
            supervisor.start(child(tmp_path, name, SLEEPER, stop_order=stop_order))
        await supervisor.ready(["kafka", "gateway", "agent", "streams"], timeout_s=10)
    assert (order[0], set(order[1:3]), order[3]) == ("gateway", {"agent", "streams"}, "kafka")


async def test_a_child_that_ignores_sigterm_is_killed_with_its_group(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']);"
        f"print(p.pid, flush=True); {STUBBORN}"
    )
    marker = tmp_path / "deaf"
    async with Supervisor() as supervisor:
        supervisor.start(child(tmp_path, "stubborn", script, str(marker), stop_timeout_s=0.2))
        await until(marker.exists)
        pids = [status(supervisor, "stubborn").pid, int(last_lines(status(supervisor, "stubborn").log)[0])]
        began = time.monotonic()
    assert 0.2 <= time.monotonic() - began < 5
    await until(lambda: not any(map(is_alive, pids)))


async def test_hurry_kills_what_is_still_stopping(tmp_path: Path) -> None:
    marker = tmp_path / "deaf"
    supervisor = Supervisor()
    supervisor.start(child(tmp_path, "stubborn", STUBBORN, str(marker), stop_timeout_s=60))
    await until(marker.exists)
    stopping = asyncio.ensure_future(supervisor.stop())
    await asyncio.sleep(0)
    supervisor.kill()
    async with asyncio.timeout(5):
        await stopping


async def test_a_child_is_running_only_when_its_probe_says_so(tmp_path: Path) -> None:
    up = tmp_path / "up"

    async def probe() -> bool:
        if not up.exists():
            raise ConnectionRefusedError
        return True

    async with Supervisor() as supervisor:
        supervisor.start(child(tmp_path, "slow", SLEEPER, probe=probe))
        with pytest.raises(DeadlineExceeded, match="slow is starting"):
            await supervisor.ready(["slow"], timeout_s=0.3)
        up.touch()
        await supervisor.ready(["slow"], timeout_s=10)


async def test_a_start_that_is_not_ready_in_time_counts_as_ended(tmp_path: Path) -> None:
    async with Supervisor(policy=QUICK) as supervisor:
        supervisor.start(child(tmp_path, "slow", SLEEPER, probe=_never, ready_timeout_s=0.1))
        ended = await until(lambda: status(supervisor, "slow").ended)
        assert exit_text(ended) == "was not ready within 0.1 s"
        await until(lambda: status(supervisor, "slow").restarts >= 1)


async def test_a_command_that_can_not_be_had_yet_is_tried_again(tmp_path: Path) -> None:
    tries = iter([BrokerUnavailable("port is taken"), None])

    def command() -> list[str]:
        if problem := next(tries):
            raise problem
        return [sys.executable, "-S", "-c", SLEEPER]

    seen: list[ChildStatus] = []
    async with Supervisor(policy=QUICK, on_change=seen.append) as supervisor:
        supervisor.start(replace(child(tmp_path, "late", SLEEPER), command=command))
        await until(lambda: status(supervisor, "late").state is ChildState.RUNNING)
    told = next(s.ended for s in seen if s.ended)
    assert exit_text(told) == "could not be started: port is taken"


async def test_a_program_that_is_not_there_says_so_in_its_log(tmp_path: Path) -> None:
    async with Supervisor(policy=QUICK) as supervisor:
        spec = replace(child(tmp_path, "missing", SLEEPER), command=lambda: ["/no/such/program"])
        supervisor.start(spec)
        ended = await until(lambda: status(supervisor, "missing").ended)
        assert exit_text(ended) == "exit status 127"
        assert "/no/such/program: No such file" in last_lines(spec.log)[-1]


async def test_children_get_the_variables_asked_for_at_each_start(tmp_path: Path) -> None:
    numbers = iter(range(1, 100))
    code = "import os; print(os.environ['NUMBER'], flush=True); raise SystemExit(1)"
    spec = child(tmp_path, "counted", code, environ=lambda: {"NUMBER": str(next(numbers))})
    async with Supervisor(policy=QUICK) as supervisor:
        supervisor.start(spec)
        await until(lambda: status(supervisor, "counted").restarts >= 2)
    assert spec.log.read_text().split()[:2] == ["1", "2"]


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from infra.supervisor import ChildSpec, Supervisor
async def main():
    async with Supervisor() as s:
        s.start(ChildSpec("x", lambda: [sys.executable, "-S", "-c", {SLEEPER!r}], Path({str(tmp_path)!r}) / "x.log"))
        await s.ready(["x"], timeout_s=20)
        print(s.statuses()[0].pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while is_alive(pid):
        assert time.monotonic() < deadline, "the child outlived its supervisor"
        time.sleep(0.01)


def test_a_large_log_is_turned_over_and_a_small_one_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    turn_over(log, 10)
    log.write_text("0123456789")
    turn_over(log, 10)
    assert log.exists()
    log.write_text("0123456789 more\n\n")
    assert last_lines(log, 3) == ["0123456789 more"]
    turn_over(log, 10)
    assert (log.exists(), (tmp_path / "x.log.1").read_text()) == (False, "0123456789 more\n\n")
