"""SIGKILL of each process in the middle of a load: nothing lost, order per key kept, work goes on by itself."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fabric import Fabric, first_sights, in_order, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.chaos, pytest.mark.timeout(240)]

KEYS, PER_KEY, PARTITIONS = 60, 50, 4
STAMPED = """
    import json, os, random, time

    def main_handler(event, context):
        r = event["Records"][0]["Ckafka"]
        said = {"k": r["msgKey"], "s": int(r["msgBody"]), "t": time.monotonic_ns(), "id": context["request_id"]}
        print(json.dumps({**said, "at": "start"}), flush=True)
        time.sleep(0.005 + random.random() * 0.04)
        print(json.dumps({**said, "at": "end", "e": time.monotonic_ns()}), flush=True)
"""


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("kills") / "data") as running:
        yield running


def load(fabric: Fabric, folder: Path, name: str) -> None:
    topic = fabric.make_topic(name, PARTITIONS)
    fabric.deploy(folder, name, STAMPED, "--timeout", "10")
    fabric.ok("trigger", "create", name, "--type", "ckafka", "--topic", topic, "--concurrency", "16")
    fabric.produce(
        topic, ((b"k%d" % (i % KEYS), b"%d" % (i // KEYS), (i % KEYS) % PARTITIONS) for i in range(KEYS * PER_KEY))
    )
    until(lambda: any(x["at"] == "end" for x in fabric.said(name)), within_s=30, what="the load runs")


def assert_in_flight(fabric: Fabric, name: str) -> None:
    """The kill must hit work: records are running and most of the load is still to come."""

    def working() -> list[dict[str, Any]]:
        parts = fabric.partitions(name)
        return parts if any(p["in_flight"] for p in parts) else []

    parts = until(working, within_s=10, what="work in flight")
    assert sum(p["lag"] for p in parts) > KEYS, "the load was nearly over"


def assert_all_in_order(fabric: Fabric, name: str) -> None:
    until(lambda: fabric.lag(name) == 0, within_s=90, what="the rest of the load finished by itself", every_s=0.3)

    def complete() -> list[dict[str, Any]]:
        ended = [x for x in fabric.said(name) if x["at"] == "end"]
        return ended if len({(x["k"], x["s"]) for x in ended}) == KEYS * PER_KEY else []

    ended = until(complete, within_s=20, what="an end of every record in the log (nothing lost)", every_s=0.5)
    ended.sort(key=lambda x: x["e"])
    assert {k: first_sights(v) for k, v in in_order(ended).items()} == {
        f"k{k}": list(range(PER_KEY)) for k in range(KEYS)
    }
    assert overlaps(fabric.said(name)) == [], "two invocations of one key ran at once"


def overlaps(said: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Pairs of runs of one key where the later one started before the earlier one, which finished, had ended."""
    runs: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for x in said:
        run = runs.setdefault(x["k"], {}).setdefault((x["id"], x["t"]), {"s": x["s"], "t": x["t"], "e": None})
        run["e"] = x.get("e", run["e"])
    found = []
    for key, by_id in runs.items():
        ordered = sorted(by_id.values(), key=lambda r: r["t"])
        for earlier, later in itertools.pairwise(ordered):
            if earlier["e"] is not None and later["t"] < earlier["e"]:
                found.append((key, earlier["s"], later["s"]))
    return found


@pytest.mark.parametrize("victim", ["gateway", "agent", "streams", "kafka"])
def test_a_killed_process_comes_back_and_nothing_is_lost(fabric: Fabric, tmp_path: Path, victim: str) -> None:
    name = f"kill-{victim}"
    load(fabric, tmp_path, name)
    assert_in_flight(fabric, name)
    fabric.wait_back(victim, fabric.kill(victim))
    assert_all_in_order(fabric, name)


def test_a_killed_worker_costs_its_record_one_more_try(fabric: Fabric, tmp_path: Path) -> None:
    load(fabric, tmp_path, "kill-worker")
    assert_in_flight(fabric, "kill-worker")
    victims = workers_of(fabric.pid("agent"))
    assert victims, "no worker process found below the agent"
    for pid in victims[:4]:
        os.kill(pid, signal.SIGKILL)
    assert_all_in_order(fabric, "kill-worker")
    assert sum(p["dead"] for p in fabric.partitions("kill-worker")) == 0


def workers_of(agent: int) -> list[int]:
    """Leaf processes below the agent: workers (their children are none)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [agent]
    while todo:
        pid = todo.pop()
        below = children.get(pid, [])
        todo += below
        if not below and pid != agent:
            found.append(pid)
    return found


def test_two_kills_of_the_gateway_in_a_row_lose_nothing(fabric: Fabric, tmp_path: Path) -> None:
    load(fabric, tmp_path, "kill-twice")
    for _ in range(2):
        assert_in_flight(fabric, "kill-twice")
        fabric.wait_back("gateway", fabric.kill("gateway"))
    assert_all_in_order(fabric, "kill-twice")
