"""SIGKILL of `up` itself, and clean stops, in the middle of work: nothing is left on the machine, and the next `up` goes on."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from confluent_kafka import Producer

from infra.broker.installation import Installation
from infra.broker.kafka import serving_broker
from tests.chaos.test_kills import KEYS, PARTITIONS, PER_KEY, assert_all_in_order, assert_in_flight, load
from tests.fabric import IS_ROOT, Fabric, until
from tests.remains import cgroups, process_tree, remains

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.chaos, pytest.mark.timeout(240)]

Start = Callable[..., Fabric]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    fabrics: list[Fabric] = []

    def begin(*flags: str) -> Fabric:
        fabrics.append(Fabric(tmp_path / "data", *flags))
        fabrics[-1].start()
        return fabrics[-1]

    yield begin
    for fabric in fabrics:
        fabric.stop()


def up_of(fabric: Fabric) -> int:
    assert fabric.up is not None
    return fabric.up.pid


def ports(fabric: Fabric) -> list[int]:
    """TCP ports of its endpoints."""
    endpoints = fabric.status()["endpoints"]
    urls = [endpoints["api"], endpoints["s3"], "kafka://" + endpoints["kafka"]]
    return [port for url in urls if (port := urlsplit(url).port) is not None]


def processes_left(fabric: Fabric, tree: list[tuple[int, str]]) -> list[str]:
    return [line for line in remains(fabric.data_dir, tree=tree) if line.startswith(("process", "mount", "socket"))]


@pytest.mark.parametrize("victims", ["up", "up and all its children"])
def test_a_killed_fabric_leaves_no_process_and_the_next_up_goes_on(start: Start, tmp_path: Path, victims: str) -> None:
    fabric = start()
    fabric.deploy(tmp_path, "echo", "def main_handler(event, context):\n    return event\n")
    load(fabric, tmp_path, "killed")
    listening = ports(fabric)
    assert_in_flight(fabric, "killed")
    tree = process_tree(up_of(fabric))
    assert len(tree) > 8, "workers were not found below `up`"
    children = [p["pid"] for p in fabric.status()["processes"]]
    for pid in [up_of(fabric), *(children if victims != "up" else [])]:
        os.kill(pid, signal.SIGKILL)
    fabric.stop()
    until(lambda: not processes_left(fabric, tree), within_s=8, what="no process, mount or socket left")
    old_groups = [line for line in cgroups(fabric.data_dir) if "/w" in line]
    assert old_groups or not IS_ROOT, "the killed agent left no cgroup, so this does not test the sweep"

    again = start()
    assert ports(again) == listening
    assert not set(old_groups) & set(cgroups(again.data_dir)), "cgroups of the killed agent were not swept"
    assert again.invoke("echo", 1)["RetMsg"] == "1"
    assert_all_in_order(again, "killed")
    again.produce("killed", [(b"late", b"7", 0)])
    until(lambda: any(x["k"] == "late" for x in again.said("killed")), within_s=20, what="a record produced after")
    assert again.stop() == 0
    assert remains(again.data_dir, tcp_ports=listening) == []


def test_records_produced_while_the_fabric_is_dead_are_delivered_by_the_next_one(
    start: Start, tmp_path: Path, broker_installation: Installation
) -> None:
    with serving_broker(tmp_path / "broker", installation=broker_installation) as broker:
        flags = ("--bootstrap-servers", broker.bootstrap_servers)
        fabric = start(*flags)
        load(fabric, tmp_path, "away")
        assert_in_flight(fabric, "away")
        tree = process_tree(up_of(fabric))
        fabric.stop(signal.SIGKILL)
        until(lambda: not processes_left(fabric, tree), within_s=8, what="no process left")
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all"})
        for number in range(10):
            producer.produce("away", b"%d" % number, b"meanwhile", number and 1)
        assert producer.flush(20) == 0
        again = start(*flags)
        until(lambda: again.lag("away") == 0, within_s=90, what="all finished", every_s=0.3)

        def seen() -> bool:
            return {x["s"] for x in again.said("away") if x["k"] == "meanwhile" and x["at"] == "end"} == set(range(10))

        until(seen, within_s=20, what="the records produced meanwhile")
        assert again.stop() == 0


def test_a_clean_stop_in_the_middle_of_work_leaves_nothing_and_nothing_runs_twice(start: Start, tmp_path: Path) -> None:
    fabric = start()
    load(fabric, tmp_path, "clean")
    listening = ports(fabric)
    assert_in_flight(fabric, "clean")
    tree = process_tree(up_of(fabric))
    kinds = {line.split()[0] for line in remains(fabric.data_dir, tcp_ports=listening)}
    assert kinds >= {"process", "socket"} | ({"cgroup"} if IS_ROOT else set()), "the search does not see what is there"
    began = time.monotonic()
    assert fabric.stop() == 0
    assert time.monotonic() - began < 10
    assert remains(fabric.data_dir, tcp_ports=listening, tree=tree) == []

    again = start()
    assert_all_in_order(again, "clean")
    ran = Counter((x["k"], x["s"]) for x in again.said("clean") if x["at"] == "start")
    assert len(ran) == KEYS * PER_KEY
    assert [record for record, times in ran.items() if times > 1] == [], "ran twice although the stop was clean"
    offsets = [(p["partition"], p["committed"]) for p in again.partitions("clean")]
    assert again.stop(signal.SIGINT) == 0

    third = start()
    assert [(p["partition"], p["committed"]) for p in third.partitions("clean")] == offsets
    assert sum(committed for _, committed in offsets) == KEYS * PER_KEY
    third.produce("clean", [(b"k0", b"99", 0)])
    until(lambda: any(x["s"] == 99 for x in third.said("clean")), within_s=20, what="a record produced after")
    assert sum(x["at"] == "start" for x in third.said("clean")) == KEYS * PER_KEY + 1
    assert len(offsets) == PARTITIONS


def test_a_stop_while_it_starts_leaves_nothing(start: Start, tmp_path: Path) -> None:
    start().stop()  # so that there is state to come back to
    for after_s in (0.05, 0.5, 1.0, 1.5, 2.0):
        fabric = Fabric(tmp_path / "data")
        began = time.monotonic()
        process = fabric.begin()
        until(lambda: time.monotonic() - began > after_s, within_s=5, what="the moment of the signal", every_s=0.01)  # noqa: B023
        process.send_signal(signal.SIGTERM)
        code = process.wait(12)
        assert code in ((0, -signal.SIGTERM) if after_s < 0.4 else (0,)), fabric.up_log()[-2000:]
        assert remains(fabric.data_dir) == []
