"""`penstock workflow`, over the API in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from schemas.records import StatusReason, WorkflowRecord
from streams import sagas
from streams.sagas import Ended, Given, Kind, Saga
from tests.api_fakes import APPID


def a_workflow(workflow_id: str, *answers: Given, appid: str = APPID, function: str = "hello") -> WorkflowRecord:
    then: Saga | Ended | None = sagas.start(workflow_id, "create-function", 1_700_000_000_000, None)
    for given in answers:
        assert isinstance(then, Saga)
        then = sagas.take(then, given)
    assert then is not None
    saga, ended = (then, None) if isinstance(then, Saga) else (then.saga, then)
    return sagas.history(saga, f"{appid}/default/{function}", ended)


AWAY = (StatusReason("StoreUnavailable", "the object store is away"),)
BAD = (StatusReason("InvalidParameterValue.Handler", "index.py has no main_handler"),)
AT_MS = 1_700_000_000_100


async def test_workflows_are_listed_and_say_what_they_wait_for(make_desk: Any) -> None:
    async with make_desk() as desk:
        desk.fabric.workflows.records = [
            a_workflow("w1"),
            a_workflow("w2", Given(Kind.RETRYABLE, AT_MS, "w2/0", 1, AWAY), function="other"),
            a_workflow("w3", Given(Kind.FAILED, AT_MS, "w3/0", 1, BAD)),
            a_workflow("w4", appid="1250000099"),
        ]
        listed = {row["id"]: row for row in (await desk.run("workflow", "list", "--json")).json}
        assert set(listed) == {"w1", "w2", "w3"}, "another tenant's is not shown"
        assert "module code to store" in listed["w1"]["waits_for"]
        assert "attempt 1" in listed["w2"]["waits_for"]
        assert "the object store is away" in listed["w2"]["waits_for"]
        assert (listed["w3"]["state"], listed["w3"]["waits_for"], listed["w3"]["took_ms"]) == ("failed", "", 100)
        only = (await desk.run("workflow", "list", "other", "--json")).json
        assert [row["id"] for row in only] == ["w2"]
        failed = (await desk.run("workflow", "list", "--state", "failed", "--json")).json
        assert [row["id"] for row in failed] == ["w3"]
        said = await desk.run("workflow", "list")
        assert (said.code, "default/other" in said.out) == (0, True)


async def test_a_workflow_is_shown_step_by_step_and_replayed(make_desk: Any) -> None:
    async with make_desk() as desk:
        whole = a_workflow("w1", *(Given(Kind.DONE, AT_MS + n, f"w1/{n}", 1) for n in range(5)))
        desk.fabric.workflows.records = [whole]
        shown = await desk.run("workflow", "show", "w1")
        assert (shown.code, "send network attach" in shown.out, "succeeded" in shown.out) == (0, True, True)
        events = (await desk.run("workflow", "show", "w1", "--json")).json["events"]
        assert [event["given"] for event in events] == ["begin"] + ["done"] * 5
        again = await desk.run("workflow", "replay", "w1")
        assert (again.code, "the same decisions come out" in again.out) == (0, True)
        desk.fabric.workflows.records = [replace(whole, events=whole.events[:3] + whole.events[4:])]
        other = await desk.run("workflow", "replay", "w1")
        assert (other.code, "other decisions come out" in other.out) == (1, True)
        desk.fabric.workflows.records = [replace(whole, left_out=1)]
        assert (await desk.run("workflow", "replay", "w1")).code == 1
        missing = await desk.run("workflow", "show", "w9")
        assert (missing.code, "no workflow" in missing.err) == (1, True)
