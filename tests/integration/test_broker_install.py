"""Set-up of the broker for real: made from nothing, mended when damaged, safe to run twice at a time. Needs a network."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.broker import archive, installation, jars
from infra.broker.kafka import serving_broker

pytestmark = [pytest.mark.kafka, pytest.mark.long, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "infra.broker.install"]


def environment(build: Path) -> dict[str, str]:
    return {**os.environ, "PENSTOCK_BUILD_DIR": str(build)}


def set_up(build: Path) -> str:
    run = subprocess.run(COMMAND, env=environment(build), capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder that two set-ups made at the same time, from nothing."""
    folder = tmp_path_factory.mktemp("build")
    both = [subprocess.Popen(COMMAND, env=environment(folder), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("getting 45 of" in text for text in said) == 1, said
    return folder


def test_two_set_ups_from_nothing_make_one_whole_installation(build: Path, tmp_path: Path) -> None:
    made = installation.load(build)
    assert jars.missing(jars.read_lock(), made.folder / "libs") == []
    assert archive.is_usable(made)
    with serving_broker(tmp_path, installation=made) as running:
        running.broker.probe(5.0)
    assert not [entry.name for entry in made.folder.iterdir() if entry.name.startswith(("incoming", "train", "format"))]


def test_a_second_set_up_has_nothing_to_do(build: Path) -> None:
    before = installation.load(build)
    started = time.monotonic()
    assert "getting" not in set_up(build)
    assert time.monotonic() - started < 20
    assert installation.load(build).archive == before.archive


def test_a_damaged_jar_is_fetched_again_and_the_archive_made_anew(build: Path) -> None:
    before = installation.load(build)
    victim = before.jars[7]
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    said = set_up(build)
    assert "getting 1 of Kafka" in said and "getting start-up archive" in said
    after = installation.load(build)
    assert jars.missing(jars.read_lock(), after.folder / "libs") == []
    assert archive.is_usable(after)
    assert not before.archive.exists() or before.archive == after.archive


def test_a_damaged_archive_is_made_anew(build: Path) -> None:
    path = installation.load(build).archive
    path.chmod(0o600)
    path.write_bytes(b"not an archive")
    assert "getting start-up archive" in set_up(build)
    assert archive.is_usable(installation.load(build))


def test_a_broker_starts_with_a_damaged_archive_and_with_none(build: Path, tmp_path: Path) -> None:
    made = installation.load(build)
    whole = made.archive.read_bytes()
    made.archive.chmod(0o600)
    made.archive.write_bytes(b"not an archive")
    with serving_broker(tmp_path, installation=made, warm=False):
        pass
    made.archive.unlink()
    with serving_broker(tmp_path, installation=made, warm=False):
        pass
    made.archive.write_bytes(whole)
