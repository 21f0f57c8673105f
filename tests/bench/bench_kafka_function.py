"""Kafka → function: Penstock beside the bare minimum, in one run, on one broker (BARS.md, "Kafka → function").

Prints JSON. `--records` per throughput run (1 KB each), `--partitions` to compare, `--latency` records at 100/s. Penstock's rate is taken
between 10 % and 100 % of the committed offsets; its CPU is that of gateway, agent and workers. The first tenth of each floor is dropped too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from infra.app.client import connect
from infra.app.state import FabricFolder
from tests.bench import floors
from tests.fabric import Fabric, running_fabric, until

ECHO = """
    def main_handler(event, context):
        return event
"""
TIMED = """
    import json, time

    def main_handler(event, context):
        entered = time.time_ns()
        sent = json.loads(event["Records"][0]["Ckafka"]["msgBody"])["sent_ns"]
        print(json.dumps({"ms": (entered - sent) / 1e6}))
"""
BODY = b'{"pad": "' + b"x" * 1000 + b'"}'


def cpu_s(pid: int) -> float:
    """User and system seconds of a process and its live descendants."""
    total, todo = 0.0, [pid]
    children: dict[int, list[tuple[int, list[str]]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append((int(entry.name), fields))
            if int(entry.name) == pid:
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    while todo:
        for child, fields in children.get(todo.pop(), []):
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            todo.append(child)
    return total


def committed(bootstrap: str, group: str, topic: str, partitions: int) -> int:
    """Sum of the group's committed offsets, by a consumer that never joins."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    try:
        found = consumer.committed([TopicPartition(topic, p) for p in range(partitions)], timeout=10)
        return sum(max(0, tp.offset) for tp in found)
    finally:
        consumer.close()


def penstock_rate(fabric: Fabric, topic: str, partitions: int, count: int, *flags: str) -> dict[str, float]:
    """Records a second of a trigger that starts at the beginning of a preloaded topic."""
    name = f"bench-{time.monotonic_ns() % 10**9}"
    pids = [fabric.pid("gateway"), fabric.pid("agent")]
    fabric.ok(
        "trigger", "create", "echo", "--type", "ckafka", "--topic", topic, "--name", name, "--from", "earliest", *flags
    )
    client = connect(FabricFolder(fabric.data_dir))
    (source,) = client.call("ListEventSources", {"FunctionName": "echo", "TriggerName": name})["Sources"]
    group, bootstrap = source["GroupId"], fabric.bootstrap
    marks: list[tuple[float, int, float]] = []

    def done() -> bool:
        marks.append((time.perf_counter(), committed(bootstrap, group, topic, partitions), sum(map(cpu_s, pids))))
        return marks[-1][1] >= count

    until(done, within_s=180, what=f"{count} records committed", every_s=0.05)
    fabric.ok("trigger", "delete", "echo", name)
    first = next(m for m in marks if m[1] >= count // 10)
    last = marks[-1]
    records = last[1] - first[1]
    return {
        "records_per_s": records / (last[0] - first[0]),
        "cpu_us_per_record": (last[2] - first[2]) / records * 1e6,
    }


def at_rate(fabric: Fabric, topic: str, count: int, per_s: int) -> None:
    """Produce `count` records at a steady rate, each with its send time."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": fabric.bootstrap, "linger.ms": 0, "acks": "all"})
    began = time.perf_counter()
    for i in range(count):
        while (wait := began + i / per_s - time.perf_counter()) > 0:
            producer.poll(min(wait, 0.005))
        body = json.dumps({"sent_ns": time.time_ns(), "pad": "x" * 1000})
        producer.produce(topic, body, b"k%d" % (i % 50))
        producer.poll(0)
    producer.flush(30)


def spread(found: list[float]) -> dict[str, float]:
    """p50 and p99 without the first tenth."""
    kept = sorted(found[len(found) // 10 :])
    return {"p50_ms": statistics.median(kept), "p99_ms": kept[int(len(kept) * 0.99)]}


def latency(fabric: Fabric, count: int) -> dict[str, Any]:
    """Produce-to-handler-entry at 100/s: Penstock, F2, and F2 with a worker process behind a socket; interleaved, the better of two rounds.

    The first round also warms the broker, whose own part falls by a third in its first thousand records.
    """
    runs: dict[str, list[dict[str, float]]] = {}
    for turn in range(2):
        topic = fabric.make_topic(f"latency-{turn}", 1)
        name = f"latency-{turn}"
        fabric.ok("trigger", "create", "timed", "--type", "ckafka", "--topic", topic, "--name", name)
        seen = len(fabric.said("timed"))
        at_rate(fabric, topic, count, 100)
        said = fabric.wait_said("timed", seen + count)[seen:]
        fabric.ok("trigger", "delete", "timed", name)
        runs.setdefault("penstock", []).append(spread([x["ms"] for x in said]))
        runs.setdefault("F2", []).append(floor_latency(fabric, f"floor-{turn}", count, floors.entered_here))
        with floors.timed_worker() as call:
            runs.setdefault("F2 and a worker", []).append(floor_latency(fabric, f"worker-{turn}", count, call))
    best: dict[str, Any] = {name: min(found, key=lambda r: r["p50_ms"]) for name, found in runs.items()}
    best["penstock / F2"] = {key: best["penstock"][key] / best["F2"][key] for key in ("p50_ms", "p99_ms")}
    return best


def floor_latency(fabric: Fabric, name: str, count: int, entered_ns: floors.Entered) -> dict[str, float]:
    """A floor's latency with the same producer."""
    topic = fabric.make_topic(name, 1)
    sender = threading.Thread(target=at_rate, args=(fabric, topic, count, 100))
    found = floors.latencies_ms(fabric.bootstrap, topic, count, sender.start, entered_ns)
    sender.join()
    return spread(found)


def throughput(fabric: Fabric, partitions: int, count: int) -> dict[str, Any]:
    """Penstock, F2 and F3 on one preloaded topic, interleaved twice; the better run of each."""
    topic = fabric.make_topic(f"load-{partitions}", partitions)
    fabric.produce(topic, ((b"k%d" % (i % 1000), BODY, (i % 1000) % partitions) for i in range(count)))
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(2):
        runs.setdefault("F2", []).append(
            floors.records_per_s(fabric.bootstrap, topic, partitions, count, floors.in_process)
        )
        with floors.worker_process() as call:
            runs.setdefault("F3", []).append(floors.records_per_s(fabric.bootstrap, topic, partitions, count, call))
        runs.setdefault("penstock", []).append(penstock_rate(fabric, topic, partitions, count))
        runs.setdefault("penstock batch 100", []).append(
            penstock_rate(fabric, topic, partitions, count, "--batch", "100")
        )
    best = {name: max(found, key=lambda r: r["records_per_s"]) for name, found in runs.items()}
    rate = {name: found["records_per_s"] for name, found in best.items()}
    return {
        **best,
        "penstock / F3": rate["penstock"] / rate["F3"],
        "penstock batch 100 / F2": rate["penstock batch 100"] / rate["F2"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--partitions", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--latency", type=int, default=1_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_fabric(Path(folder) / "data") as fabric:
        fabric.deploy(Path(folder), "echo", ECHO)
        fabric.deploy(Path(folder), "timed", TIMED)
        found: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
            "pipe_round_trip": floors.round_trip_us(),
            "latency_at_100_per_s": latency(fabric, args.latency),
        }
        for partitions in args.partitions:
            found[f"throughput_{partitions}_partitions"] = throughput(fabric, partitions, args.records)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
