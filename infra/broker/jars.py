"""Kafka's jars: a lock of coordinates with SHA-256, and a folder that holds exactly these files.

Whoever fetched a jar, it is used only after its hash was checked; it comes into the folder by one rename.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import SetupError

LOCK = Path(__file__).with_name("jars.lock")
KAFKA_VERSION = "4.4.0"


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


# Puts the jars, by file name, into the folder; may put fewer, or wrong ones: everything is checked after it.
# Raises SetupError when it can't do anything at all.
Fetch = Callable[[Sequence[Jar], Path], None]


def read_lock(path: Path = LOCK) -> tuple[Jar, ...]:
    """The jars of a lock file, sorted by file name (the order of the class path).

    Raises:
        SetupError: a line is not `group:artifact:version sha256`, or a file name comes twice.
    """
    jars: list[Jar] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        coordinate, _, sha256 = line.strip().partition(" ")
        parts = coordinate.split(":")
        if len(parts) != 3 or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise SetupError(f"{path.name} line {number} is not `group:artifact:version sha256`: restore it from git")
        group, artifact, version = parts
        jars.append(Jar(group, artifact, version, sha256))
    names = [jar.file_name for jar in jars]
    if len(set(names)) != len(names):
        raise SetupError(f"{path.name} names a file twice: restore it from git")
    return tuple(sorted(jars, key=lambda jar: jar.file_name))


def is_intact(jar: Jar, folder: Path) -> bool:
    """Whether the folder holds the jar with the locked hash."""
    try:
        with (folder / jar.file_name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except OSError:
        return False


def missing(jars: Sequence[Jar], folder: Path) -> list[Jar]:
    """The jars that are absent from the folder or damaged in it."""
    return [jar for jar in jars if not is_intact(jar, folder)]


def provide(jars: Sequence[Jar], folder: Path, fetchers: Sequence[Fetch]) -> int:
    """Make `folder` hold exactly the locked jars; fetch what is missing or damaged, trying one fetcher after another.

    An intact jar is not touched (a start-up archive remembers its modification time). Anything else in the folder
    is removed. A run that is cut short leaves intact jars only, and the next one goes on from there.

    Returns:
        How many jars were fetched.

    Raises:
        SetupError: jars are still missing after the last fetcher; the message has every fetcher's reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = missing(jars, folder)
    fetched = len(wanted)
    reasons: list[str] = []
    for fetch in fetchers:
        if not wanted:
            break
        with tempfile.TemporaryDirectory(prefix="incoming-", dir=folder.parent) as incoming:
            try:
                fetch(wanted, Path(incoming))
            except SetupError as exc:
                reasons.append(str(exc))
            for jar in wanted:
                if is_intact(jar, Path(incoming)):
                    os.replace(Path(incoming) / jar.file_name, folder / jar.file_name)
                elif (Path(incoming) / jar.file_name).exists():
                    reasons.append(f"{jar.file_name} came with another content than the lock has")
        wanted = missing(wanted, folder)
    if wanted:
        raise SetupError(
            f"can't get {len(wanted)} of Kafka's {len(jars)} jars (first: {wanted[0].coordinate}). "
            + "; ".join(reasons or ["no way to fetch them"])
            + ". Check the network and run `make setup` again"
        )
    _remove_others(jars, folder)
    return fetched


def _remove_others(jars: Sequence[Jar], folder: Path) -> None:
    names = {jar.file_name for jar in jars}
    for entry in folder.iterdir():
        if entry.name in names:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
