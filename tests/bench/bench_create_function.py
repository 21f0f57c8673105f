"""CreateFunction on a running fabric: how long the answer takes, and how long until the function is Active. Prints JSON.

The answer is timed at the client, signature and connection included; Active by asking GetFunction again and again. Functions are made
one after another, each with a package of its own, so nothing is cached. Run: python -m tests.bench.bench_create_function
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from infra.app.client import connect
from infra.app.state import choose_folder
from tests.api_fakes import creation, zip_of
from tests.fabric import running_fabric

FUNCTIONS, DROPPED = 40, 4


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_fabric(Path(folder) / "data") as fabric:
        client = connect(choose_folder(str(fabric.data_dir)))
        answers, active, deleted = [], [], []
        for number in range(FUNCTIONS):
            name = f"f{number}"
            source = f"N = {number}\ndef main_handler(event, context):\n    return N\n"
            package = base64.b64encode(zip_of({"index.py": source})).decode()
            began = time.perf_counter()
            client.call("CreateFunction", {**creation(name), "Code": {"ZipFile": package}})
            answers.append(time.perf_counter() - began)
            while client.call("GetFunction", {"FunctionName": name})["Status"] != "Active":
                pass
            active.append(time.perf_counter() - began)
            began = time.perf_counter()
            client.call("DeleteFunction", {"FunctionName": name})
            deleted.append(time.perf_counter() - began)
        rows = {"answer": answers, "active": active, "answer of the delete": deleted}
        found = {
            f"{what} ms {part}": round(value * 1000, 1)
            for what, times in rows.items()
            for part, value in (
                ("p50", statistics.median(times[DROPPED:])),
                ("p90", sorted(times[DROPPED:])[int(len(times[DROPPED:]) * 0.9)]),
            )
        }
        print(json.dumps({"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), **found}))


if __name__ == "__main__":
    main()
