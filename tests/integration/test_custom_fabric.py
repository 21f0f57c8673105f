"""Custom runtimes on a running fabric: from a folder or a request to calls and records, and what a bad package is told."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.client import zip_of
from tests.clients.python_sdk import Sdk
from tests.custom_runtimes import SCF, bootstrap
from tests.fabric import Fabric, running_fabric, until
from tests.packages import zipped

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(150)]

TELLS = (
    SCF
    + """
def handler(event, headers):
    for entry in event.get("Records", ()):
        record = entry["Ckafka"]
        print(json.dumps({"k": record["msgKey"], "s": int(record["msgBody"])}), flush=True)
    return event

ready()
while True:
    headers, event = next_event()
    respond("plain text" if event == "plain" else json.dumps(handler(event, headers)))
"""
)


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("custom") / "data") as running:
        yield running


@pytest.fixture
def client(fabric: Fabric) -> Sdk:
    return Sdk(fabric, "POST")


def deployed(fabric: Fabric, folder: Path, name: str, code: str) -> None:
    home = folder / name
    home.mkdir(exist_ok=True)
    (home / "bootstrap").write_text(code)
    (home / "bootstrap").chmod(0o755)
    fabric.ok("deploy", str(home), "--name", name, "--runtime", "CustomRuntime")


def test_a_deployed_bootstrap_answers_calls_and_takes_a_topics_records_in_order(
    fabric: Fabric, client: Sdk, tmp_path: Path
) -> None:
    deployed(fabric, tmp_path, "tells", TELLS)
    made = client.call("GetFunction", FunctionName="tells")
    assert (made["Runtime"], made["Handler"], made["Status"]) == ("CustomRuntime", "index.main_handler", "Active")
    assert [client.invoke("tells", event)["RetMsg"] for event in ({"a": 1}, "plain")] == ['{"a": 1}', "plain text"]
    topic = fabric.make_topic("tells")
    fabric.ok("trigger", "create", "tells", "--type", "ckafka", "--topic", topic, "--from", "earliest", "--batch", "3")
    fabric.produce(topic, ((b"k%d" % (n % 3), b"%d" % n, 0) for n in range(60)))
    said = [line for line in fabric.wait_said("tells", 60) if "k" in line]
    for key in range(3):
        assert [line["s"] for line in said if line["k"] == f"k{key}"] == list(range(key, 60, 3))


def test_new_code_and_another_runtime_take_over(fabric: Fabric, client: Sdk, tmp_path: Path) -> None:
    deployed(fabric, tmp_path, "changes", TELLS)
    client.call(
        "UpdateFunctionCode",
        FunctionName="changes",
        Handler="main.go",
        ZipFile=base64.b64encode(bootstrap(TELLS)).decode(),
    )
    assert client.settled("changes")["Status"] == "Active"
    deployed(fabric, tmp_path, "changes", SCF + "loop(lambda event, headers: 'new')\n")
    assert client.call("GetFunction", FunctionName="changes")["Handler"] == "main.go"
    assert client.invoke("changes", 1)["RetMsg"] == '"new"'
    (tmp_path / "changes" / "index.py").write_text("def main_handler(event, context):\n    return 'python'\n")
    fabric.ok("deploy", str(tmp_path / "changes"), "--name", "changes", "--handler", "index.main_handler")
    assert client.invoke("changes", 1)["RetMsg"] == '"new"'
    client.call("UpdateFunctionConfiguration", FunctionName="changes", Runtime="Python3.10")
    assert client.settled("changes")["Status"] == "Active"
    assert client.invoke("changes", 1)["RetMsg"] == '"python"'


def test_a_python_function_without_bootstrap_can_not_become_a_custom_one_and_goes_on(client: Sdk) -> None:
    client.call(
        "CreateFunction", FunctionName="stays", Runtime="Python3.10", Handler="index.main_handler",
        Code={"ZipFile": zip_of("still")},
    )  # fmt: skip
    assert client.settled("stays")["Status"] == "Active"
    client.call("UpdateFunctionConfiguration", FunctionName="stays", Runtime="CustomRuntime")
    failed = client.settled("stays")
    assert (failed["Status"], "no file bootstrap" in json.dumps(failed["StatusReasons"])) == ("UpdateFailed", True)
    assert json.loads(client.invoke("stays", 1)["RetMsg"])["word"] == "still"


@pytest.mark.parametrize(
    ("name", "package", "says"),
    [
        ("no-bootstrap", base64.b64decode(zip_of("x")), "no file bootstrap at its top"),
        ("nested", zipped(("app/bootstrap", b"#!/bin/sh\n")), "there is: app"),
        ("windows", bootstrap("#!/bin/sh\r\necho\r\n"), "CRLF"),
    ],
)
def test_a_package_that_can_not_be_started_ends_create_failed_with_the_reason(
    client: Sdk, name: str, package: bytes, says: str
) -> None:
    code = {"ZipFile": base64.b64encode(package).decode()}
    client.call("CreateFunction", FunctionName=name, Runtime="CustomRuntime", Code=code)
    failed = client.settled(name)
    assert failed["Status"] == "CreateFailed"
    assert says in json.dumps(failed["StatusReasons"])


def test_a_bootstrap_that_exits_or_fails_answers_with_scfs_status_and_its_log(fabric: Fabric, client: Sdk) -> None:
    fails = SCF + "ready()\nwhile True:\n    next_event()\n    ask('POST', 'invocation/error', 'broke')\n"
    exits = SCF + "print('going', flush=True)\nsys.exit(7)\n"
    for name, code, status in (("exits", exits, 405), ("fails", fails, 430)):
        client.call(
            "CreateFunction", FunctionName=name, Runtime="CustomRuntime",
            Code={"ZipFile": base64.b64encode(bootstrap(code)).decode()},
        )  # fmt: skip
        assert client.settled(name)["Status"] == "Active"
        answer = client.invoke(name, {})
        assert (answer["InvokeResult"], json.loads(answer["RetMsg"])["statusCode"]) == (status, status), answer
    until(lambda: any(x["line"] == "going" for x in fabric.lines("exits")), within_s=10, what="its log")
