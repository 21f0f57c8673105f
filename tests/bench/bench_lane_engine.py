"""Records a second through the lane engine on the real broker, with a dispatcher that answers at once: consumer thread, lanes, event, commits.

Beside it, in the same run: the bare loop (poll + consume, no lanes, no events). Topics are filled before the clock starts; the first 10 % is
dropped. Prints one JSON object a line. Run: python -m tests.bench.bench_lane_engine
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from confluent_kafka import Consumer, Producer

from infra.broker import installation
from infra.broker.kafka import serving_broker
from infra.kafka.clients import Cluster
from infra.telemetry import configure
from ingest.lanes.engine import LaneEngine
from ingest.triggers import kafka_source
from schemas.frames import Result
from tests.kafka_client import make_topic
from tests.lane_fakes import trigger

RECORDS = 100_000
REPEATS = 3
OK = Result(0, 200, 0, 0, 100, 10, 0, b"", b"null")


def _fill(bootstrap: str, partitions: int) -> str:
    topic = make_topic(bootstrap, partitions=partitions)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.messages": 200_000})
    body = json.dumps({"order": 7, "text": "x" * 990}).encode()
    for number in range(RECORDS):
        producer.produce(topic, body, key=b"key-%d" % (number % 200), partition=number % partitions)
        producer.poll(0)
    assert producer.flush(60) == 0
    return topic


_Figures = tuple[float, float, int]


class _Clock:
    """Wall and CPU time from the first 10 % of the records to the last."""

    def __init__(self) -> None:
        self.seen = self.dropped = self.most_held = 0
        self.started = self.ended = (0.0, 0.0)

    def count(self, records: int) -> bool:
        before, self.seen = self.seen, self.seen + records
        if before < RECORDS // 10 <= self.seen:
            self.started = (time.perf_counter(), time.process_time())
            self.dropped = self.seen
        if self.seen >= RECORDS:
            self.ended = (time.perf_counter(), time.process_time())
        return self.seen >= RECORDS

    def figures(self) -> _Figures:
        """Records a second, µs of CPU of this process a record, most records held at once."""
        records = self.seen - self.dropped
        wall, cpu = (b - a for a, b in zip(self.started, self.ended, strict=True))
        return records / wall, cpu * 1e6 / records, self.most_held


def _bare(bootstrap: str, topic: str) -> _Figures:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap, "group.id": f"g-{uuid.uuid4().hex}", "auto.offset.reset": "earliest",
            "enable.auto.commit": False, "queued.max.messages.kbytes": 2048,
        }
    )  # fmt: skip
    consumer.subscribe([topic])
    clock = _Clock()
    while True:
        message = consumer.poll(0.05)
        if message is not None and clock.count(
            sum(m.value() is not None for m in [message, *consumer.consume(499, 0)])
        ):
            break
    consumer.close()
    return clock.figures()


async def _engine(bootstrap: str, topic: str, **kafka: Any) -> _Figures:
    record = trigger(topic=topic, group_id=f"g-{uuid.uuid4().hex}", **kafka)
    clock, over, loop = _Clock(), asyncio.Event(), asyncio.get_running_loop()
    answers: list[Callable[[Result], None]] = []

    def answer() -> None:
        """As an agent's answers come: many in one turn of the loop."""
        batch, answers[:] = list(answers), []
        for done in batch:
            done(OK)

    def submit(*_call: object, done: Callable[[Result], None], **_more: object) -> None:
        if not answers:
            loop.call_soon(answer)
        answers.append(done)

    opener = kafka_source(Cluster(bootstrap), "bench")
    engine = LaneEngine(
        record, submit=submit, bury=_no_letters, source=lambda events: opener(record, events), jitter=random.random, ended=print
    )  # fmt: skip
    settle = engine.lanes._settle

    def counted(run: Any) -> None:
        settle(run)
        clock.most_held = max(clock.most_held, engine.lanes.held)
        if clock.count(len(run.records)):
            over.set()

    engine.lanes._settle = counted  # type: ignore[method-assign]
    engine.start()
    async with asyncio.timeout(120):
        await over.wait()
    await engine.close()
    return clock.figures()


def _run_engine(bootstrap: str, topic: str, **kafka: Any) -> _Figures:
    return uvloop.run(_engine(bootstrap, topic, **kafka))


async def _no_letters(_letter: object) -> None:
    raise AssertionError("nothing fails here")


def main() -> None:
    """Print the figures."""
    configure("bench", level="ERROR")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_broker(Path(folder), installation=installation.load()) as broker,
    ):
        bootstrap = broker.bootstrap_servers
        for partitions in (1, 4):
            topic = _fill(bootstrap, partitions)
            cases: dict[str, Callable[[], _Figures]] = {
                "bare loop": partial(_bare, bootstrap, topic),
                "engine, one a run": partial(_run_engine, bootstrap, topic),
                "engine, batch 100, no order": partial(_run_engine, bootstrap, topic, batch=100, ordering="none"),
            }
            for case in cases.values():
                case()
            for name, case in cases.items():
                rates, costs, held = zip(*(case() for _ in range(REPEATS)), strict=True)
                print(
                    json.dumps(
                        {
                            "bench": "lane engine on the real broker, 1 KB, answered at once",
                            "case": name,
                            "partitions": partitions,
                            "records_per_s_median": round(statistics.median(rates)),
                            "records_per_s": [round(rate) for rate in sorted(rates)],
                            "client_cpu_us_per_record_median": round(statistics.median(costs), 1),
                            "most_records_held": max(held),
                            "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}",
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
