"""Asynchronous invocation by the cloud API: what is accepted, refused and shown (ingest.api.events)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from schemas.events import EventState
from schemas.limits import ASYNC_EVENT_BYTES
from schemas.records import EventPolicy
from tests.api_fakes import APPID, FakeFabric, creation
from tests.unit.test_api_versions import ask, code

F = {"FunctionName": "hello"}
EVENT = {**F, "InvocationType": "Event"}


@pytest.fixture
async def fabric() -> FakeFabric:
    made = FakeFabric()
    await ask(made, "CreateFunction", creation())
    return made


async def accepted(fabric: FakeFabric, **more: Any) -> str:
    answer = await ask(fabric, "Invoke", {**EVENT, **more})
    assert "Error" not in answer, answer
    result = answer["Result"]
    assert (result["InvokeResult"], result["RetMsg"], result["Log"], result["Duration"]) == (0, "", "", 0)
    return str(result["FunctionRequestId"])


async def test_an_event_is_accepted_whole_and_nothing_runs_in_the_call(fabric: FakeFabric) -> None:
    request_id = await accepted(fabric, ClientContext='{"a": "é"}')
    (event,) = fabric.events.accepted
    assert (event.request_id, event.appid, event.function) == (request_id, APPID, "hello")
    assert (event.event, event.qualifier, event.version) == ('{"a": "é"}'.encode(), "$LATEST", "$LATEST")
    assert not fabric.invoker.calls
    answer = await ask(fabric, "GetAsyncEventStatus", {"InvokeRequestId": request_id})
    assert answer["Result"] == {"Status": "RUNNING", "StatusCode": 0, "InvokeRequestId": request_id}


async def test_an_alias_is_a_version_from_then_on(fabric: FakeFabric) -> None:
    await ask(fabric, "PublishVersion", F)
    await ask(fabric, "CreateAlias", {**F, "Name": "prod", "FunctionVersion": "1"})
    await accepted(fabric, Qualifier="prod")
    assert (fabric.events.accepted[0].qualifier, fabric.events.accepted[0].version) == ("prod", "1")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ClientContext": '"' + "x" * (ASYNC_EVENT_BYTES - 2) + '"'}, ""),
        ({"ClientContext": '"' + "x" * (ASYNC_EVENT_BYTES - 1) + '"'}, "InvalidParameter.RequestTooLarge"),
        ({"ClientContext": "{"}, "InvalidParameterValue.ClientContext"),
        ({"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
        ({"Qualifier": "7"}, "ResourceNotFound.Qualifier"),
        ({"RoutingKey": "[]"}, "InvalidParameter.RoutingConfig"),
    ],
)
async def test_an_event_that_could_not_run_is_refused(fabric: FakeFabric, fields: Any, expected: str) -> None:
    assert await code(fabric, "Invoke", {**EVENT, **fields}) == expected
    assert bool(fabric.events.accepted) == (expected == "")


async def test_a_functions_configuration_for_events_is_shown_changed_and_kept(fabric: FakeFabric) -> None:
    async def shown() -> tuple[int, int]:
        found = (await ask(fabric, "GetFunctionEventInvokeConfig", F))["AsyncTriggerConfig"]
        return found["RetryConfig"][0]["RetryNum"], found["MsgTTL"]

    assert await shown() == (2, 21_600)
    for config, expected in (
        ({"RetryConfig": [{"RetryNum": 0}], "MsgTTL": 60}, (0, 60)),
        ({"MsgTTL": 120}, (0, 120)),
        ({"RetryConfig": [{"RetryNum": 1}]}, (1, 120)),
        ({}, (1, 120)),
    ):
        await ask(fabric, "UpdateFunctionEventInvokeConfig", {**F, "AsyncTriggerConfig": config})
        assert await shown() == expected
    assert fabric.streams.sent[-1].events == EventPolicy(1, 120)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"RetryConfig": [{"RetryNum": 3}]}, "LimitExceeded.RetryNum"),
        ({"RetryConfig": [{"RetryNum": -1}]}, "LimitExceeded.RetryNum"),
        ({"RetryConfig": [{}]}, "MissingParameter"),
        ({"RetryConfig": [{"RetryNum": 1}, {"RetryNum": 1}]}, "InvalidParameterValue.AsyncTriggerConfig"),
        ({"MsgTTL": 59}, "LimitExceeded.MsgTTL"),
        ({"MsgTTL": 21_601}, "LimitExceeded.MsgTTL"),
        (None, "MissingParameter"),
    ],
)
async def test_a_configuration_that_can_not_be_is_refused(fabric: FakeFabric, config: Any, expected: str) -> None:
    assert await code(fabric, "UpdateFunctionEventInvokeConfig", {**F, "AsyncTriggerConfig": config}) == expected
    assert all(command.kind == "create-function" for command in fabric.streams.sent)


async def test_events_are_listed_by_what_is_asked(fabric: FakeFabric) -> None:
    ids = [await accepted(fabric) for _ in range(4)]
    for n, request_id in enumerate(ids):
        state = fabric.events.states[request_id]
        ended = 0 if n == 0 else 1_790_000_000_000 + 10_000 * n
        fate = (EventState.RUNNING, EventState.FINISHED, EventState.FAILED, EventState.ABORTED)[n]
        at_ms = 1_780_000_000_000 + 1_000 * n
        fabric.events.states[request_id] = replace(state, state=fate, accepted_unix_ms=at_ms, ended_unix_ms=ended)

    async def listed(**asked: Any) -> list[int]:
        answer = await ask(fabric, "ListAsyncEvents", {**F, **asked})
        assert "Error" not in answer, answer
        return [ids.index(event["InvokeRequestId"]) for event in answer["EventList"]]

    assert await listed() == [3, 2, 1, 0]
    assert await listed(Order="ASC", Limit=2, Offset=1) == [1, 2]
    assert await listed(Order="ASC", Orderby="EndTime") == [0, 1, 2, 3]
    assert await listed(Status=["FAILED", "ABORTED"]) == [3, 2]
    assert await listed(InvokeRequestId=ids[1]) == [1]
    assert await listed(Qualifier="1") == await listed(InvokeType=["TRIGGER_TIMER"]) == []
    assert await listed(StartTimeInterval={"Start": "2026-05-28 20:26:41", "End": "2026-05-28 20:26:43"}) == [2, 1]
    assert await listed(EndTimeInterval={"Start": "", "End": "2026-09-21 14:13:40"}) == [1]
    answer = await ask(fabric, "ListAsyncEvents", {**F, "InvokeRequestId": ids[1]})
    assert answer["TotalCount"] == 1
    assert answer["EventList"][0] == {
        "InvokeRequestId": ids[1],
        "InvokeType": "INVOKE",
        "Qualifier": "$LATEST",
        "Status": "FINISHED",
        "StartTime": "2026-05-28 20:26:41.000000",
        "EndTime": "2026-09-21 14:13:30.000000",
    }


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"Limit": 101}, "InvalidParameterValue.Limit"),
        ({"Status": ["DONE"]}, "InvalidParameterValue"),
        ({"Orderby": "Name"}, "InvalidParameterValue.OrderBy"),
        ({"InvokeRequestId": "x"}, "InvalidParameterValue"),
        ({"StartTimeInterval": {"Start": "yesterday"}}, "InvalidParameterValue"),
        ({"FunctionName": "none"}, "ResourceNotFound.FunctionName"),
    ],
)
async def test_a_listing_that_can_not_be_is_refused(fabric: FakeFabric, asked: Any, expected: str) -> None:
    await accepted(fabric)
    assert await code(fabric, "ListAsyncEvents", {**F, **asked}) == expected


async def test_only_a_running_event_of_the_function_is_terminated(fabric: FakeFabric) -> None:
    request_id = await accepted(fabric)
    asked = {**F, "InvokeRequestId": request_id}
    assert await code(fabric, "TerminateAsyncEvent", {**asked, "GraceShutdown": True}) == "UnsupportedOperation"
    assert await code(fabric, "TerminateAsyncEvent", {**asked, "GraceShutdown": False}) == ""
    assert [wish.request_id for wish in fabric.events.terminated] == [request_id]
    none = str(uuid4())
    assert await code(fabric, "TerminateAsyncEvent", {**F, "InvokeRequestId": none}) == "ResourceNotFound.AsyncEvent"
    state = fabric.events.states[request_id]
    fabric.events.states[request_id] = replace(state, state=EventState.FINISHED)
    assert await code(fabric, "TerminateAsyncEvent", asked) == "FailedOperation"
    assert len(fabric.events.terminated) == 1


async def test_another_tenants_event_is_not_there(fabric: FakeFabric) -> None:
    request_id = await accepted(fabric)
    state = fabric.events.states[request_id]
    fabric.events.states[request_id] = replace(state, key="1250000099/default/hello")
    assert await code(fabric, "GetAsyncEventStatus", {"InvokeRequestId": request_id}) == "ResourceNotFound.AsyncEvent"
    listed = await ask(fabric, "ListAsyncEvents", F)
    assert json.dumps(listed).count(request_id) == 0
