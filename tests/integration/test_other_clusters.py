"""Clusters that are not the fabric's own: `up --bootstrap-servers`, and a trigger that reads from another cluster."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException

from tests.clients.python_sdk import Sdk
from tests.fabric import running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(120)]

SAYS = """
    import json

    def main_handler(event, context):
        r = event["Records"][0]["Ckafka"]
        print(json.dumps({"k": r["msgKey"], "s": int(r["msgBody"])}))
"""


def filled_topic(bootstrap: str, count: int) -> str:
    topic = f"t-{uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": bootstrap})  # kept: its futures die with it
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(20)
    producer = Producer({"bootstrap.servers": bootstrap})
    for i in range(count):
        producer.produce(topic, b"%d" % (i // 5), b"k%d" % (i % 5))
    assert producer.flush(20) == 0
    return topic


def test_a_fabric_on_a_given_cluster_starts_no_broker_and_runs_records_of_it(bootstrap: str, tmp_path: Path) -> None:
    topic = filled_topic(bootstrap, 50)
    with running_fabric(tmp_path / "data", "--bootstrap-servers", bootstrap) as fabric:
        status = fabric.status()
        assert status["endpoints"]["kafka"] == bootstrap
        assert not [p for p in status["processes"] if p["name"].startswith("kafka")]
        fabric.deploy(tmp_path, "given", SAYS)
        fabric.ok("trigger", "create", "given", "--type", "ckafka", "--topic", topic, "--from", "earliest")
        until(lambda: fabric.lag("given") == 0, within_s=30, what="records of the given cluster finished")
        assert len(fabric.wait_said("given", 50)) == 50


def test_a_trigger_reads_from_another_cluster_than_the_fabrics_own(bootstrap: str, tmp_path: Path) -> None:
    topic = filled_topic(bootstrap, 50)
    with running_fabric(tmp_path / "data") as fabric:
        assert fabric.status()["endpoints"]["kafka"] != bootstrap
        fabric.deploy(tmp_path, "other", SAYS)
        fabric.ok(
            *("trigger", "create", "other", "--type", "ckafka", "--topic", topic),
            *("--bootstrap-servers", bootstrap, "--from", "earliest"),
        )
        until(lambda: fabric.lag("other") == 0, within_s=30, what="records of the other cluster finished")
        said = fabric.wait_said("other", 50)
        assert {k: [x["s"] for x in said if x["k"] == k] for k in {x["k"] for x in said}} == {
            f"k{k}": list(range(10)) for k in range(5)
        }


def test_triggers_at_brokers_that_are_away_delay_nobody_else_and_hold_no_name(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_fabric(tmp_path_factory.mktemp("away") / "data") as fabric:
        sdk = Sdk(fabric, "POST")
        fabric.deploy(tmp_path_factory.mktemp("code"), "work", "def main_handler(event, context):\n    return event\n")
        fabric.make_topic("orders")

        def make(name: str, **desc: str) -> None:
            named = {"FunctionName": "work", "TriggerName": name, "Type": "ckafka"}
            sdk.call("CreateTrigger", **named, TriggerDesc=json.dumps({"topic": "orders", **desc}))

        def refused(number: int) -> str:
            with pytest.raises(TencentCloudSDKException) as caught:
                make(f"away{number}", bootstrapServers="127.0.0.1:1")
            return str(caught.value.get_code())

        with ThreadPoolExecutor(24) as callers:
            codes = callers.map(refused, range(24))
            for number in range(6):
                make(f"here{number}")  # within 5 s, or it is refused
            assert set(codes) == {"InvalidParameterValue.Ckafka"}
        make("away0")
