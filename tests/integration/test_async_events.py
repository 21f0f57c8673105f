"""Asynchronous invocation on a running fabric: accepted events run to their end, whatever dies; one function's crowd is its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from schemas import avro
from schemas.events import AsyncEvent
from schemas.topics import EVENTS_DEAD
from tests.clients.python_sdk import Sdk
from tests.fabric import Fabric, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(180)]

CODE = """
import time

def main_handler(event, context):
    if event.get("fail"):
        raise ValueError(event["fail"])
    print("ran", event.get("n"))
    time.sleep(event.get("sleep", 0))
    return event
"""


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("events") / "data", env={"PENSTOCK_EVENT_RETRY_S": "1"}) as running:
        running.deploy(tmp_path_factory.mktemp("code"), "work", CODE)
        running.deploy(tmp_path_factory.mktemp("code"), "other", CODE)
        yield running


@pytest.fixture
def sdk(fabric: Fabric) -> Sdk:
    return Sdk(fabric, "POST")


def send(sdk: Sdk, event: Any, function: str = "work") -> str:
    answer = sdk.call("Invoke", FunctionName=function, InvocationType="Event", ClientContext=json.dumps(event))
    return str(answer["Result"]["FunctionRequestId"])


def state(sdk: Sdk, request_id: str) -> tuple[str, int]:
    found = sdk.call("GetAsyncEventStatus", InvokeRequestId=request_id)["Result"]
    return found["Status"], found["StatusCode"]


def events_of(sdk: Sdk, function: str, **asked: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = sdk.call("ListAsyncEvents", FunctionName=function, Offset=len(found), Limit=100, **asked)
        found += page["EventList"]
        if len(found) >= page["TotalCount"]:
            return found


def dead_letters(fabric: Fabric) -> list[tuple[AsyncEvent, dict[str, bytes]]]:
    return [(avro.decode(AsyncEvent, m.value()), dict(m.headers())) for m in fabric.read_all(EVENTS_DEAD)]


def test_an_event_runs_and_its_end_and_log_are_shown(fabric: Fabric, sdk: Sdk) -> None:
    shown = fabric.ok("invoke", "work", "--async", "--payload", '{"n": 7}').out.strip()
    until(lambda: state(sdk, shown) == ("FINISHED", 200), within_s=20, what="the event is finished")
    until(lambda: "ran 7" in fabric.ok("logs", "work").out, within_s=10, what="its line is in the log")
    (listed,) = events_of(sdk, "work", InvokeRequestId=shown)
    assert listed["StartTime"] <= listed["EndTime"]


def test_a_failing_event_is_tried_as_often_as_configured_and_stands_whole_with_the_dead(
    fabric: Fabric, sdk: Sdk
) -> None:
    sdk.call(
        "UpdateFunctionEventInvokeConfig",
        FunctionName="work",
        AsyncTriggerConfig={"RetryConfig": [{"RetryNum": 1}], "MsgTTL": 600},
    )
    request_id = send(sdk, {"fail": "no luck", "keep": "é"})
    until(lambda: state(sdk, request_id) == ("FAILED", 430), within_s=30, what="the event has failed")
    ((event, headers),) = [(e, h) for e, h in dead_letters(fabric) if e.request_id == request_id]
    assert json.loads(event.event) == {"fail": "no luck", "keep": "é"}
    assert (event.failures, headers["penstock-reason"]) == (2, b"430")
    assert json.loads(headers["penstock-error"])["requestId"] == request_id
    rows = sdk.call("GetRequestStatus", FunctionName="work", FunctionRequestId=request_id)["Data"]
    assert [row["RetCode"] for row in rows] == [-1, -1]


def test_a_running_event_and_a_waiting_one_are_ended_when_asked(sdk: Sdk) -> None:
    running, waiting = send(sdk, {"sleep": 2, "n": 0}), send(sdk, {"fail": "again"})
    until(lambda: state(sdk, waiting)[1] == 430, within_s=20, what="the event failed once")
    for request_id in (running, waiting):
        sdk.call("TerminateAsyncEvent", FunctionName="work", InvokeRequestId=request_id)
    both = (running, waiting)
    until(lambda: all(state(sdk, r)[0] != "RUNNING" for r in both), within_s=10, what="both events are over")
    assert [state(sdk, r)[0] for r in (running, waiting)] == ["ABORTED", "ABORTED"]
    assert sdk.code("TerminateAsyncEvent", FunctionName="work", InvokeRequestId=running) == "FailedOperation"


def test_events_of_a_crowded_function_keep_no_other_waiting(sdk: Sdk) -> None:
    with ThreadPoolExecutor(8) as senders:
        slow = set(senders.map(lambda n: send(sdk, {"sleep": 0.5, "n": n}), range(600)))
        began = time.monotonic()
        fast = set(senders.map(lambda n: send(sdk, {"n": n}, "other"), range(40)))

        def ended(function: str) -> set[str]:
            return {event["InvokeRequestId"] for event in events_of(sdk, function, Status=["FINISHED"])}

        until(lambda: ended("other") >= fast, within_s=30, what="the other function's events are done")
        took = time.monotonic() - began
        assert slow - ended("work"), f"the slow ones were done before the fast ones, after {took:.1f} s: no crowd"
        until(lambda: ended("work") >= slow, within_s=90, what="the crowd is done", every_s=0.5)


def test_a_killed_gateway_loses_no_accepted_event(fabric: Fabric, sdk: Sdk) -> None:
    accepted = {send(sdk, {"sleep": 0.3, "n": n}) for n in range(100)}
    killed_at = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"
    pid = fabric.kill("gateway")
    fabric.wait_back("gateway", pid)

    def finished() -> list[dict[str, Any]]:
        return [e for e in events_of(sdk, "work", Status=["FINISHED"]) if e["InvokeRequestId"] in accepted]

    until(lambda: len(finished()) == len(accepted), within_s=60, what="all events are finished", every_s=0.3)
    assert sum(event["EndTime"] > killed_at for event in finished()) > 20, "nearly all were done before the kill"


def test_a_killed_agent_costs_an_event_no_try(fabric: Fabric, sdk: Sdk, tmp_path: Path) -> None:
    request_id = send(sdk, {"sleep": 1.5, "n": 1})
    time.sleep(0.5)
    pid = fabric.kill("agent")
    fabric.wait_back("agent", pid)
    until(lambda: state(sdk, request_id) == ("FINISHED", 200), within_s=30, what="the event ran on the new agent")
    assert not [e for e, _ in dead_letters(fabric) if e.request_id == request_id]


def test_events_of_a_function_with_a_reservation_wait_their_turn(sdk: Sdk) -> None:
    sdk.call("PutReservedConcurrencyConfig", FunctionName="other", ReservedConcurrencyMem=256)
    began = time.monotonic()
    accepted = {send(sdk, {"sleep": 0.05, "n": n}, "other") for n in range(80)}

    def done() -> set[str]:
        return {event["InvokeRequestId"] for event in events_of(sdk, "other", Status=["FINISHED"])}

    until(lambda: done() >= accepted, within_s=60, what="all events ran, two at a time", every_s=0.3)
    assert time.monotonic() - began > 80 * 0.05 / 2
    sdk.call("DeleteReservedConcurrencyConfig", FunctionName="other")
