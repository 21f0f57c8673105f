"""Limits of concurrency on a real fabric: what is reserved is never exceeded, 0 blocks, a topic's records wait, and workers are kept ready."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException

from infra.app.client import Client
from infra.credentials import Credentials
from tests.clients.client import zip_of
from tests.clients.python_sdk import Sdk
from tests.fabric import Fabric, running_fabric, until
from tests.integration.test_tenants import another_gateway

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(150)]

SLOW = """
import json, time

def main_handler(event, context):
    began = time.monotonic()
    time.sleep(0.5)
    said = {"began": began, "ended": time.monotonic()}
    if "Records" in event:
        print(json.dumps(said), flush=True)
    return said
"""
SLOW_TO_LOAD = SLOW.replace("def main", "LOADED = time.monotonic()\ntime.sleep(1)\n\ndef main").replace(
    "said = {", 'said = {"loaded": LOADED, '
)
PUT = "PutReservedConcurrencyConfig"


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("concurrency") / "data") as running:
        yield running


@pytest.fixture
def client(fabric: Fabric) -> Sdk:
    return Sdk(fabric, "POST")


def create(client: Sdk, name: str, code: str = SLOW) -> dict[str, str]:
    client.call(
        "CreateFunction", FunctionName=name, Handler="index.main_handler", Runtime="Python3.10",
        Code={"ZipFile": zip_of("x", code=code)}, Timeout=10,
    )  # fmt: skip
    assert client.settled(name)["Status"] == "Active"
    return {"FunctionName": name}


def at_once(runs: list[dict[str, float]]) -> int:
    """The most that ran at one moment."""
    return max(sum(other["began"] <= run["began"] < other["ended"] for other in runs) for run in runs)


def invoked(fabric: Fabric, name: str, times: int, **more: Any) -> list[dict[str, Any]]:
    """Results of so many invocations that were sent at once, each by a connection of its own."""
    clients = [Sdk(fabric, "POST") for _ in range(times)]
    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(lambda client: client.invoke(name, {}, **more), clients))


def test_no_more_run_at_once_than_are_reserved_and_the_others_get_432(fabric: Fabric, client: Sdk) -> None:
    one = create(client, "two-workers")
    client.call(PUT, **one, ReservedConcurrencyMem=256)
    assert client.call("GetReservedConcurrencyConfig", **one)["ReservedMem"] == 256
    answers = invoked(fabric, "two-workers", 10)
    ran = [json.loads(a["RetMsg"]) for a in answers if a["InvokeResult"] == 0]
    refused = [a for a in answers if a["InvokeResult"] != 0]
    assert len(ran) >= 2
    assert at_once(ran) <= 2
    assert {a["InvokeResult"] for a in refused} == {432}, refused
    assert all("256 of 256 MB" in a["ErrMsg"] for a in refused)
    client.call("DeleteReservedConcurrencyConfig", **one)
    answers = invoked(fabric, "two-workers", 6)
    assert [a["InvokeResult"] for a in answers] == [0] * 6


def test_nothing_reserved_blocks_the_function_until_the_reservation_is_deleted(client: Sdk) -> None:
    one = create(client, "blocked")
    client.call(PUT, **one, ReservedConcurrencyMem=0)
    assert client.invoke("blocked", {})["InvokeResult"] == 432
    client.call("DeleteReservedConcurrencyConfig", **one)
    assert client.invoke("blocked", {})["InvokeResult"] == 0


def test_a_topics_records_wait_for_what_is_reserved_and_none_is_given_up(fabric: Fabric, client: Sdk) -> None:
    one, topic = create(client, "waiting"), fabric.make_topic("waiting")
    client.call(PUT, **one, ReservedConcurrencyMem=256)
    fabric.ok(
        "trigger", "create", "waiting", "--type", "ckafka", "--topic", topic, "--from", "earliest",
        "--concurrency", "16", "--retries", "0",
    )  # fmt: skip
    fabric.produce(topic, ((b"%d" % n, b"%d" % n, 0) for n in range(12)))
    until(lambda: fabric.lag("waiting") == 0, within_s=30, what="12 records finished", every_s=0.2)
    ran = fabric.wait_said("waiting", 12)
    assert len(ran) == 12
    assert at_once(ran) == 2
    assert [p["dead"] for p in fabric.partitions("waiting")] == [0]


def test_a_reservation_goes_with_its_function(fabric: Fabric, client: Sdk) -> None:
    one = create(client, "gone")
    client.call(PUT, **one, ReservedConcurrencyMem=0)
    client.call("DeleteFunction", **one)

    def is_gone() -> bool:
        return "gone" not in [f["FunctionName"] for f in client.call("ListFunctions")["Functions"]]

    until(is_gone, within_s=10, what="the function is gone")
    create(client, "gone")

    def free() -> bool:
        return bool(client.call("GetReservedConcurrencyConfig", **one)["ReservedMem"] is None)

    until(free, within_s=5, what="its reservation is gone too")
    assert client.invoke("gone", {})["InvokeResult"] == 0


def provision(client: Sdk, one: dict[str, str]) -> dict[str, Any]:
    [row] = client.call("GetProvisionedConcurrencyConfig", **one)["Allocated"]
    return dict(row)


def activity(fabric: Fabric, name: str) -> dict[str, Any]:
    """What streams counts of a function."""
    keys = Credentials(**json.loads((fabric.data_dir / "credentials.json").read_text()))
    rows = Client(str(fabric.status()["endpoints"]["api"]), keys).call("GetActivity", {})["Functions"]
    return next((row for row in rows if row["Key"].endswith(f"/{name}")), {})


def test_provisioned_workers_are_ready_before_they_are_called_and_stay(fabric: Fabric, client: Sdk) -> None:
    one = create(client, "provisioned", SLOW_TO_LOAD)
    assert client.call("PublishVersion", **one)["FunctionVersion"] == "1"
    client.call("PutProvisionedConcurrencyConfig", **one, Qualifier="1", VersionProvisionedConcurrencyNum=2)
    assert provision(client, one)["Status"] == "InProgress", "they take a second to load"
    until(lambda: provision(client, one)["Status"] == "Done", within_s=20, what="two workers are ready")
    assert provision(client, one)["AvailableProvisionedConcurrencyNum"] == 2
    done_s = time.monotonic()
    runs = [json.loads(a["RetMsg"]) for a in invoked(fabric, "provisioned", 2, Qualifier="1")]
    assert len({run["loaded"] for run in runs}) == 2, "each in a worker of its own"
    assert all(run["loaded"] < done_s for run in runs), "loaded before it was called"
    until(lambda: activity(fabric, "provisioned").get("Completed") == 2, within_s=10, what="both are counted")
    assert activity(fabric, "provisioned")["Cold"] == [2, 0, 0, 0, 0, 0]
    assert (
        client.call("ListFunctions", SearchKey="provisioned")["Functions"][0]["TotalProvisionedConcurrencyMem"] == 256
    )
    fabric.wait_back("agent", fabric.kill("agent"))
    until(lambda: provision(client, one)["Status"] == "Done", within_s=20, what="they are back after the agent died")
    again = [json.loads(a["RetMsg"]) for a in invoked(fabric, "provisioned", 2, Qualifier="1")]
    assert len({run["loaded"] for run in (*runs, *again)}) == 4
    until(lambda: activity(fabric, "provisioned").get("Completed") == 4, within_s=10, what="all are counted")
    assert activity(fabric, "provisioned")["Cold"] == [4, 0, 0, 0, 0, 0]
    client.call("DeleteProvisionedConcurrencyConfig", **one, Qualifier="1")
    assert client.call("GetProvisionedConcurrencyConfig", **one)["Allocated"] == []


def test_a_version_that_can_not_start_is_failed_with_the_reason(client: Sdk) -> None:
    one = create(
        client,
        "unloadable",
        "import os\n\nif os.getpid():\n    raise OSError('no such table')\n\ndef main_handler(e, c): ...",
    )
    client.call("PublishVersion", **one)
    client.call("PutProvisionedConcurrencyConfig", **one, Qualifier="1", VersionProvisionedConcurrencyNum=1)
    until(lambda: provision(client, one)["Status"] == "Failed", within_s=20, what="it failed")
    assert "no such table" in provision(client, one)["StatusReason"]
    client.call("DeleteFunction", **one)

    def provisioned_mib() -> int:
        return int(client.call("GetAccount")["AccountUsage"]["Namespace"][0]["TotalAllocatedProvisionedMem"])

    until(lambda: provisioned_mib() == 0, within_s=10, what="the provision went with its function")


def test_two_gateways_do_not_reserve_more_than_there_is_and_each_goes_by_what_the_other_was_told(
    fabric: Fabric, client: Sdk
) -> None:
    names = ["half-1", "half-2"]
    for name in names:
        create(client, name)
    with another_gateway(fabric) as endpoint:
        callers = [client, Sdk(fabric, "POST", endpoint=endpoint)]

        def put(caller: Sdk, name: str) -> str:
            try:
                caller.call(PUT, FunctionName=name, ReservedConcurrencyMem=60_000)
            except TencentCloudSDKException as exc:
                return str(exc.get_code())
            return ""

        with ThreadPoolExecutor(2) as threads:
            codes = list(threads.map(put, callers, names))
        assert sorted(codes) == ["", "FailedOperation.ReservedExceedTotal"]
        blocked = names[codes.index("")]
        callers[0].call(PUT, FunctionName=blocked, ReservedConcurrencyMem=0)
        until(
            lambda: callers[1].invoke(blocked, {})["InvokeResult"] == 432,
            within_s=5,
            what="the other gateway blocks too",
        )
        callers[1].call("DeleteReservedConcurrencyConfig", FunctionName=blocked)
        until(
            lambda: callers[0].invoke(blocked, {})["InvokeResult"] == 0, within_s=5, what="the first one lets in again"
        )


def test_what_is_not_built_of_provisions_is_refused_by_name(client: Sdk) -> None:
    fields = {"FunctionName": "x1", "Qualifier": "1", "VersionProvisionedConcurrencyNum": 1}
    actions = [{"TriggerName": "t", "TriggerProvisionedConcurrencyNum": 1, "TriggerCronConfig": "0 0 0 * * * *"}]
    assert client.code("PutProvisionedConcurrencyConfig", **fields, TriggerActions=actions) == "UnsupportedOperation"
