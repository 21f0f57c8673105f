"""`penstock up` with a real broker and a real store, and stand-ins for our own processes (fabric_fakes.py)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.broker.installation import Installation

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.store,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("broker_installation"),
]

FAKES = Path(__file__).with_name("fabric_fakes.py")
PENSTOCK = Path(sys.executable).with_name("penstock")


class Up:
    """One `up` as a process."""

    def __init__(self, data_dir: Path, *flags: str, **environ: str) -> None:
        self.data_dir = data_dir
        self._log = data_dir.with_suffix(".up.log")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(FAKES), "up", "--data-dir", str(data_dir), *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environ},
                start_new_session=True,
            )

    def said(self) -> str:
        return self._log.read_text()

    def status(self) -> dict[str, Any]:
        return dict(json.loads(penstock("status", "--json", "--data-dir", str(self.data_dir)).stdout))

    def wait_ready(self) -> dict[str, Any]:
        def ready() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.said()
            status = self.status()
            return status if status["ready"] else None

        return dict(until(ready, 40, "ready"))

    def stop(self, sig: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(30)


def penstock(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PENSTOCK, *args], capture_output=True, text=True, timeout=60, check=False)


def until(claim: Callable[[], Any], within_s: float, what: str) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := claim()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
    return value


def pids(status: dict[str, Any]) -> dict[str, int]:
    return {p["name"]: p["pid"] for p in status["processes"]}


def is_back(status: dict[str, Any], name: str, old_pid: int) -> bool:
    return bool(status["ready"]) and pids(status)[name] not in (None, old_pid)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path, broker_installation: Installation) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def begin(*flags: str, behave: dict[str, str] | None = None, **environ: str) -> Up:
        data_dir = tmp_path / "data"
        data_dir.mkdir(exist_ok=True)
        (data_dir / "behave.json").write_text(json.dumps(behave or {}))
        started.append(Up(data_dir, *flags, **environ))
        return started[-1]

    yield begin
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
        up.process.wait(10)


def test_up_is_ready_says_where_it_is_and_stops_cleanly_leaving_nothing(start: Callable[..., Up]) -> None:
    up = start()
    status = up.wait_ready()
    assert list(status) == ["ready", "endpoints", "credentials_file", "data_dir", "driver", "processes", "warnings"]
    assert list(status["endpoints"]) == ["api", "bridge", "kafka", "s3", "ui", "metrics"]
    assert (status["endpoints"]["bridge"], status["endpoints"]["ui"]) == (None, None)
    assert status["endpoints"]["metrics"] == status["endpoints"]["api"] + "/metrics"
    assert [p["name"] for p in status["processes"]] == ["kafka", "objectstore", "gateway-1", "streams-1", "agent-1"]
    assert all(set(p) == {"name", "pid", "state", "restarts", "since"} for p in status["processes"])
    credentials = Path(status["credentials_file"])
    assert credentials.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(credentials.read_text())) == {"secret_id", "secret_key", "region", "appid", "uin"}
    assert json.loads(credentials.read_text())["secret_key"] not in up.said()
    began = time.monotonic()
    assert up.stop() == 0
    assert time.monotonic() - began < 10
    assert [pid for pid in pids(status).values() if is_alive(pid)] == []
    after = penstock("status", "--json", "--data-dir", str(up.data_dir))
    assert (after.returncode, json.loads(after.stdout)["ready"]) == (3, False)
    assert "penstock up" in after.stderr


def test_children_get_addresses_by_environment_and_no_secret(start: Callable[..., Up]) -> None:
    up = start("--allow-weaker-isolation")
    status = up.wait_ready()
    environ = json.loads((up.data_dir / "agent.env").read_text())
    assert environ["PENSTOCK_BOOTSTRAP_SERVERS"] == status["endpoints"]["kafka"]
    assert status["endpoints"]["s3"].endswith(":" + environ["PENSTOCK_S3_PORT"])
    assert environ["PENSTOCK_ALLOW_WEAKER_ISOLATION"] == "true"
    credentials = json.loads(Path(status["credentials_file"]).read_text())
    assert environ["PENSTOCK_APPID"] == credentials["appid"]
    assert credentials["secret_key"] not in str(environ)
    assert up.stop(signal.SIGINT) == 0


def test_a_killed_process_is_started_again_at_the_same_address_with_a_line_that_says_so(
    start: Callable[..., Up],
) -> None:
    up = start()
    before = up.wait_ready()
    for name in ("gateway-1", "kafka", "objectstore"):
        pid = pids(up.wait_ready())[name]
        os.kill(pid, signal.SIGKILL)
        until(lambda: is_back(up.status(), name, pid), 20, f"{name} is back")  # noqa: B023 - called here only
        assert f"{name} ended (signal SIGKILL)" in up.said()
        assert f"{name} runs again" in up.said()
    after = up.status()
    assert after["endpoints"] == before["endpoints"]
    assert {p["name"]: p["restarts"] for p in after["processes"]} == {
        "kafka": 1, "objectstore": 1, "gateway-1": 1, "streams-1": 0, "agent-1": 0,
    }  # fmt: skip
    assert up.stop() == 0


def test_a_killed_up_leaves_no_process_and_the_next_one_goes_on_with_the_state(start: Callable[..., Up]) -> None:
    up = start()
    before = up.wait_ready()
    keys = Path(before["credentials_file"]).read_text()
    up.stop(signal.SIGKILL)
    until(lambda: not any(map(is_alive, pids(before).values())), 5, "all children are gone")
    assert penstock("status", "--data-dir", str(up.data_dir)).returncode == 3
    again = start()
    after = again.wait_ready()
    assert after["endpoints"] == before["endpoints"]
    assert Path(after["credentials_file"]).read_text() == keys
    assert again.stop() == 0


def test_a_second_up_in_the_same_folder_is_refused_with_the_first_ones_pid(start: Callable[..., Up]) -> None:
    up = start()
    up.wait_ready()
    second = start()
    assert second.process.wait(20) == 1
    assert f"runs in {up.data_dir} already (process {up.process.pid})" in second.said()
    assert up.status()["ready"]


def test_a_taken_port_is_refused_before_anything_starts(start: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = start("--port", str(port))
        assert up.process.wait(20) == 1
    assert f"port {port} (wanted for the cloud API) is taken" in up.said()
    assert not (up.data_dir / "log").exists()


def test_a_given_port_is_used(start: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    up = start("--port", str(port))
    assert up.wait_ready()["endpoints"]["api"] == f"http://127.0.0.1:{port}"


def test_an_agent_that_refuses_stops_everything_with_its_message(start: Callable[..., Up]) -> None:
    up = start(behave={"agent": "refuse"})
    assert up.process.wait(30) == 1
    assert "agent-1 can't run: this machine can't isolate functions fully; missing: memory cgroup" in up.said()
    assert "Traceback" not in up.said()
    assert up.status()["processes"] == []


@pytest.mark.long
def test_a_process_that_dies_again_and_again_ends_the_start_with_the_end_of_its_log(start: Callable[..., Up]) -> None:
    up = start(behave={"streams": "crash"})
    assert up.process.wait(60) == 3
    assert "streams-1 ended (exit status 1)" in up.said()
    assert "it broke" in up.said()


def test_a_gateway_that_is_not_ready_shows_in_status_and_can_be_stopped(start: Callable[..., Up]) -> None:
    up = start(behave={"gateway": "unready"})
    until(
        lambda: len(up.status()["processes"]) == 5 and all(p["state"] == "running" for p in up.status()["processes"]),
        30,
        "all run",
    )
    said = penstock("status", "--data-dir", str(up.data_dir))
    assert said.returncode == 3
    assert "the gateway waits for agent" in said.stderr
    began = time.monotonic()
    assert up.stop() == 0
    assert time.monotonic() - began < 10


@pytest.mark.long
def test_processes_that_ignore_sigterm_are_killed_within_ten_seconds(start: Callable[..., Up]) -> None:
    up = start(behave={"gateway": "deaf", "streams": "deaf", "agent": "deaf"})
    status = up.wait_ready()
    began = time.monotonic()
    assert up.stop() == 0
    assert time.monotonic() - began < 10.5
    assert [pid for pid in pids(status).values() if is_alive(pid)] == []
    assert "gateway-1 did not end within 3 s and was killed" in up.said()


def test_a_second_signal_kills_at_once(start: Callable[..., Up]) -> None:
    up = start(behave={"gateway": "deaf", "streams": "deaf", "agent": "deaf"})
    up.wait_ready()
    began = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    until(lambda: "stopping" in up.said(), 5, "stopping")
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(10) == 0
    assert time.monotonic() - began < 3


def test_an_unreachable_cluster_is_said_clearly_and_nothing_is_started(start: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    up = start("--bootstrap-servers", f"127.0.0.1:{port}")
    assert up.process.wait(40) == 3
    assert f"no Kafka broker answers at 127.0.0.1:{port}: check --bootstrap-servers" in up.said()
    assert len(up.said().splitlines()) == 1, up.said()


def test_a_given_cluster_is_used_instead_of_the_embedded_broker(start: Callable[..., Up], bootstrap: str) -> None:
    up = start("--bootstrap-servers", bootstrap)
    status = up.wait_ready()
    assert [p["name"] for p in status["processes"]] == ["objectstore", "gateway-1", "streams-1", "agent-1"]
    assert status["endpoints"]["kafka"] == bootstrap
    assert up.stop() == 0


@pytest.mark.parametrize(
    ("flags", "environ", "code", "says"),
    [
        (("--driver", "microvm"), {}, 2, "the microvm driver is not built yet"),
        ((), {"PENSTOCK_PORT": "abc"}, 2, "environment variable PENSTOCK_PORT"),
        (("--bootstrap-servers", "nonsense"), {}, 2, "--bootstrap-servers: must be host:port"),
        (("--s3-endpoint", "http://127.0.0.1:1"), {}, 2, "PENSTOCK_S3_ACCESS_KEY"),
        (
            ("--s3-endpoint", "http://127.0.0.1:1"),
            {"PENSTOCK_S3_ACCESS_KEY": "someone", "PENSTOCK_S3_SECRET_KEY": "something"},
            3,
            "127.0.0.1:1",
        ),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(
    start: Callable[..., Up], flags: tuple[str, ...], environ: dict[str, str], code: int, says: str
) -> None:
    up = start(*flags, **environ)
    assert up.process.wait(40) == code, up.said()
    assert says in up.said()
    assert len(up.said().splitlines()) == 1, up.said()


def test_a_malformed_file_is_named_with_its_line(start: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "penstock.toml").write_text("zone = 'a'\nport = = 1\n")
    up = start()
    assert up.process.wait(20) == 2
    assert f"{tmp_path}/data/penstock.toml, line 2" in up.said()


def test_print_config_shows_effective_values_and_masks_secrets(start: Callable[..., Up]) -> None:
    up = start("--print-config", "--port", "7777", PENSTOCK_S3_SECRET_KEY="hush", PENSTOCK_ZONE="z9")
    assert up.process.wait(20) == 0
    assert "port = 7777" in up.said()
    assert "zone = 'z9'" in up.said()
    assert "hush" not in up.said()
