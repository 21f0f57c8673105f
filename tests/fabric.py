"""A whole fabric under test: `penstock up` in a data folder of its own, driven by the command line like a user would.

Processes are found by `penstock status --json` only; topics are written and read with confluent-kafka as any Kafka user would.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

PENSTOCK = str(Path(sys.executable).with_name("penstock"))
IS_ROOT = os.geteuid() == 0


def until(claim: Callable[[], Any], *, within_s: float, what: str, every_s: float = 0.05) -> Any:
    """The first true value of `claim`; AssertionError naming `what` when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = claim()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(every_s)


@dataclass
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Fabric:
    """One running fabric."""

    def __init__(self, data_dir: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._flags = [*flags] if IS_ROOT else [*flags, "--allow-weaker-isolation"]
        self._env = {**os.environ, **(env or {})}
        self.up: subprocess.Popen[bytes] | None = None

    def start(self, *, within_s: float = 40) -> float:
        """Start it and wait until it is ready; seconds that took."""
        began = time.monotonic()
        self.begin()
        try:
            until(self._ready, within_s=within_s, what=f"fabric ready; {self.up_log()[-3000:]}", every_s=0.1)
        except AssertionError:
            self.stop()
            raise
        return time.monotonic() - began

    def begin(self) -> subprocess.Popen[bytes]:
        """Start it and do not wait."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        out = (self.data_dir.parent / f"{self.data_dir.name}.up.log").open("ab")
        self.up = subprocess.Popen(
            [PENSTOCK, "up", "--data-dir", str(self.data_dir), *self._flags],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=self._env,
            start_new_session=True,
        )
        out.close()
        return self.up

    def _ready(self) -> bool:
        assert self.up is not None
        assert self.up.poll() is None, f"up ended with {self.up.returncode}: {self.up_log()[-3000:]}"
        return self.penstock("status", "--json").code == 0

    def up_log(self) -> str:
        return (self.data_dir.parent / f"{self.data_dir.name}.up.log").read_text()

    def stop(self, sig: int = signal.SIGTERM, *, within_s: float = 30) -> int:
        """Signal `up` and wait for it; its exit status."""
        assert self.up is not None
        if self.up.poll() is None:
            self.up.send_signal(sig)
        return self.up.wait(within_s)

    def penstock(self, *args: str, timeout_s: float = 60) -> Ran:
        done = subprocess.run(
            [PENSTOCK, *args], capture_output=True, text=True, timeout=timeout_s, check=False,
            env={**self._env, "PENSTOCK_DATA_DIR": str(self.data_dir)},
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    def ok(self, *args: str, timeout_s: float = 60) -> Ran:
        """A command that must succeed."""
        ran = self.penstock(*args, timeout_s=timeout_s)
        assert ran.code == 0, f"penstock {' '.join(args)}: {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    def status(self) -> dict[str, Any]:
        return dict(self.penstock("status", "--json").json)

    def pid(self, prefix: str) -> int:
        """Pid of the process whose name starts so."""
        return next(int(p["pid"]) for p in self.status()["processes"] if p["name"].startswith(prefix))

    def kill(self, prefix: str) -> int:
        """SIGKILL a process; returns the pid it had."""
        pid = self.pid(prefix)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_back(self, prefix: str, old_pid: int, *, within_s: float = 40) -> None:
        """Wait until a killed process is there again and the fabric is ready."""

        def back() -> bool:
            return bool(self.status()["ready"]) and self.pid(prefix) != old_pid

        until(back, within_s=within_s, what=f"{prefix} is back", every_s=0.2)

    # functions

    def deploy(self, folder: Path, name: str, code: str, *flags: str) -> None:
        """Write `index.py` with `code` and deploy it."""
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        (home / "index.py").write_text(textwrap.dedent(code))
        self.ok("deploy", str(home), "--name", name, "--handler", "index.main_handler", *flags)

    def invoke(self, name: str, payload: Any = None) -> dict[str, Any]:
        return dict(self.penstock("invoke", name, "--json", "--payload", json.dumps(payload)).json)

    def partitions(self, function: str) -> list[dict[str, Any]]:
        """Partitions of the function's (first) trigger."""
        (source,) = self.ok("trigger", "list", function, "--json").json
        return list(source["partitions"])

    def lag(self, function: str) -> float:
        """Records not yet committed; infinite while the broker does not tell."""
        return sum(math.inf if p["lag"] is None else p["lag"] for p in self.partitions(function))

    def lines(self, function: str) -> list[dict[str, Any]]:
        """All kept log lines, in arrival order."""
        return [json.loads(line) for line in self.ok("logs", function, "--json").out.splitlines()]

    def said(self, function: str) -> list[Any]:
        """What the handler printed to stdout as JSON lines, in arrival order."""
        return [
            json.loads(x["line"]) for x in self.lines(function) if x["stream"] == "stdout" and x["line"].startswith("{")
        ]

    def wait_said(self, function: str, count: int, *, within_s: float = 30) -> list[Any]:
        """`said` once it has at least `count` lines."""

        def enough() -> list[Any]:
            said = self.said(function)
            return said if len(said) >= count else []

        return list(until(enough, within_s=within_s, what=f"{count} lines of {function}", every_s=0.5))

    # Kafka, as a user

    @property
    def bootstrap(self) -> str:
        return str(self.status()["endpoints"]["kafka"])

    def make_topic(self, name: str, partitions: int = 1) -> str:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result(20)
        until(lambda: name in admin.list_topics(timeout=5).topics, within_s=10, what=f"topic {name}")
        return name

    def produce(self, topic: str, records: Iterable[tuple[bytes | None, bytes | None, int]]) -> int:
        """Write (key, value, partition) records, acknowledged; how many."""
        failed: list[Any] = []

        def delivered(error: Any, _message: Any) -> None:
            if error is not None:
                failed.append(error)

        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 5, "acks": "all"})
        count = 0
        for key, value, partition in records:
            while True:
                try:
                    producer.produce(topic, value, key, partition, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
            count += 1
        assert producer.flush(60) == 0
        assert not failed, failed[:3]
        return count

    def read_all(self, topic: str) -> list[Any]:
        """Every message now in a topic."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "reader", "enable.auto.commit": False})
        found: list[Any] = []
        for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            at = TopicPartition(topic, partition, 0)
            _, end = consumer.get_watermark_offsets(at, timeout=10)
            consumer.assign([at])
            mine = 0
            while mine < end:
                message = consumer.poll(10)
                assert message is not None, f"{topic}[{partition}] ends at {end}, read {mine}"
                if message.error() is None:
                    found.append(message)
                    mine = (message.offset() or 0) + 1
        consumer.close()
        return found


@contextmanager
def running_fabric(data_dir: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[Fabric]:
    """A ready fabric, stopped at the end."""
    fabric = Fabric(data_dir, *flags, env=env)
    fabric.start()
    try:
        yield fabric
    finally:
        fabric.stop()


def in_order(said: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Sequence numbers by key, in the order in which the handler saw them."""
    by_key: dict[str, list[int]] = {}
    for entry in said:
        by_key.setdefault(entry["k"], []).append(entry["s"])
    return by_key


def first_sights(sequence: list[int]) -> list[int]:
    """The sequence without what was seen before (a record that ran again after a crash)."""
    return list(dict.fromkeys(sequence))
