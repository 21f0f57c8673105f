"""A lane engine in a process of its own, to be killed: `python -m tests.lane_victim BOOTSTRAP TOPIC GROUP SLOT`.

Says on stdout, unbuffered, what it does: `start PARTITION OFFSET`, `done PARTITION OFFSET MONOTONIC_MS`. A record with the value `stuck` never ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from infra.kafka.clients import Cluster
from infra.telemetry import configure
from ingest.lanes.engine import LaneEngine
from ingest.triggers import kafka_source
from schemas.frames import Result
from tests.lane_fakes import result, trigger


def say(*words: object) -> None:
    """One line, at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def submit(*call: Any, done: Callable[[Result], None], **_more: object) -> None:
    """A function of 1 to 20 ms."""
    record = json.loads(call[2])["Records"][0]["Ckafka"]
    place = record["partition"], record["offset"]
    say("start", *place)

    def answer() -> None:
        say("done", *place, time.monotonic_ns() // 1_000_000)
        done(result())

    if record["msgBody"] != "stuck":
        asyncio.get_running_loop().call_later(0.001 + random.random() * 0.019, answer)


async def _no_letters(_letter: object) -> None:
    raise AssertionError("nothing fails here")


async def main(bootstrap: str, topic: str, group: str, slot: str) -> None:
    """Work until killed."""
    record = trigger(topic=topic, group_id=group)
    opener = kafka_source(Cluster(bootstrap), slot)
    engine = LaneEngine(
        record, submit=submit, bury=_no_letters, source=lambda events: opener(record, events), jitter=random.random,
        ended=lambda error: say("ended", error),
    )  # fmt: skip
    engine.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    configure("victim", level="ERROR")
    asyncio.run(main(*sys.argv[1:]))
