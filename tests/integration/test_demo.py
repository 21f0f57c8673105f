"""`penstock demo` as people run it: alone, beside a fabric, twice at once, with its ports taken, without root. It always ends 0."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from infra.app.demo import CUSTOMERS, ORDERS
from tests.fabric import IS_ROOT, PENSTOCK, Fabric, running_fabric
from tests.remains import processes

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(150)]

# As root, in a mount namespace of our own: what hides the interpreter or the project from others (a home of mode 0700) is
# covered by a folder that shows just them; then the rest runs as a user who owns nothing, without any capability.
AS_NOBODY = """
set -e
hidden=$1 shown=$2 keep=$3; shift 3
if [ -n "$hidden" ]; then
    mount --bind "$shown" "$keep"; mount -t tmpfs -o mode=755 none "$hidden"
    mkdir -p "$shown"; mount --bind "$keep" "$shown"; umount -l "$keep"
fi
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("beside") / "data") as running:
        yield running


@pytest.fixture
def others_folder() -> Iterator[Path]:
    """A folder that others may enter (every pytest closes those above `tmp_path` to them)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def environ(folder: Path) -> dict[str, str]:
    """Temporary folders are made in `folder`, so that a test sees what is left of them."""
    return {**os.environ, "TMPDIR": str(folder)}


def assert_all_went_well(summary: dict[str, Any]) -> None:
    assert summary["ok"] is True
    assert summary["produced"] == ORDERS
    assert summary["dead_letters"] == summary["poison"] > 0
    assert summary["priced"] == ORDERS - summary["poison"]
    assert (summary["out_of_order"], summary["lag"]) == (0, 0)
    assert summary["retries"] >= 3 * summary["poison"]
    assert summary["seconds"] > 0
    assert 0 < summary["latency_p50_ms"] <= summary["latency_p99_ms"]


def test_beside_a_running_fabric_it_ends_well_touches_nothing_there_and_leaves_nothing(
    fabric: Fabric, tmp_path: Path
) -> None:
    before = fabric.status()
    ran = subprocess.run(
        [PENSTOCK, "demo", "--json"],
        capture_output=True, text=True, timeout=120, check=False,
        env={**environ(tmp_path), "PENSTOCK_DATA_DIR": str(fabric.data_dir)},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert_all_went_well(json.loads(ran.stdout))
    assert fabric.status() == before
    assert fabric.ok("trigger", "list", "--json").json == []
    assert list(tmp_path.iterdir()) == []
    assert processes(tmp_path) == []


def test_in_the_folder_of_a_running_fabric_it_refuses(fabric: Fabric) -> None:
    ran = fabric.penstock("demo", "--data-dir", str(fabric.data_dir))
    assert (ran.code, ran.out) == (1, "")
    assert "leave --data-dir out" in ran.err
    assert fabric.ok("trigger", "list", "--json").json == []


def test_two_at_once_one_on_a_terminal_both_show_the_flow_and_end_well(tmp_path: Path) -> None:
    plain = subprocess.Popen([PENSTOCK, "demo"], stdout=subprocess.PIPE, text=True, env=environ(tmp_path))
    master, terminal = pty.openpty()
    shown = subprocess.Popen([PENSTOCK, "demo"], stdout=terminal, env={**environ(tmp_path), "COLUMNS": "150"})
    os.close(terminal)
    seen = b""
    with suppress(OSError):  # EIO: the last writer has gone
        while chunk := os.read(master, 65_536):
            seen += chunk
    os.close(master)
    said, _ = plain.communicate(timeout=120)
    assert (shown.wait(30), plain.returncode) == (0, 0), said
    for text in (said, seen.decode()):
        assert "Ready. Kafka listens on 127.0.0.1:" in text
        assert "$ penstock trigger create price-orders --type ckafka --topic orders" in text
        assert f"{ORDERS} orders in " in text
        assert f"Order per customer: kept for all {CUSTOMERS} customers" in text
    lines = [line for line in said.splitlines() if line.startswith("produced ")]
    assert len(lines) >= 3, "the flow was not shown while it went"
    assert all(word in lines[-1] for word in ("priced", "tries again", "dead letters", "lag", "p99"))
    assert "customer (key)" in seen.decode()
    assert all(f"customer-{number:02}" in seen.decode() for number in range(CUSTOMERS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_second_run_in_one_folder_with_the_first_ones_ports_taken_ends_well(tmp_path: Path) -> None:
    folder = tmp_path / "kept"

    def run() -> dict[str, Any]:
        ran = subprocess.run(
            [PENSTOCK, "demo", "--json", "--data-dir", str(folder)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return dict(json.loads(ran.stdout))

    assert_all_went_well(run())
    first = ports(folder)
    with ExitStack() as taken:
        for port in first:
            taken.enter_context(socket.create_server(("127.0.0.1", port)))
        assert_all_went_well(run())
    assert not set(first) & set(ports(folder))


def ports(folder: Path) -> list[int]:
    """Where the fabric in the folder listened."""
    endpoints = json.loads((folder / "fabric.json").read_text())["endpoints"]
    found = [urlsplit(u if "://" in u else f"//{u}").port for u in (endpoints[n] for n in ("api", "kafka", "s3"))]
    return [port for port in found if port is not None]


@pytest.mark.long
@pytest.mark.skipif(
    not IS_ROOT or not shutil.which("setpriv") or not shutil.which("unshare"), reason="needs root to be someone else"
)
def test_without_root_it_says_which_isolation_is_missing_and_ends_well(others_folder: Path) -> None:
    keep, home = others_folder / "keep", others_folder / "home"
    keep.mkdir()
    home.mkdir()
    home.chmod(0o777)
    hidden, shown = what_hides(Path(os.path.realpath(sys.executable)))
    ran = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", AS_NOBODY, "as-nobody"),
            *(hidden, shown, str(keep), PENSTOCK, "demo"),
        ],
        capture_output=True, text=True, timeout=140, check=False, cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    first = ran.stdout.splitlines()[:3]
    assert any(line.startswith("! functions are isolated less") and "memory cgroup" in line for line in first), first
    assert f"Order per customer: kept for all {CUSTOMERS} customers" in ran.stdout
    assert list(home.iterdir()) == []


def what_hides(program: Path) -> tuple[str, str]:
    """The topmost folder above a program that others may not enter, and what of it is to be shown; empty texts when none is."""
    for parent in reversed(program.parents):
        if not parent.stat().st_mode & 0o001:
            return str(parent), str(parent / program.relative_to(parent).parts[0])
    return "", ""
