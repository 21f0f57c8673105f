"""Jail: from the wish to a worker's first answer, beside `python3 -c pass` and a bare fork, interleaved. Prints JSON.

BARS.md, "Cold start": jail at most 0.5 of one Python start in the same run. Needs root for the full jail; says in which mode it ran.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from sandbox.jail import JailConfig, JailDriver
from tests.jail_client import Talk, package, spec, started

RUNS = 30
ECHO = "def main_handler(event, context):\n    return event\n"
EVENT = {"pad": "x" * 1000}


def python_start() -> None:
    """One interpreter start."""
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-c", "pass"], check=True)


def bare_fork() -> None:
    """Fork, exit, wait."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def spread(taken_ms: list[float]) -> dict[str, float]:
    """Median and p90."""
    kept = sorted(taken_ms)
    return {"median_ms": round(statistics.median(kept), 3), "p90_ms": round(kept[int(len(kept) * 0.9)], 3)}


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds that it took."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1e3


async def main() -> None:
    taken: dict[str, list[float]] = {"jail": [], "python": [], "fork": [], "node": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        code = package(Path(folder) / "echo", ECHO)
        driver = JailDriver(JailConfig(Path(folder) / "nodes", f"{os.getpid():08x}", allow_weaker=True))
        await driver.start()
        node = await driver.create_node("bench")
        talks: list[Talk] = []

        async def first_answer() -> None:
            talks.append(await started(node, code, spec()))
            await talks[-1].run(EVENT)

        async def another_node() -> None:
            await (await driver.create_node("other")).close()

        await first_answer()
        for _ in range(RUNS):
            taken["jail"].append(await timed(first_answer))
            talks[-1].worker.kill()
            await talks[-1].worker.exited()
            talks.pop().worker.close()
            for name, plain in (("python", python_start), ("fork", bare_fork)):
                began = time.perf_counter()
                plain()
                taken[name].append((time.perf_counter() - began) * 1e3)
        for _ in range(200):
            taken["warm"].append(await timed(lambda: talks[0].run(EVENT)))
        for _ in range(5):
            taken["node"].append(await timed(another_node))
        talks[0].worker.close()
        await driver.close()
        notes = driver.probe().notes
    found = {name: spread(values) for name, values in taken.items()}
    ratio = found["jail"]["median_ms"] / found["python"]["median_ms"]
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"machine": machine, "mode": notes[0], **found, "jail / python": round(ratio, 3)}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
