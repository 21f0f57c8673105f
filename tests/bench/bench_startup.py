"""How long `penstock up` takes until it is ready, and to stop: on new folders, and on one that holds a function and a trigger (BARS: ≤ 5 s).

Prints JSON: seconds from the start of the process to its line of readiness (the interpreter's own start included), the parts as `up` measured
them (fabric.json, "startup"), and from SIGTERM to the end; medians of `--runs`. `load` tells how quiet the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fabric import IS_ROOT, PENSTOCK, running_fabric

STOP_S = 30


def one_run(data_dir: Path) -> dict[str, Any]:
    """Start, wait for its line, stop."""
    flags = [] if IS_ROOT else ["--allow-weaker-isolation"]
    load, began = os.getloadavg()[0], time.monotonic()
    up = subprocess.Popen([PENSTOCK, "up", "--json", "--data-dir", str(data_dir), *flags], stdout=subprocess.PIPE)
    assert up.stdout is not None
    line = up.stdout.readline()
    ready_s = time.monotonic() - began
    assert line and json.loads(line)["ready"], f"up ended with {up.wait(STOP_S)}"
    parts = json.loads((data_dir / "fabric.json").read_text())["startup"]
    began = time.monotonic()
    up.send_signal(signal.SIGTERM)
    code = up.wait(STOP_S)
    assert code == 0, f"up ended with {code}"
    return {"ready_s": ready_s, "stop_s": time.monotonic() - began, "parts": parts, "load": load}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; parts in the order in which they happen."""
    return {
        "ready_s": round(statistics.median(r["ready_s"] for r in runs), 2),
        "ready_worst_s": round(max(r["ready_s"] for r in runs), 2),
        "stop_s": round(statistics.median(r["stop_s"] for r in runs), 2),
        "parts_s": {part: round(statistics.median(r["parts"][part] for r in runs), 3) for part in runs[0]["parts"]},
        "load": [round(r["load"], 1) for r in runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        new = [one_run(folder / f"new-{run}") for run in range(args.runs)]
        with running_fabric(folder / "kept") as fabric:
            fabric.deploy(folder, "echo", "def main_handler(event, context):\n    return event\n")
            fabric.make_topic("events", 4)
            fabric.ok("trigger", "create", "echo", "--type", "ckafka", "--topic", "events")
            fabric.produce("events", ((b"k%d" % (i % 50), b"%d" % i, i % 4) for i in range(1_000)))
        existing = [one_run(folder / "kept") for _ in range(args.runs)]
    found = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "new_folder": summary(new),
        "existing_folder": summary(existing),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
