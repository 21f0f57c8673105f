"""Cost of the lanes' pure core per record: `offer` + `take` + `finish` + commit marks each 50 ms' worth of records.

Prints one JSON object a line. Run: python -m tests.bench.bench_lanes_core
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time

from infra.kafka.consumer import Record
from ingest.lanes import marks
from ingest.lanes.lanes import LaneSet
from ingest.lanes.policy import LanePolicy, Ordering
from ingest.lanes.run import Run

RECORDS = 40_000
CHUNK = 200
PARTITIONS = 4
REPEATS = 7


def _records(keys: int) -> list[list[Record]]:
    """Chunks as the consumer's thread hands them over: runs of one partition."""
    rng = random.Random(7)
    body = b"x" * 1024
    offsets = [0] * PARTITIONS
    chunks = []
    for number in range(RECORDS // CHUNK):
        partition = number % PARTITIONS
        chunk = []
        for _ in range(CHUNK):
            key = b"key-%d" % rng.randrange(keys) if keys else None
            chunk.append(Record(partition, offsets[partition], key, body, (), 1_700_000_000_000))
            offsets[partition] += 1
        chunks.append(chunk)
    return chunks


def _once(policy: LanePolicy, chunks: list[list[Record]], *, shuffle: bool) -> float:
    """Microseconds of CPU a record. `shuffle` finishes what is out in random order, the worst for the trackers."""
    lanes = LaneSet(policy, lambda: 0.5)
    for partition in range(PARTITIONS):
        lanes.assign(partition, 1, 0)
    rng = random.Random(3)
    finished = since_marks = 0
    started = time.process_time()
    waiting = iter(chunks)
    out: list[Run] = []
    while finished < RECORDS:
        if lanes.held < 2 * CHUNK:
            chunk = next(waiting, None)
            if chunk:
                lanes.offer(chunk)
        out += lanes.take(0.0)
        if shuffle:
            rng.shuffle(out)
            batch, out = out[: len(out) // 2 + 1], out[len(out) // 2 + 1 :]
        else:
            batch, out = out, []
        for run in batch:
            count = len(run.records)
            lanes.finish(run, 200, 0.0)
            finished += count
            since_marks += count
        if since_marks >= 2_000:
            since_marks = 0
            for _, epoch, offset, runs in lanes.marks():
                marks.encode(epoch, offset, runs)
    return (time.process_time() - started) * 1e6 / RECORDS


def main() -> None:
    """Print the figures."""
    cases = [
        ("key, 200 keys", LanePolicy(), 200, False),
        ("key, 200 keys, any order", LanePolicy(), 200, True),
        ("key, 1 key", LanePolicy(), 1, False),
        ("key, 10,000 keys", LanePolicy(), 10_000, False),
        ("key, 10,000 keys, 1,000 out", LanePolicy(concurrency=1_000), 10_000, True),
        ("no keys (pool)", LanePolicy(), 0, False),
        ("key, 200 keys, batch 100", LanePolicy(batch=100), 200, False),
        ("none, batch 100", LanePolicy(ordering=Ordering.NONE, batch=100), 200, False),
    ]
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    for name, policy, keys, shuffle in cases:
        chunks = _records(keys)
        _once(policy, chunks, shuffle=shuffle)
        times = sorted(_once(policy, chunks, shuffle=shuffle) for _ in range(REPEATS))
        figures = {"us_median": statistics.median(times), "us_min": times[0], "us_max": times[-1]}
        rounded = {key: round(value, 2) for key, value in figures.items()}
        print(json.dumps({"bench": "lanes core, CPU per record", "case": name, **rounded, "machine": machine}))


if __name__ == "__main__":
    main()
