"""The spine, end to end, as a user meets it: real broker, real jail, the command line, one fabric for the module."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fabric import Fabric, first_sights, in_order, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(180)]

ORDERED = """
    import json, random, time

    def main_handler(event, context):
        for record in event["Records"]:
            r = record["Ckafka"]
            time.sleep(random.random() * {delay_s})
            print(json.dumps({{"k": r["msgKey"], "s": int(r["msgBody"].split()[0]), "p": r["partition"], "o": r["offset"],
                              "t": time.monotonic_ns()}}), flush=True)
"""


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("spine") / "data") as running:
        yield running


def attach(fabric: Fabric, function: str, topic: str, *flags: str) -> None:
    fabric.ok("trigger", "create", function, "--type", "ckafka", "--topic", topic, *flags)


def test_20000_records_of_200_keys_keep_their_order_and_no_commit_passes_an_unfinished_offset(
    fabric: Fabric, tmp_path: Path
) -> None:
    topic = fabric.make_topic("ordered", 4)
    fabric.deploy(tmp_path, "ordered", ORDERED.format(delay_s=0.008), "--timeout", "10")
    attach(fabric, "ordered", topic, "--concurrency", "32")
    fabric.produce(topic, ((b"key-%d" % (i % 200), b"%d x" % (i // 200), (i % 200) % 4) for i in range(20_000)))
    samples: list[tuple[int, dict[int, int]]] = []

    def drained() -> bool:
        parts = fabric.partitions("ordered")
        samples.append((time.monotonic_ns(), {p["partition"]: p["committed"] for p in parts}))
        return not any(p["lag"] for p in parts)

    until(drained, within_s=120, what="20,000 records finished", every_s=0.2)
    said = fabric.wait_said("ordered", 20_000)
    assert in_order(said) == {f"key-{k}": list(range(100)) for k in range(200)}
    finished_ns = {(x["p"], x["o"]): x["t"] for x in said}
    assert len(samples) > 3, "the load was over before a commit could be seen in its middle"
    for at_ns, committed in samples:
        late = [(p, o) for (p, o), t in finished_ns.items() if o < committed[p] and t > at_ns]
        assert late == [], "committed before the handler finished"


def test_32_lanes_on_one_partition_are_20_times_as_fast_as_one_after_another(fabric: Fabric, tmp_path: Path) -> None:
    topic = fabric.make_topic("lanes", 1)
    fabric.deploy(
        tmp_path,
        "lanes",
        """
        import json, time

        def main_handler(event, context):
            t = time.monotonic_ns()
            time.sleep(0.05)
            r = event["Records"][0]["Ckafka"]
            print(json.dumps({"k": r["msgKey"], "s": int(r["msgBody"]), "t": t, "e": time.monotonic_ns()}), flush=True)
        """,
    )
    attach(fabric, "lanes", topic, "--concurrency", "32")
    fabric.produce(topic, ((b"%d" % (i % 200), b"%d" % (i // 200), 0) for i in range(200)))  # the pool grows with these
    until(lambda: fabric.lag("lanes") == 0, within_s=30, what="warm-up records finished")
    fabric.produce(topic, ((b"%d" % (i % 200), b"%d" % (1 + i // 200), 0) for i in range(2_000)))
    until(lambda: fabric.lag("lanes") == 0, within_s=60, what="2,000 records finished")
    said = fabric.wait_said("lanes", 2_200)
    timed = [x for x in said if x["s"] > 0]
    took_s = (max(x["e"] for x in timed) - min(x["t"] for x in timed)) / 1e9
    assert in_order(said) == {str(k): list(range(11)) for k in range(200)}
    assert 2_000 * 0.05 / took_s >= 20, f"2,000 records of 50 ms took {took_s:.2f} s"


def test_one_percent_poison_ends_whole_in_the_dead_letter_topic_and_the_others_are_unharmed(
    fabric: Fabric, tmp_path: Path
) -> None:
    topic = fabric.make_topic("poison", 2)
    fabric.deploy(
        tmp_path,
        "poison",
        """
        import json

        def main_handler(event, context):
            r = event["Records"][0]["Ckafka"]
            if r.get("msgBodyEncoding") == "base64" or "bad" in r["msgBody"]:
                raise ValueError("cannot take this record")
            print(json.dumps({"k": r["msgKey"], "s": int(r["msgBody"])}))
        """,
    )
    attach(fabric, "poison", topic, "--retries", "2")
    chooser = random.Random(7)
    bad = set(chooser.sample(range(2_000), 20))
    bodies = [b"bad \xff\x00 %d" % i if i in bad else b"%d" % i for i in range(2_000)]
    fabric.produce(topic, ((b"k%d" % (i % 50), body, i % 2) for i, body in enumerate(bodies)))
    until(lambda: fabric.lag("poison") == 0, within_s=60, what="all records finished or dead")
    dead = fabric.read_all("penstock.dead.default.poison.poison")
    assert sorted(m.value() for m in dead) == sorted(bodies[i] for i in bad)
    for message in dead:
        headers = dict(message.headers() or [])
        number = int(message.value().split()[-1])
        assert message.key() == b"k%d" % (number % 50)
        assert (headers["penstock-source-topic"], headers["penstock-source-offset"]) == (
            b"poison",
            b"%d" % (number // 2),
        )
        assert (headers["penstock-reason"], headers["penstock-attempts"]) == (b"430", b"3")
        assert b"cannot take this record" in headers["penstock-error"]
    assert sum(p["dead"] for p in fabric.partitions("poison")) == 20
    said = fabric.wait_said("poison", 1_980)
    assert in_order(said) == {f"k{k}": [i for i in range(k, 2_000, 50) if i not in bad] for k in range(50)}


def test_batches_hold_records_of_one_key_in_order(fabric: Fabric, tmp_path: Path) -> None:
    topic = fabric.make_topic("batched", 1)
    fabric.deploy(
        tmp_path,
        "batched",
        """
        import json

        def main_handler(event, context):
            rs = [r["Ckafka"] for r in event["Records"]]
            print(json.dumps({"n": len(rs), "keys": sorted({r["msgKey"] for r in rs}), "s": [int(r["msgBody"]) for r in rs]}))
        """,
    )
    fabric.produce(topic, ((b"%d" % (i % 3), b"%d" % (i // 3), 0) for i in range(600)))
    attach(fabric, "batched", topic, "--batch", "50", "--from", "earliest")
    until(lambda: fabric.lag("batched") == 0, within_s=30, what="600 records finished")

    def all_said() -> list[dict[str, Any]]:
        said = fabric.said("batched")
        return said if sum(x["n"] for x in said) >= 600 else []

    said = until(all_said, within_s=20, what="lines of 600 records")
    assert all(len(x["keys"]) == 1 and x["n"] <= 50 for x in said)
    assert len(said) < 100, "records were not batched"
    for key in "012":
        assert [s for x in said if x["keys"] == [key] for s in x["s"]] == list(range(200))


def test_a_trigger_from_latest_delivers_what_is_produced_after_its_creation_and_nothing_before(
    fabric: Fabric, tmp_path: Path
) -> None:
    topic = fabric.make_topic("latest", 1)
    fabric.deploy(tmp_path, "latest", ORDERED.format(delay_s=0))
    fabric.produce(topic, [(b"k", b"1 before", 0)])
    attach(fabric, "latest", topic)
    fabric.produce(topic, [(b"k", b"2 after", 0)])
    said = until(lambda: fabric.said("latest"), within_s=20, what="the record produced after")
    until(lambda: fabric.lag("latest") == 0, within_s=10, what="lag 0")
    assert [x["s"] for x in said] == [2]


def test_a_new_version_of_the_code_takes_over_without_losing_a_record(fabric: Fabric, tmp_path: Path) -> None:
    topic = fabric.make_topic("update", 1)
    fabric.deploy(tmp_path, "update", ORDERED.format(delay_s=0.01))
    attach(fabric, "update", topic)
    fabric.produce(topic, ((b"k%d" % (i % 20), b"%d" % (i // 20), 0) for i in range(1_000)))
    until(lambda: fabric.said("update"), within_s=20, what="the first version at work")
    fabric.deploy(tmp_path, "update", ORDERED.format(delay_s=0.01).replace('"t":', '"v": 2, "t":'))
    fabric.produce(topic, ((b"k%d" % (i % 20), b"%d" % (50 + i // 20), 0) for i in range(1_000)))
    until(lambda: fabric.lag("update") == 0, within_s=60, what="all finished")
    said = fabric.wait_said("update", 2_000)
    assert {k: first_sights(v) for k, v in in_order(said).items()} == {f"k{k}": list(range(100)) for k in range(20)}
    assert any(x.get("v") == 2 for x in said)


def test_an_invocation_answers_with_scfs_result_and_log_frame(fabric: Fabric, tmp_path: Path) -> None:
    fabric.deploy(
        tmp_path,
        "hello",
        """
        import sys

        def main_handler(event, context):
            print("out"); print("err", file=sys.stderr)
            return {"event": event, "name": context["function_name"], "id": context["request_id"]}
        """,
    )
    result = fabric.invoke("hello", {"a": 1})
    answer = json.loads(result["RetMsg"])
    assert result["InvokeResult"] == 0
    assert (answer["event"], answer["name"], answer["id"]) == ({"a": 1}, "hello", result["FunctionRequestId"])

    def framed() -> list[dict[str, Any]]:
        lines = [x for x in fabric.lines("hello") if x["request_id"] == answer["id"]]
        return lines if len(lines) >= 5 else []

    lines = until(framed, within_s=10, what="the invocation's five lines")
    assert [x["stream"] for x in lines] == ["platform", "stdout", "stderr", "platform", "platform"]
    assert lines[0]["line"] == f"START RequestId: {answer['id']}"
    assert lines[3]["line"] == f"END RequestId: {answer['id']}"
    assert lines[4]["line"].startswith(f"REPORT RequestId: {answer['id']} Duration: ")


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("def main_handler(e, c):\n    raise ValueError('boom')\n", 430, "boom"),
        ("import time\ndef main_handler(e, c):\n    time.sleep(30)\n", 433, "time"),
        ("def main_handler(e, c):\n    x = bytearray(600 * 1024 * 1024)\n    return len(x)\n", 434, "emory"),
        ("import os\ndef main_handler(e, c):\n    os._exit(3)\n", 439, "exit"),
        ("raise RuntimeError('at import')\ndef main_handler(e, c):\n    pass\n", 443, "at import"),
    ],
)
def test_a_failing_function_answers_with_its_status_and_its_neighbour_keeps_working(
    fabric: Fabric, tmp_path: Path, code: str, status: int, text: str
) -> None:
    name = f"fails-{status}"
    fabric.deploy(tmp_path, name, code, "--timeout", "2")
    fabric.deploy(tmp_path, "neighbour", "def main_handler(e, c):\n    return e\n")
    ran = fabric.penstock("invoke", name, "--json")
    assert (ran.code, ran.json["InvokeResult"]) == (1 if status != 443 else ran.code, status)
    assert text in ran.json["RetMsg"] + ran.json["ErrMsg"]
    assert fabric.invoke("neighbour", [1])["RetMsg"] == "[1]"


def test_top_shows_the_function_that_just_ran(fabric: Fabric, tmp_path: Path) -> None:
    fabric.deploy(tmp_path, "busy", "def main_handler(e, c):\n    return e\n")
    for _ in range(3):
        fabric.invoke("busy", 1)

    def shown() -> bool:
        rows = fabric.ok("top", "--json").json["Functions"]
        return any("busy" in row["Key"] and row["Completed"] == 3 for row in rows)

    until(shown, within_s=15, what="top counts three completed invocations")
