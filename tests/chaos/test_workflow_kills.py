"""SIGKILL of every part of the control plane at every step of a create and of a delete, of functions and of triggers.

Each cell of the matrix is a named fault point (infra/faults.py), so it is hit and not hoped for: a module after it took a step, after it did
it, and after it answered; streams after it kept a decision and after it told it; the gateway and the broker while a step is under way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka.admin import AdminClient

from infra.app.client import connect
from infra.app.state import choose_folder
from schemas.errors import ApiUnavailable, BadRequest
from streams.sagas import WORKFLOWS
from tests.api_fakes import creation
from tests.fabric import Fabric, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.chaos, pytest.mark.timeout(150)]
OWNERS = {"code": "agent", "network": "agent", "compute": "agent", "route": "gateway", "trigger": "gateway"}
OF_FUNCTIONS, OF_TRIGGERS = ("create-function", "delete-function"), ("create-trigger", "delete-trigger")
TELLS = """
    def main_handler(event, context):
        print("got", event["Records"][0]["Ckafka"]["msgBody"])
"""


class Cell(NamedTuple):
    workflow: str
    point: str
    victim: str

    def __str__(self) -> str:
        return f"{self.workflow}-{self.point}-{self.victim}"


def cells(workflows: tuple[str, str]) -> Iterator[Cell]:
    for workflow in workflows:
        for step in WORKFLOWS[workflow].steps:
            name = f"{step.module}.{step.operation}"
            owner = OWNERS[step.module]
            for moment in ("taken", "done", "answered"):
                yield Cell(workflow, f"step.{name}.{moment}", owner)
            for moment in ("kept", "published"):
                yield Cell(workflow, f"saga.{workflow}.{name}.{moment}", "streams")
            for victim in {"gateway", "kafka"} - {owner}:
                yield Cell(workflow, f"step.{name}.done", victim)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory, faults: Path) -> Iterator[Fabric]:
    folder = tmp_path_factory.mktemp("workflow-kills") / "data"
    with running_fabric(folder, env={"PENSTOCK_FAULTS": str(faults)}) as running:
        yield running


class Desk:
    """Calls that are made again while a part of the fabric is away."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        return connect(choose_folder(str(self._fabric.data_dir))).call(action, fields)

    def status(self, name: str) -> str:
        """`gone` when there is no such function; empty when nobody answers."""
        try:
            return str(self.call("GetFunction", FunctionName=name)["Status"])
        except ApiUnavailable:
            return ""
        except BadRequest as exc:
            return "gone" if exc.api_code == "ResourceNotFound.FunctionName" else ""

    def wait(self, name: str, status: str) -> None:
        until(lambda: self.status(name) == status, within_s=90, what=f"{name} is {status}", every_s=0.1)

    def histories(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []

        def told() -> bool:
            ran = self._fabric.penstock("workflow", "list", name, "--json")
            found[:] = ran.json if ran.code == 0 else []
            return len(found) == 2 and all(row["state"] == "succeeded" for row in found)

        until(told, within_s=30, what=f"both workflows of {name} have succeeded: {found}", every_s=0.3)
        return found


def arm(faults: Path, cell: Cell, pid: int) -> None:
    """The next time that the point is passed, the victim is killed there."""
    (faults / "next").write_text(str(pid))
    (faults / "next").rename(faults / cell.point)


def assert_struck(fabric: Fabric, faults: Path, cell: Cell, pid: int) -> None:
    assert (faults / f"{cell.point}.struck").exists(), "the fault point was not hit"
    (faults / f"{cell.point}.struck").unlink()
    fabric.wait_back(cell.victim, pid)


@pytest.mark.parametrize("cell", list(cells(OF_FUNCTIONS)), ids=str)
def test_whatever_dies_at_whatever_step_the_workflow_ends_right(
    fabric: Fabric, faults: Path, cell: Cell, request: pytest.FixtureRequest
) -> None:
    desk = Desk(fabric)
    name = f"f{list(cells(OF_FUNCTIONS)).index(cell)}x"
    pid = fabric.pid(cell.victim)
    if cell.workflow == "create-function":
        arm(faults, cell, pid)
    desk.call("CreateFunction", **creation(name))
    desk.wait(name, "Active")
    if cell.workflow == "delete-function":
        arm(faults, cell, pid)
    else:
        until(lambda: fabric.invoke(name, {"n": 1})["InvokeResult"] == 0, within_s=60, what="it runs", every_s=0.3)
    until(lambda: _deleted(desk, name), within_s=60, what="the delete is taken", every_s=0.3)
    desk.wait(name, "gone")
    assert_struck(fabric, faults, cell, pid)
    for row in desk.histories(name):
        _check_history(fabric, row)


def _deleted(desk: Desk, name: str) -> bool:
    """Asked until it is taken: an answer that was lost may have been a yes."""
    try:
        desk.call("DeleteFunction", FunctionName=name)
    except ApiUnavailable:
        return False
    except BadRequest as exc:
        return exc.api_code in ("ResourceNotFound.FunctionName", "FailedOperation.FunctionStatusError")
    return True


def _check_history(fabric: Fabric, row: dict[str, Any]) -> None:
    events = fabric.ok("workflow", "show", row["id"], "--json").json["events"]
    done = [event["step"] for event in events if event["given"] == "done"]
    assert done == [f"{row['id']}/{n}" for n in range(len(WORKFLOWS[row["workflow"]].steps))], (
        "each step, once, in order"
    )
    fabric.ok("workflow", "replay", row["id"])


@pytest.fixture(scope="module")
def topic(fabric: Fabric, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A topic, and the function `tells` for its triggers, which goes at the end."""
    fabric.deploy(tmp_path_factory.mktemp("tells"), "tells", TELLS)
    yield fabric.make_topic("told", 2)
    desk = Desk(fabric)
    desk.call("DeleteFunction", FunctionName="tells")
    desk.wait("tells", "gone")


@pytest.mark.parametrize("cell", list(cells(OF_TRIGGERS)), ids=str)
def test_whatever_dies_while_a_trigger_is_made_or_deleted_it_works_or_is_gone(
    fabric: Fabric, faults: Path, topic: str, cell: Cell
) -> None:
    desk = Desk(fabric)
    number = list(cells(OF_TRIGGERS)).index(cell)
    named = {"FunctionName": "tells", "TriggerName": f"t{number}", "Type": "ckafka"}
    pid = fabric.pid(cell.victim)
    if cell.workflow == "create-trigger":
        arm(faults, cell, pid)
    asked = {**named, "TriggerDesc": json.dumps({"topic": topic})}
    until(lambda: _made(desk, asked), within_s=60, what="made", every_s=0.3)
    fabric.produce(topic, [(b"k", f"n{number}".encode(), number % 2)])
    until(lambda: f"got n{number}" in fabric.penstock("logs", "tells").out, within_s=60, what="it runs", every_s=0.3)
    if cell.workflow == "delete-trigger":
        arm(faults, cell, pid)
    until(
        lambda: _took(desk, "DeleteTrigger", named, "ResourceNotFound.Trigger"), within_s=60, what="gone", every_s=0.3
    )
    until((faults / f"{cell.point}.struck").exists, within_s=30, what="the fault point is hit")
    assert_struck(fabric, faults, cell, pid)
    until(lambda: _groups(fabric) == [], within_s=60, what="no consumer group is left", every_s=0.3)
    until(lambda: not _running(fabric), within_s=60, what="no workflow is left", every_s=0.3)


def _made(desk: Desk, asked: dict[str, Any]) -> bool:
    """A trigger whose making is still under way is in use too, and begins at the end that the topic will have then."""
    if not _took(desk, "CreateTrigger", asked, "ResourceInUse.Trigger"):
        return False
    found = desk.call("ListTriggers", FunctionName=asked["FunctionName"])["Triggers"]
    return any(trigger["TriggerName"] == asked["TriggerName"] for trigger in found)


def _took(desk: Desk, action: str, fields: dict[str, Any], done_already: str) -> bool:
    """Asked until it is taken: an answer that was lost may have been a yes, and a refusal for a part that is away is none for good."""
    try:
        desk.call(action, **fields)
    except ApiUnavailable:
        return False
    except BadRequest as exc:
        return exc.api_code == done_already
    return True


def _groups(fabric: Fabric) -> list[str]:
    """Consumer groups of the function's triggers."""
    admin = AdminClient({"bootstrap.servers": fabric.bootstrap})
    listed = admin.list_consumer_groups(request_timeout=10).result(15)
    return [group.group_id for group in listed.valid if ".tells." in group.group_id]


def _running(fabric: Fabric) -> list[Any]:
    rows = fabric.ok("workflow", "list", "--json").json
    return [row for row in rows if row["state"] in ("running", "undoing")]


def test_nothing_is_left_of_what_was_made_and_deleted(fabric: Fabric) -> None:
    desk = Desk(fabric)
    assert [f["FunctionName"] for f in desk.call("ListFunctions")["Functions"]] in ([], ["tells"])
    assert _running(fabric) == []
