"""Cost of one CKafka event: joined texts (`ingest.lanes.event`) beside json.dumps of nested dicts, in the same run.

Prints one JSON object a line. Run: python -m tests.bench.bench_ckafka_event
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable

from infra.kafka.consumer import Record
from ingest.lanes.event import CkafkaEvents

INNER = 20_000
REPEATS = 7


def _by_dumps(records: list[Record]) -> bytes:
    entries = [
        {
            "Ckafka": {
                "topic": "orders",
                "partition": r.partition,
                "offset": r.offset,
                "msgKey": "None" if r.key is None else r.key.decode(),
                "msgBody": None if r.value is None else r.value.decode(),
                "headers": [[name, None if v is None else v.decode()] for name, v in r.headers],
                "timestamp": r.timestamp_ms,
            }
        }
        for r in records
    ]
    return json.dumps({"Records": entries}, separators=(",", ":"), ensure_ascii=False).encode()


def _once(build: Callable[[list[Record]], object], records: list[Record], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        build(records)
    return (time.process_time() - started) * 1e6 / (calls * len(records))


def main() -> None:
    """Print the figures."""
    body = json.dumps({"order": 7, "text": "x" * 990}).encode()
    plain = Record(0, 12_345, b"customer-17", body, (), 1_700_000_000_000)
    cases = {
        "one record, 1 KB of JSON": [plain],
        "one record, 1 KB, two headers": [plain._replace(headers=(("trace", b"abc"), ("kind", b"order")))],
        "one record, 100 B": [plain._replace(value=b'{"n": 1, "text": "hello"}' * 4)],
        "one record, 1 KB not UTF-8": [plain._replace(value=b"\xff" * 1_024)],
        "100 records of 1 KB": [plain] * 100,
    }
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    events = CkafkaEvents("orders")
    for name, records in cases.items():
        calls = INNER // len(records)
        sides: dict[str, Callable[[list[Record]], object]] = {"joined": events.build}
        if b"\xff" not in (records[0].value or b""):
            assert json.loads(events.build(records)[0]) == json.loads(_by_dumps(records))
            sides["json_dumps"] = _by_dumps
        times = {side: sorted(_once(build, records, calls) for _ in range(REPEATS)) for side, build in sides.items()}
        figures = {f"{side}_us_median": round(statistics.median(xs), 2) for side, xs in times.items()}
        print(json.dumps({"bench": "ckafka event, CPU per record", "case": name, **figures, "machine": machine}))


if __name__ == "__main__":
    main()
