"""Parts of the command line: packages from folders, times, what `status` makes of what it sees, the lock."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from infra.app import bundle as bundles
from infra.app.bundle import bundle, check_handler
from infra.app.console import table
from infra.app.invoke import exit_status
from infra.app.state import (
    FabricFolder,
    FabricState,
    Phase,
    ProcessState,
    UpLock,
    is_alive,
    process_mark,
    read_capabilities,
    read_state,
    running_state,
    write_state,
)
from infra.app.status import Readiness, judge, why_not
from infra.app.times import iso_utc, parse_since, parse_start
from schemas.errors import BadPackage, ConfigError, UserError


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "hello"
    (folder / "lib").mkdir(parents=True)
    (folder / "index.py").write_text("def main_handler(event, context): ...\n")
    (folder / "lib" / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "lib" / "tool.sh").chmod(0o755)
    return folder


def names(data: bytes) -> list[str]:
    return zipfile.ZipFile(BytesIO(data)).namelist()


def test_the_same_files_make_the_same_package_whatever_their_times(code: Path, tmp_path: Path) -> None:
    first = bundle(code)
    for number, path in enumerate(sorted(code.rglob("*"))):
        os.utime(path, (number, number))
    copy = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", str(code), str(copy)], check=True)
    assert bundle(code) == first == bundle(copy)
    entries = {i.filename: i.external_attr >> 16 & 0o777 for i in zipfile.ZipFile(BytesIO(first)).infolist()}
    assert entries == {"index.py": 0o644, "lib/tool.sh": 0o755}


def test_what_is_left_out_is_left_out_at_any_depth(code: Path) -> None:
    for folder in (".git", "__pycache__", ".venv", "lib/__pycache__", "lib/.git"):
        (code / folder).mkdir()
        (code / folder / "x").write_text("x")
    (code / ".env").write_text("kept")
    assert names(bundle(code)) == [".env", "index.py", "lib/tool.sh"]


def test_links_inside_are_stored_as_what_they_lead_to(code: Path) -> None:
    (code / "alias.py").symlink_to("index.py")
    (code / "more").symlink_to(code / "lib")
    package = bundle(code)
    assert names(package) == ["alias.py", "index.py", "lib/tool.sh", "more/tool.sh"]
    assert zipfile.ZipFile(BytesIO(package)).read("alias.py") == (code / "index.py").read_bytes()
    assert check_handler(package, "alias.main_handler").unpacked_bytes > 0


@pytest.mark.parametrize(
    ("link", "target", "says"),
    [
        ("secret", "/etc/hostname", "leaves the folder"),
        ("up", "..", "leaves the folder"),
        ("side", "../other/x.py", "leaves the folder"),
        ("gone", "nowhere.py", "leads nowhere"),
        ("itself", "itself", "leads nowhere"),
        ("circle", ".", "circle"),
        ("lib/back", "..", "circle"),
    ],
)
def test_a_link_that_leaves_the_folder_or_leads_nowhere_is_refused_by_name(
    code: Path, link: str, target: str, says: str
) -> None:
    (code.parent / "other").mkdir()
    (code.parent / "other" / "x.py").write_text("x")
    (code / link).symlink_to(target)
    with pytest.raises(BadPackage, match=says) as refused:
        bundle(code)
    assert link in str(refused.value)


def test_what_is_no_plain_file_is_refused(code: Path) -> None:
    os.mkfifo(code / "pipe")
    with pytest.raises(BadPackage, match="pipe is no plain file"):
        bundle(code)


def test_a_name_that_a_package_can_not_have_is_refused(code: Path) -> None:
    (code / os.fsdecode(b"caf\xe9.py")).write_text("x")
    with pytest.raises(BadPackage, match="rename it"):
        bundle(code)


def test_limits_are_said_with_both_figures(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code / "random").write_bytes(os.urandom(5_000))
    monkeypatch.setattr(bundles, "PACKAGE_ZIP_BYTES", 4_000)
    with pytest.raises(BadPackage, match=r"makes a package of 5,\d\d\d bytes; the limit is 4,000"):
        bundle(code)
    monkeypatch.setattr(bundles, "PACKAGE_UNPACKED_BYTES", 4_000)
    with pytest.raises(BadPackage, match=r"more than 4,000 bytes"):
        bundle(code)
    monkeypatch.setattr(bundles, "PACKAGE_ENTRIES", 2)
    with pytest.raises(BadPackage, match="more than 2 files"):
        bundle(code)


def test_a_handler_below_the_top_is_pointed_at(code: Path) -> None:
    (code / "src").mkdir()
    (code / "index.py").rename(code / "src" / "index.py")
    with pytest.raises(BadPackage, match=r"it is at src/index\.py: deploy the folder src itself"):
        check_handler(bundle(code), "index.main_handler")
    assert check_handler(bundle(code), "src/index.main_handler").files == {"src/index.py", "lib/tool.sh"}


def test_times_as_people_write_them() -> None:
    now = 1_800_000_000_000
    assert parse_since("10m", now_ms=now) == now - 600_000
    assert parse_since("1500ms", now_ms=now) == now - 1_500
    assert parse_since("2d", now_ms=now) == now - 172_800_000
    assert parse_since("1769860800000", now_ms=now) == 1_769_860_800_000
    assert parse_since("2026-01-31T12:00:00Z", now_ms=now) == 1_769_860_800_000
    assert parse_since("2026-01-31T13:00:00.250+01:00", now_ms=now) == 1_769_860_800_250
    local = round(time.mktime((2026, 1, 31, 12, 0, 0, 0, 0, -1)) * 1000)
    assert parse_since("2026-01-31 12:00", now_ms=now) == local
    assert (parse_start("latest"), parse_start("earliest"), parse_start("7")) == ("latest", "earliest", "7")
    assert iso_utc(1_769_860_800_123) == "2026-01-31T12:00:00.123Z"
    for text in ("", "noon", "10", "2026-13-01", "1960-01-01", "9" * 16, "10 m"):
        if text != "10":
            with pytest.raises(ValueError, match=r"."):
                parse_since(text, now_ms=now)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (0, 0),
        (430, 1),
        (432, 1),
        (433, 1),
        (439, 1),
        (443, 1),
        (435, 1),
        (429, 3),
        (449, 3),
        (499, 3),
        (500, 3),
        (999, 3),
    ],
)
def test_the_exit_status_of_invoke_says_who_is_at_fault(status: int, code: int) -> None:
    assert exit_status(status) == code


ME = ProcessState("up", os.getpid(), "ready", 0, "2026-01-31T12:00:00.000Z", process_mark(os.getpid()))
GATEWAY = ProcessState("gateway-1", 17, "running", 1, "2026-01-31T12:00:00.000Z", "mark")
STATE = FabricState("/d", Phase.READY, ME, {"api": "http://h:1", "kafka": "h:2"}, "jail", (GATEWAY,), ("weak",))
FOLDER = FabricFolder(Path("/d"))
WELL = Readiness(True, {"agent": True})


def test_status_has_the_shape_that_is_promised() -> None:
    assert judge(FOLDER, STATE, frozenset({"gateway-1"}), WELL) == {
        "ready": True,
        "endpoints": {"api": "http://h:1", "bridge": None, "kafka": "h:2", "s3": None, "ui": None, "metrics": None},
        "credentials_file": "/d/credentials.json",
        "data_dir": "/d",
        "driver": "jail",
        "processes": [
            {"name": "gateway-1", "pid": 17, "state": "running", "restarts": 1, "since": "2026-01-31T12:00:00.000Z"}
        ],
        "warnings": ["weak"],
    }


@pytest.mark.parametrize(
    ("state", "alive", "readiness", "says"),
    [
        (STATE, frozenset(), WELL, "gateway-1 is backoff; logs are in /d/log"),
        (
            STATE,
            frozenset({"gateway-1"}),
            Readiness(False, {"agent": False, "tables": True}),
            "the gateway waits for agent",
        ),
        (STATE, frozenset({"gateway-1"}), Readiness(False, {}, "no answer"), "no answer"),
        (replace(STATE, phase=Phase.STARTING), frozenset({"gateway-1"}), WELL, "the fabric is starting"),
        (replace(STATE, processes=(replace(GATEWAY, state="failed"),)), frozenset(), WELL, "gateway-1 is failed"),
        (replace(STATE, processes=()), frozenset(), WELL, "not ready"),
    ],
)
def test_a_fabric_that_is_not_ready_says_why(
    state: FabricState, alive: frozenset[str], readiness: Readiness, says: str
) -> None:
    shown = judge(FOLDER, state, alive, readiness)
    assert not shown["ready"]
    assert says in why_not(state, shown["processes"], readiness)


def test_notes_of_a_fabric_survive_a_round_trip_and_count_only_while_it_lives(tmp_path: Path) -> None:
    folder = FabricFolder(tmp_path)
    assert running_state(folder) is None
    write_state(folder, STATE)
    assert read_state(folder) == STATE == running_state(folder)
    for gone in (replace(ME, mark="another boot/1"), replace(ME, pid=2**22 + 1), replace(ME, mark="")):
        write_state(folder, replace(STATE, up=gone))
        assert running_state(folder) is None
    write_state(folder, replace(STATE, phase=Phase.STOPPED))
    assert running_state(folder) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 99}', '{"version": 1, "phase": "odd"}', "\x00"])
def test_damaged_notes_count_as_none(tmp_path: Path, content: str) -> None:
    folder = FabricFolder(tmp_path)
    folder.state_file.write_text(content)
    (tmp_path / "agent").mkdir()
    folder.capabilities_file.write_text(content)
    assert read_state(folder) is None
    assert read_capabilities(folder) is None


def test_a_zombie_and_a_pid_given_to_another_are_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    mine = replace(GATEWAY, pid=child.pid, mark=process_mark(child.pid))
    assert is_alive(mine)
    assert not is_alive(replace(mine, pid=os.getpid()))
    assert child.stdin is not None
    child.stdin.close()
    deadline = time.monotonic() + 10
    while is_alive(mine):  # it ends, and is not waited for: a zombie
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait(10)


def test_one_lock_at_a_time_and_the_second_learns_the_pid(tmp_path: Path) -> None:
    first = UpLock(FabricFolder(tmp_path / "data"))
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        UpLock(FabricFolder(tmp_path / "data"))
    first.close()
    UpLock(FabricFolder(tmp_path / "data")).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--data-dir"):
        UpLock(FabricFolder(tmp_path / "file"))


def test_a_table_lines_up() -> None:
    assert (
        table(("name", "count"), [("a", 1), ("long name", 200)])
        == "name       count\na              1\nlong name    200"
    )


def test_status_answers_within_a_fifth_of_a_second_of_cpu(tmp_path: Path) -> None:
    write_state(FabricFolder(tmp_path), replace(STATE, endpoints={"api": "http://127.0.0.1:1"}))
    command = [str(Path(sys.executable).with_name("penstock")), "status", "--data-dir", str(tmp_path), "--json"]
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (done.returncode, "does not answer" in done.stderr) == (3, False), (
            done.stderr
        )  # the process is not alive
    assert min(spent) < 0.2, f"CPU seconds: {spent}"


@pytest.mark.parametrize("arguments", [["deploy", "--help"], ["version"], ["version", "--json"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("penstock")), *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.stderr, done.returncode) in ((b"", 141), (b"", 0))  # argparse itself passes over it
