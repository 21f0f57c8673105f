"""The bare minimum that Penstock is compared with, in the same run on the same broker (BARS.md, "Kafka → function").

F2: a confluent-kafka loop that calls the function in its own process. F3: the same loop with the function in one worker process behind a
Unix socket, one record at a time. Neither authenticates, validates, counts or isolates anything; Penstock's path does all four.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition

LENGTH = struct.Struct("!I")


def handler(event: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """The echo function of all comparisons."""
    return event


def event_of(message: Message) -> bytes:
    """One record as the CKafka event, by the plainest means."""
    key, value = message.key(), message.value()
    record = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "msgKey": (key or b"").decode(),
        "msgBody": (value or b"").decode(),
    }
    return json.dumps({"Records": [{"Ckafka": record}]}).encode()


def in_process(event: bytes) -> None:
    """F2's call."""
    json.dumps(handler(json.loads(event), {}))


Entered = Callable[[bytes], tuple[int, int]]
"""An event in; when its record was sent and when the handler was entered (unix nanoseconds)."""


def entered_here(event: bytes) -> tuple[int, int]:
    """F2's handler for latency, in process."""
    record = json.loads(event)["Records"][0]["Ckafka"]
    entered_ns = time.time_ns()
    return json.loads(record["msgBody"])["sent_ns"], entered_ns


@contextmanager
def timed_worker() -> Iterator[Entered]:
    """The same in one worker process behind a socket pair: the least that any isolation costs."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while event := theirs.recv(1 << 20):
            theirs.send(b"%d %d" % entered_here(event))
        os._exit(0)
    theirs.close()

    def call(event: bytes) -> tuple[int, int]:
        ours.send(event)
        sent_ns, entered_ns = ours.recv(100).split()
        return int(sent_ns), int(entered_ns)

    try:
        yield call
    finally:
        ours.close()
        os.waitpid(pid, 0)


@contextmanager
def worker_process() -> Iterator[Callable[[bytes], None]]:
    """F3's call: a forked worker behind a socket pair, one event at a time."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        stream = theirs.makefile("rwb")
        while head := stream.read(4):
            event = stream.read(LENGTH.unpack(head)[0])
            answer = json.dumps(handler(json.loads(event), {})).encode()
            stream.write(LENGTH.pack(len(answer)) + answer)
            stream.flush()
        os._exit(0)
    theirs.close()
    stream = ours.makefile("rwb")

    def call(event: bytes) -> None:
        stream.write(LENGTH.pack(len(event)) + event)
        stream.flush()
        stream.read(LENGTH.unpack(stream.read(4))[0])

    try:
        yield call
    finally:
        stream.close()
        ours.close()
        os.waitpid(pid, 0)


def _consumer(bootstrap: str, topic: str, partitions: int, offset: int) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"floor-{os.getpid()}-{time.monotonic_ns()}",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 10,
        }
    )
    consumer.assign([TopicPartition(topic, p, offset) for p in range(partitions)])
    return consumer


def records_per_s(
    bootstrap: str, topic: str, partitions: int, count: int, call: Callable[[bytes], None]
) -> dict[str, float]:
    """Read `count` preloaded records and call for each. The first tenth is not timed. Rate and CPU of this process."""
    consumer = _consumer(bootstrap, topic, partitions, 0)
    done, skip, began, cpu = 0, count // 10, 0.0, 0.0
    while done < count:
        for message in consumer.consume(500, 0.1):
            if message.error() is None:
                call(event_of(message))
                done += 1
                if done == skip:
                    began, cpu = time.perf_counter(), time.process_time()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    consumer.close()
    return {"records_per_s": (count - skip) / took, "cpu_us_per_record": cpu / (count - skip) * 1e6}


def latencies_ms(bootstrap: str, topic: str, count: int, started: Callable[[], None], entered: Entered) -> list[float]:
    """Produce-to-handler latency of `count` records by poll(); `started` is called when the consumer stands at the end."""
    consumer = _consumer(bootstrap, topic, 1, -1)
    consumer.poll(1.0)
    started()
    found: list[float] = []
    while len(found) < count:
        message = consumer.poll(5.0)
        if message is None:
            raise TimeoutError("the floor's records did not arrive")
        if message.error() is None:
            sent_ns, entered_ns = entered(event_of(message))
            found.append((entered_ns - sent_ns) / 1e6)
    consumer.close()
    return found


def round_trip_us(calls: int = 3_000) -> dict[str, float]:
    """One 1 KB event to a worker process behind a Unix socket pair and back, one after another."""
    event = json.dumps({"Records": [{"Ckafka": {"msgBody": "x" * 1000}}]}).encode()
    taken: list[float] = []
    with worker_process() as call:
        for _ in range(calls):
            began = time.perf_counter()
            call(event)
            taken.append((time.perf_counter() - began) * 1e6)
    kept = sorted(taken[calls // 10 :])
    return {"p50_us": kept[len(kept) // 2], "p99_us": kept[int(len(kept) * 0.99)]}
