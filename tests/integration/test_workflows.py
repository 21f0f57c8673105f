"""Workflows of a real fabric, as an operator sees them; and one whose module stands still."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.app.client import connect
from infra.app.state import choose_folder
from tests.api_fakes import creation
from tests.fabric import Fabric, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(180)]
STEPS = ["code store", "code check", "network attach", "compute prepare", "route publish"]


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("workflows") / "data") as running:
        yield running


def call(fabric: Fabric, action: str, **fields: Any) -> dict[str, Any]:
    return connect(choose_folder(str(fabric.data_dir))).call(action, fields)


def newest(fabric: Fabric, function: str, workflow: str = "") -> dict[str, Any]:
    found = fabric.ok("workflow", "list", function, "--json").json
    return next(dict(row) for row in found if workflow in ("", row["workflow"]))


def test_a_create_and_a_delete_can_be_traced_and_replayed(fabric: Fabric, tmp_path: Path) -> None:
    fabric.deploy(tmp_path, "traced", "def main_handler(event, context):\n    return event\n")
    made = newest(fabric, "traced")
    assert (made["workflow"], made["state"], made["waits_for"]) == ("create-function", "succeeded", "")
    events = fabric.ok("workflow", "show", made["id"], "--json").json["events"]
    assert [f"{e['module']} {e['operation']}" for e in events if e["decided"] == "send"] == STEPS
    assert [e["given"] for e in events] == ["begin"] + ["done"] * len(STEPS)
    assert "the same decisions come out" in fabric.ok("workflow", "replay", made["id"]).out
    call(fabric, "DeleteFunction", FunctionName="traced")
    until(lambda: newest(fabric, "traced")["state"] == "succeeded", within_s=20, what="the delete is done")
    gone = newest(fabric, "traced")
    assert gone["workflow"] == "delete-function"
    fabric.ok("workflow", "replay", gone["id"])


def test_a_step_that_fails_is_told_with_its_reason_and_nothing_after_it_is_done(fabric: Fabric, tmp_path: Path) -> None:
    home = tmp_path / "broken"
    home.mkdir()
    (home / "index.py").write_text("def other(event, context):\n    return 1\n")
    ran = fabric.penstock("deploy", str(home), "--name", "broken", "--handler", "index.main_handler")
    assert ran.code == 1
    failed = newest(fabric, "broken", "create-function")
    assert failed["state"] == "failed"
    events = fabric.ok("workflow", "show", failed["id"], "--json").json["events"]
    assert [e["given"] for e in events] == ["begin", "done", "failed"]
    assert "main_handler" in events[-1]["reasons"][0]["message"]
    fabric.ok("workflow", "replay", failed["id"])


def test_a_saga_whose_module_stands_still_says_so_and_goes_on_with_it(fabric: Fabric) -> None:
    agent = fabric.pid("agent")
    os.kill(agent, signal.SIGSTOP)
    try:
        call(fabric, "CreateFunction", **creation("stuck"))
        until(
            lambda: "module code to store" in newest(fabric, "stuck")["waits_for"],
            within_s=20,
            what="the workflow says what it waits for",
        )
        assert call(fabric, "GetFunction", FunctionName="stuck")["Status"] == "Creating"
    finally:
        os.kill(agent, signal.SIGCONT)
    until(
        lambda: call(fabric, "GetFunction", FunctionName="stuck")["Status"] == "Active",
        within_s=60,
        what="the function is Active when its module is back",
    )
    assert fabric.invoke("stuck", {"a": 1})["InvokeResult"] == 0
