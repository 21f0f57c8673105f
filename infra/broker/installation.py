"""What `make setup` made for the broker, in one folder: jars, the formatting checkpoint, a start-up archive.

    <build folder>/kafka-4.4.0/
        libs/*.jar              exactly the files of jars.lock
        bootstrap.checkpoint    Kafka's features, as its StorageTool writes them into a new log folder
        archive/KEY.jsa|.aot    the JVM's class archive; KEY stands for this Java, these jars, this place
        installed.json          written last: what was there when set-up ended

The build folder is `.penstock-build` in the checkout, or `PENSTOCK_BUILD_DIR`; nothing is kept in the user's home.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.broker import jars as locked
from infra.broker.java import Java, find_java, fingerprint
from schemas.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping

_AGAIN = "run `make setup`"
# Small heap and stacks, one collector thread, the quick compiler only: measured to lose nothing here. No file in /tmp
# for jstat; a broker without memory should die and be started again rather than limp.
_JVM_FLAGS = (
    "-Xms64m",
    "-Xmx256m",
    "-Xss512k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
)


def project_folder() -> Path:
    """The checkout this code runs from."""
    return Path(__file__).resolve().parents[2]


def build_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where set-up keeps what it makes: `PENSTOCK_BUILD_DIR`, else `.penstock-build` in the checkout."""
    chosen = (os.environ if environ is None else environ).get("PENSTOCK_BUILD_DIR")
    if chosen:
        return (project_folder() / chosen).absolute()
    if (project_folder() / "pyproject.toml").exists():
        return project_folder() / ".penstock-build"
    return Path(sys.prefix) / "penstock-build"


@dataclass(frozen=True, slots=True)
class Installation:
    """A broker that can be started.

    Attributes:
        folder: `<build folder>/kafka-<version>`.
        java: The Java it runs on.
        jars: The class path, in its order.
    """

    folder: Path
    java: Java
    jars: tuple[Path, ...]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "bootstrap.checkpoint"

    @property
    def archive(self) -> Path:
        """The start-up archive for this Java, these jars and flags; may not exist."""
        parts = [self.java.identity, *self.jvm_flags, *map(str, self.jars), repr(jar_stats(self.jars))]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        return self.folder / "archive" / f"{key}{'.aot' if self.archive_is_aot else '.jsa'}"

    @property
    def archive_is_aot(self) -> bool:
        """Java 25 makes an ahead-of-time cache in one run (JEP 514); before it, a dynamic class archive (JEP 350)."""
        return self.java.major >= 25

    @property
    def archive_flag(self) -> str:
        """The JVM flag that uses the archive. A JVM that finds it unfit goes on without it."""
        return f"{'-XX:AOTCache' if self.archive_is_aot else '-XX:SharedArchiveFile'}={self.archive}"

    @property
    def jvm_flags(self) -> tuple[str, ...]:
        flags = list(_JVM_FLAGS)
        if self.java.major >= 24:  # it warns about what Kafka's libraries do on purpose
            flags += ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        if self.java.major >= 25:  # and about stubs in its own cache that it does not take
            flags += ["-Xlog:aot*=error"]
        return tuple(flags)

    def command(self, *arguments: str, flags: tuple[str, ...] = ()) -> list[str]:
        """A command line that runs one of Kafka's main classes: `flags` for the JVM, then class and arguments."""
        class_path = ":".join(map(str, self.jars))
        # The JVM reads file names by the locale; C.UTF-8 lets the data folder have any name.
        java = ["env", "LC_ALL=C.UTF-8", str(self.java.path)]
        return [*java, *self.jvm_flags, *flags, "-cp", class_path, *arguments]


def jar_stats(jars: tuple[Path, ...]) -> list[list[Any]]:
    """Name, size and time of change of every jar: equal means untouched since set-up checked the hashes."""
    return [[jar.name, stat.st_size, stat.st_mtime_ns] for jar in jars for stat in (jar.stat(),)]


def kafka_folder(build: Path) -> Path:
    return build / f"kafka-{locked.KAFKA_VERSION}"


def jar_paths(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / "libs" / jar.file_name for jar in locked.read_lock())


def record(installation: Installation) -> None:
    """Note that set-up ended, and with what."""
    text = json.dumps(
        {
            "jars": jar_stats(installation.jars),
            "java": {**asdict(installation.java), "path": str(installation.java.path)},
            "java_fingerprint": fingerprint(installation.java.path),
        },
        indent=1,
    )
    fresh = installation.folder / "installed.json.new"
    fresh.write_text(text)
    fresh.replace(installation.folder / "installed.json")


def load(build: Path | None = None, environ: Mapping[str, str] | None = None) -> Installation:
    """The installed broker, checked by sizes and times (set-up checks the hashes). About 1 ms.

    Raises:
        SetupError: set-up was not run, did not end, or something was changed since; or Java is gone.
    """
    folder = kafka_folder(build_folder(environ) if build is None else build)
    try:
        noted = json.loads((folder / "installed.json").read_text())
        paths = jar_paths(folder)
        if noted["jars"] != jar_stats(paths):
            raise SetupError(f"Kafka's jars in {folder} were changed since set-up: {_AGAIN}")
        earlier = Java(**{**noted["java"], "path": Path(noted["java"]["path"])})
        known = {noted["java_fingerprint"]: earlier}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SetupError(f"the embedded broker is not installed in {folder}: {_AGAIN}") from exc
    installation = Installation(folder, find_java(environ, known=known), paths)
    if not installation.checkpoint.exists():
        raise SetupError(f"the embedded broker is not fully installed in {folder}: {_AGAIN}")
    return installation
