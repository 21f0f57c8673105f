"""Two ways to fetch jars from Maven's central repository: the machine's `mvn`, else jgo, a resolver in Python.

Neither is trusted: infra.broker.jars checks every file against the lock. No address stands here: both know their own,
and the user's Maven settings (mirrors, proxies) hold for mvn.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infra.broker.jars import Jar

_MVN_TIMEOUT_S = 600.0
_JGO_REQUEST_TIMEOUT_S = 60
_JGO_TRIES = 3
_JGO_PARALLEL = 4


def render_pom(jars: Sequence[Jar]) -> str:
    """A pom that asks for exactly these jars: every dependency of a dependency is excluded, the lock has them all."""
    dependencies = "\n".join(
        f"    <dependency><groupId>{jar.group}</groupId><artifactId>{jar.artifact}</artifactId>"
        f"<version>{jar.version}</version><exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId>"
        "</exclusion></exclusions></dependency>"
        for jar in jars
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0">\n  <modelVersion>4.0.0</modelVersion>\n'
        "  <groupId>penstock</groupId><artifactId>jars</artifactId><version>1</version><packaging>pom</packaging>\n"
        f"  <dependencies>\n{dependencies}\n  </dependencies>\n</project>\n"
    )


def by_mvn(jars: Sequence[Jar], folder: Path) -> None:
    """Fetch by the `mvn` on PATH. Raises SetupError when there is none or it fails."""
    mvn = shutil.which("mvn")
    if mvn is None:
        raise SetupError("there is no mvn on PATH")
    with tempfile.TemporaryDirectory(prefix="penstock-pom-") as scratch:
        pom = Path(scratch) / "pom.xml"
        pom.write_text(render_pom(jars))
        command = [mvn, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
        command += [f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
        try:
            run = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MVN_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise SetupError(f"mvn did not finish: {exc}") from exc
    if run.returncode != 0:
        said = (run.stdout + run.stderr).decode(errors="replace").strip().splitlines()
        raise SetupError(f"mvn failed: {next((line for line in said if 'ERROR' in line), 'no output')[:300]}")


def by_jgo(install: Callable[[], None]) -> Callable[[Sequence[Jar], Path], None]:
    """A fetcher by jgo's Python API.

    Args:
        install: brings jgo into this environment when it is not there; raises SetupError when it can't.
    """

    def fetch(jars: Sequence[Jar], folder: Path) -> None:
        if importlib.util.find_spec("jgo") is None:
            install()
            importlib.invalidate_caches()
        try:
            maven: Any = importlib.import_module("jgo.maven")
        except ImportError as exc:
            raise SetupError(f"jgo does not import: {exc}") from exc
        # A cache of its own, thrown away: the user's ~/.m2 is mvn's, and jgo trusts whatever lies there.
        with tempfile.TemporaryDirectory(prefix="jgo-", dir=folder.parent) as cache:
            context = maven.MavenContext(
                resolver=maven.PythonResolver(), repo_cache=Path(cache), timeout=_JGO_REQUEST_TIMEOUT_S
            )
            with ThreadPoolExecutor(_JGO_PARALLEL) as pool:
                failures = [reason for reason in pool.map(lambda jar: _fetch_one(context, jar, folder), jars) if reason]
        if failures:
            raise SetupError(f"jgo: {failures[0]}" + (f" (and {len(failures) - 1} more)" if failures[1:] else ""))

    return fetch


def _fetch_one(context: Any, jar: Jar, folder: Path) -> str | None:
    """Fetch one jar with retries; the reason when it did not come."""
    reason = ""
    for _ in range(_JGO_TRIES):
        artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        try:
            shutil.move(artifact.resolve(), folder / jar.file_name)
            return None
        except Exception as exc:  # noqa: BLE001 - requests' errors, OSError and RuntimeError all mean: not fetched
            reason = f"{jar.coordinate}: {exc}"
            artifact.cached_path.unlink(missing_ok=True)  # half a file would count as cached
    return reason
