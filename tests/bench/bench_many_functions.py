"""What many registered functions cost: latency of the API and of a warm call, memory of the gateway, its restart, with a namespace full and with many.

Prints JSON. The records are written to the registry topic as streams writes them (50 a namespace), so that only the readers are measured;
creating so many by the API would measure the workflow. Calls go one after another over one connection each, as the command line makes them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from infra.app.client import Client, connect
from infra.app.state import FabricFolder
from infra.credentials import credentials
from schemas import avro
from schemas.errors import BadRequest
from schemas.limits import FUNCTIONS_PER_NAMESPACE
from schemas.records import FunctionConfig, FunctionRecord
from schemas.topics import FUNCTIONS
from tests.fabric import Fabric, running_fabric, until

CALLS = 300


def resident_kib(pid: int) -> int:
    """VmRSS of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def register(fabric: Fabric, appid: str, uin: str, count: int) -> None:
    """`count` Active functions, in as many namespaces as they need."""
    producer = Producer({"bootstrap.servers": fabric.bootstrap, "queue.buffering.max.messages": count + 1})
    config = FunctionConfig("$LATEST", "0" * 64, 1024, "index.main_handler", "Python3.10", 128, 3, 65, {"A": "b"})
    for i in range(count):
        namespace, name = f"many-{i // FUNCTIONS_PER_NAMESPACE}", f"f{i}"
        record = FunctionRecord(
            seq=1,
            appid=appid,
            uin=uin,
            namespace=namespace,
            name=name,
            function_id=f"lam-{i:08x}",
            status="Active",
            description="one of many",
            created_unix_ms=1,
            modified_unix_ms=1,
            applied=0,
            command_id=f"many-{i}",
            serving=config,
        )
        producer.produce(FUNCTIONS, avro.encode(record), f"{appid}/{namespace}/{name}".encode())
    assert producer.flush(60) == 0


def calls_ms(client: Client, action: str, fields: dict[str, Any]) -> dict[str, float]:
    """Median and p99 of `CALLS` calls, without the first tenth."""
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        client.call(action, fields)
        taken.append((time.perf_counter() - began) * 1000)
    kept = sorted(taken[CALLS // 10 :])
    return {"p50_ms": round(statistics.median(kept), 3), "p99_ms": round(kept[int(len(kept) * 0.99)], 3)}


def measure(fabric: Fabric, client: Client, namespace: str) -> dict[str, Any]:
    """One column of the table."""
    echo = {"FunctionName": "echo"}
    found: dict[str, Any] = {
        "GetFunction": calls_ms(client, "GetFunction", echo),
        "ListFunctions": calls_ms(client, "ListFunctions", {"Namespace": namespace}),
        "Invoke, warm": calls_ms(client, "Invoke", {**echo, "ClientContext": "{}"}),
        "gateway_rss_kib": resident_kib(fabric.pid("gateway")),
        "streams_rss_kib": resident_kib(fabric.pid("streams")),
    }
    began = time.monotonic()
    old = fabric.kill("gateway")
    fabric.wait_back("gateway", old)
    found["gateway_killed_to_ready_s"] = round(time.monotonic() - began, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_fabric(Path(folder) / "data") as fabric:
        fabric.deploy(Path(folder), "echo", "def main_handler(event, context):\n    return event\n")
        client, owner = connect(FabricFolder(fabric.data_dir)), credentials(fabric.data_dir)
        register(fabric, owner.appid, owner.uin, FUNCTIONS_PER_NAMESPACE)
        few = measure(fabric, client, "many-0")
        client = connect(FabricFolder(fabric.data_dir))
        rss_kib = resident_kib(fabric.pid("gateway"))
        register(fabric, owner.appid, owner.uin, args.functions)
        last = {"FunctionName": f"f{args.functions - 1}", "Namespace": f"many-{(args.functions - 1) // 50}"}
        began = time.monotonic()
        until(lambda: is_there(client, last), within_s=60, what="the last function is seen")
        seen_s = time.monotonic() - began
        grown_kib = resident_kib(fabric.pid("gateway")) - rss_kib
        many = measure(fabric, client, "many-0")
    ratios = {
        a: round(many[a]["p50_ms"] / few[a]["p50_ms"], 2) for a in ("GetFunction", "ListFunctions", "Invoke, warm")
    }
    print(
        json.dumps(
            {
                "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
                "functions": args.functions,
                "few": few,
                "many": many,
                "p50 many / few": ratios,
                "gateway_bytes_per_function": round(grown_kib * 1024 / args.functions),
                "seen_after_s": round(seen_s, 2),
            },
            indent=1,
        )
    )


def is_there(client: Client, function: dict[str, str]) -> bool:
    """True when the gateway shows it."""
    try:
        found = client.call(
            "ListFunctions", {"Namespace": function["Namespace"], "SearchKey": function["FunctionName"]}
        )
    except BadRequest:  # its namespace is there when its first function is seen
        return False
    return bool(found["TotalCount"])


if __name__ == "__main__":
    main()
