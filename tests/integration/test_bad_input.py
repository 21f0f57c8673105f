"""Bad input by the command line against a whole fabric: a clear line, the right exit status, and nothing half-made.

Exit statuses are those of `penstock --help`: 1 refused or failed, 2 wrong command line or setting, 3 the fabric does not answer.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from infra.app.client import Client, connect
from infra.app.state import FabricFolder
from schemas.errors import BadRequest
from schemas.runstatus import RunStatus
from tests.fabric import PENSTOCK, Fabric, Ran, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.jail, pytest.mark.timeout(90)]

GOOD = "def main_handler(event, context):\n    return 'first'\n"
HANDLER = ("--handler", "index.main_handler")


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    folder = tmp_path_factory.mktemp("bad")
    with running_fabric(folder / "data") as running:
        running.make_topic("there")
        running.deploy(folder, "serving", GOOD)
        running.ok("trigger", "create", "serving", "--type", "ckafka", "--topic", "there")
        yield running


@pytest.fixture
def api(fabric: Fabric) -> Client:
    return connect(FabricFolder(fabric.data_dir))


def refused(ran: Ran, code: int, *says: str) -> None:
    """A refusal as a user should meet it: its exit status, few lines, no traceback, and the words that help."""
    assert ran.code == code, f"{ran.code}\n{ran.out}\n{ran.err}"
    assert "Traceback" not in ran.out + ran.err
    lines = ran.err.strip().splitlines()
    assert 1 <= len(lines) <= 3, ran.err
    assert lines[0].startswith("penstock"), ran.err
    assert len(ran.err) < 500, ran.err
    for text in says:
        assert text in ran.err


def functions(api: Client) -> set[str]:
    return {f["FunctionName"] for f in api.call("ListFunctions", {"Limit": 100})["Functions"]}


def traces(fabric: Fabric, api: Client) -> dict[str, Any]:
    """All that a failed trigger could leave behind: in the registry, as a group (an engine has one), as a dead-letter topic."""
    admin = AdminClient({"bootstrap.servers": fabric.bootstrap})
    groups = admin.list_consumer_groups(request_timeout=10).result(15).valid
    topics = admin.list_topics(timeout=10).topics
    return {
        "triggers": sorted(s["Name"] for s in api.call("ListEventSources", {})["Sources"]),
        "shown": api.call("ListTriggers", {"FunctionName": "serving"})["TotalCount"],
        "groups": sorted(g.group_id for g in groups if ".serving." in g.group_id),
        "dead": sorted(t for t in topics if t.startswith("penstock.dead.")),
    }


def folder_of(home: Path, **files: str) -> Path:
    home.mkdir()
    for stem, text in files.items():
        (home / f"{stem}.py").write_text(text)
    return home


def zip_of(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.py", GOOD)
        for name, data in entries:
            archive.writestr(name, data)
    return path


def link_entry() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("link")
    entry.create_system = 3
    entry.external_attr = 0o120777 << 16
    return entry


# code


def make_source(kind: str, home: Path) -> Path:
    """The folder or zip of each kind of bad code."""
    match kind:
        case "handler missing" | "handler file missing":
            return folder_of(home / "code", **({"index": "x = 1\n"} if kind == "handler missing" else {"other": GOOD}))
        case "syntax error":
            return folder_of(home / "code", index="import os\n\ndef main_handler(e, c):\n    return (\n")
        case "empty folder":
            return folder_of(home / "code")
        case "link that leaves":
            folder = folder_of(home / "code", index=GOOD)
            (folder / "secrets").symlink_to("/etc/hostname")
            return folder
        case "link in a zip":
            return zip_of(home / "code.zip", (link_entry(), b"/etc/hostname"))
        case "parent in a zip":
            return zip_of(home / "code.zip", ("../x", b"x"))
        case "absolute in a zip":
            return zip_of(home / "code.zip", ("/abs/x", b"x"))
        case "bomb":
            return zip_of(home / "code.zip", *((f"zeros-{i}", bytes(60 << 20)) for i in range(9)))
        case "not a zip":
            (home / "code.zip").write_text("this is no zip")
            return home / "code.zip"
    return home / "nowhere"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("handler missing", ("index.py has no function main_handler", "it defines x")),
        ("handler file missing", ("needs index.py", "it holds: other.py")),
        ("syntax error", ("index.py, line 4", "never closed")),
        ("empty folder", ("holds no file", "put the function's code there")),
        ("link that leaves", ("the link secrets leaves the folder", "remove it")),
        ("link in a zip", ("'link' is a link",)),
        ("parent in a zip", ("'../x' leads out of the package",)),
        ("absolute in a zip", ("'/abs/x' is an absolute path",)),
        ("bomb", ("the limit is 524,288,000",)),
        ("not a zip", ("not a zip file",)),
        ("nothing there", ("nowhere does not exist", "name a folder")),
    ],
)
def test_bad_code_makes_no_function_and_leaves_the_one_that_serves(
    fabric: Fabric, api: Client, tmp_path: Path, kind: str, says: tuple[str, ...]
) -> None:
    source = str(make_source(kind, tmp_path))
    before = api.call("GetFunction", {"FunctionName": "serving"})
    refused(fabric.penstock("deploy", source, "--name", "half-made", *HANDLER), 1, *says)
    assert functions(api) == {"serving"}
    with pytest.raises(BadRequest, match="half-made"):
        api.call("GetFunction", {"FunctionName": "half-made"})
    refused(
        fabric.penstock("deploy", source, "--name", "serving", *HANDLER, "--timeout", "77", "--env", "A=b"), 1, *says
    )
    after = api.call("GetFunction", {"FunctionName": "serving"})
    assert fabric.invoke("serving")["RetMsg"] == '"first"'
    kept = ("Timeout", "Environment", "Handler", "CodeSize", "MemorySize")
    assert {k: after[k] for k in kept} == {k: before[k] for k in kept}


def test_a_failed_update_can_be_put_right_by_a_good_one(fabric: Fabric, tmp_path: Path) -> None:
    fabric.deploy(tmp_path, "mended", GOOD)
    refused(fabric.penstock("deploy", str(make_source("syntax error", tmp_path)), "--name", "mended", *HANDLER), 1)
    fabric.deploy(tmp_path, "mended", GOOD.replace("first", "second"))
    assert fabric.invoke("mended")["RetMsg"] == '"second"'
    connect(FabricFolder(fabric.data_dir)).call("DeleteFunction", {"FunctionName": "mended"})
    until(
        lambda: fabric.penstock("invoke", "mended", "--json").json["InvokeResult"] == RunStatus.NO_FUNCTION,
        within_s=10,
        what="gone",
    )


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--name", "1bad!", *HANDLER), 2, ("'1bad!' can't be a function's name", "--name")),
        (("--name", "x" * 61, *HANDLER), 2, ("can't be a function's name",)),
        (("--name", "half-made", *HANDLER, "--runtime", "Cobol9"), 1, ("'Cobol9'", "use Python3.10")),
        (("--name", "half-made", *HANDLER, "--runtime", "Nodejs18.15"), 1, ("CustomRuntime",)),
        (("--name", "half-made", *HANDLER, "--memory", "100"), 2, ("--memory", "'100'", "64, 128, 256")),
        (("--name", "half-made", *HANDLER, "--memory", "lots"), 2, ("--memory", "'lots'")),
        (("--name", "half-made", *HANDLER, "--timeout", "901"), 2, ("--timeout", "from 1 to 900")),
        (("--name", "half-made", *HANDLER, "--env", "FOO"), 2, ("--env 'FOO'", "NAME=VALUE")),
        (("--name", "half-made", *HANDLER, "--env", "SCF_X=1"), 1, ("'SCF_X'", "platform's own")),
        (("--name", "half-made", *HANDLER, "--env", "9=1"), 1, ("'9'",)),
        (("--name", "half-made", "--handler", "nonsense"), 1, ("'nonsense'", "index.main_handler")),
        (("--name", "half-made", *HANDLER, "--namespace", "no space"), 1, ("'no space'",)),
        (("--name", "half-made"), 2, ("--handler", "--help")),
    ],
)
def test_a_bad_wish_makes_no_function(
    fabric: Fabric, api: Client, tmp_path: Path, flags: tuple[str, ...], code: int, says: tuple[str, ...]
) -> None:
    refused(fabric.penstock("deploy", str(folder_of(tmp_path / "code", index=GOOD)), *flags), code, *says)
    assert functions(api) == {"serving"}


# triggers


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("serving", "--topic", "nowhere"), 1, ("topic 'nowhere' does not exist", "create it first")),
        (
            ("serving", "--topic", "there", "--name", "far", "--bootstrap-servers", "127.0.0.1:1"),
            1,
            ("127.0.0.1:1", "try again"),
        ),
        (("serving", "--topic", "there", "--name", "far", "--bootstrap-servers", "junk"), 1, ("'junk'", "host:port")),
        (("nobody", "--topic", "there", "--name", "more"), 1, ("function 'nobody' does not exist",)),
        (("serving", "--topic", "there"), 1, ("has a trigger 'there' already",)),
        (("serving", "--topic", "there", "--name", "more", "--ordering", "chaos"), 2, ("--ordering", "'partition'")),
        (("serving", "--topic", "there", "--name", "more", "--on-poison", "drink"), 2, ("--on-poison", "'skip'")),
        (("serving", "--topic", "there", "--name", "more", "--from", "yesterday"), 2, ("--from", "earliest")),
        (("serving", "--topic", "there", "--name", "more", "--batch", "0"), 2, ("--batch", "from 1 to")),
        (("serving", "--topic", "there", "--name", "more", "--concurrency", "x"), 2, ("--concurrency",)),
        (("serving", "--topic", "there", "--name", "more", "--retries", "-1"), 2, ("--retries",)),
        (("serving", "--topic", "no such"), 2, ("'no such' is not the name of a Kafka topic",)),
        (("serving", "--topic", "there", "--name", "a b"), 2, ("'a b' can't be a trigger's name", "--name")),
        (("serving",), 2, ("--topic",)),
    ],
)
def test_a_bad_trigger_leaves_no_trigger_no_group_and_no_engine(
    fabric: Fabric, api: Client, arguments: tuple[str, ...], code: int, says: tuple[str, ...]
) -> None:
    before = traces(fabric, api)
    began = time.monotonic()
    refused(fabric.penstock("trigger", "create", *arguments, "--type", "ckafka"), code, *says)
    assert time.monotonic() - began < 12
    assert traces(fabric, api) == before


def test_a_taken_trigger_name_of_another_function_asks_for_another_name(
    fabric: Fabric, api: Client, tmp_path: Path
) -> None:
    fabric.deploy(tmp_path, "second", GOOD)
    before = traces(fabric, api)
    refused(fabric.penstock("trigger", "create", "second", "--type", "ckafka", "--topic", "there"), 1, "--name")
    assert traces(fabric, api) == before
    api.call("DeleteFunction", {"FunctionName": "second"})
    until(lambda: functions(api) == {"serving"}, within_s=10, what="the second function gone")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("nope",), "no trigger 'nope'; `penstock trigger list` shows all"),
        (("serving", "nope"), "no trigger 'nope'; `penstock trigger list` shows all"),
        (("nobody", "there"), "function 'nobody' does not exist"),
    ],
)
@pytest.mark.parametrize("verb", ["delete", "pause", "resume"])
def test_a_trigger_that_is_not_there_is_told_so(
    fabric: Fabric, api: Client, verb: str, names: tuple[str, ...], says: str
) -> None:
    refused(fabric.penstock("trigger", verb, *names), 1, says)
    assert traces(fabric, api)["triggers"] == ["there"]


# invoke, logs


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("invoke", "nobody"), 1, ("function 'nobody' does not exist",)),
        (("invoke", "serving", "--payload", "{x"), 2, ("--payload is not JSON", "'\"text\"'")),
        (("invoke", "serving", "--payload", "@/nope"), 2, ("/nope", "can't be read")),
        (("invoke", "serving", "--qualifier", "99"), 1, ("99",)),
        (("logs", "nobody"), 1, ("function 'nobody' does not exist",)),
        (("logs", "serving", "--since", "yesterday"), 2, ("--since", "10m")),
        (("frobnicate",), 2, ("'frobnicate'", "'deploy'")),
        (("invoke",), 2, ("F",)),
    ],
)
def test_a_bad_call_is_told_so(fabric: Fabric, arguments: tuple[str, ...], code: int, says: tuple[str, ...]) -> None:
    refused(fabric.penstock(*arguments), code, *says)


def test_json_of_an_unknown_function_is_a_result_with_status_435(fabric: Fabric) -> None:
    ran = fabric.penstock("invoke", "nobody", "--json")
    assert (ran.code, ran.json["InvokeResult"], ran.err) == (1, RunStatus.NO_FUNCTION, "")
    assert "function 'nobody' does not exist" in ran.json["ErrMsg"]


def test_a_payload_beyond_the_limit_is_refused(fabric: Fabric, tmp_path: Path) -> None:
    (tmp_path / "big.json").write_text(json.dumps("x" * (6 * 1024 * 1024)))
    ran = fabric.penstock("invoke", "serving", "--payload", f"@{tmp_path}/big.json", "--json")
    assert (ran.code, ran.json["InvokeResult"]) == (1, RunStatus.EVENT_TOO_LARGE)
    refused(fabric.penstock("invoke", "serving", "--payload", f"@{tmp_path}/big.json"), 1, "the limit is")


# a fabric that can't start, or is not there


def up(data_dir: Path, *flags: str, **environ: str) -> Ran:
    done = subprocess.run(
        [PENSTOCK, "up", "--data-dir", str(data_dir), *flags],
        capture_output=True, text=True, timeout=40, check=False, env={**os.environ, **environ},
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def nothing_runs(data_dir: Path) -> None:
    assert processes_of(data_dir) == []
    status = Ran(*_status(data_dir))
    assert (status.code, status.json["ready"], status.json["processes"]) == (3, False, [])


def _status(data_dir: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [PENSTOCK, "status", "--json", "--data-dir", str(data_dir)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def processes_of(data_dir: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(data_dir) in line:
                found.append(line)
    return found


@pytest.mark.parametrize(
    ("toml", "flags", "code", "says"),
    [
        ("zone = 'a'\nport = = 1\n", (), 2, ("penstock.toml, line 2", "Correct the line")),
        ("zone = 'a'\ncolour = 'x'\n", (), 2, ("penstock.toml, line 2", "no setting 'colour'", "--print-config")),
        ("port = 'high'\n", (), 2, ("penstock.toml", "port")),
        ("", ("--driver", "microvm"), 2, ("not built yet", "--driver jail")),
        ("", ("--driver", "magic"), 2, ("--driver", "'jail'")),
        ("", ("--bootstrap-servers", "127.0.0.1:1"), 3, ("127.0.0.1:1", "check --bootstrap-servers")),
        ("", ("--bootstrap-servers", "junk"), 2, ("host:port",)),
        ("", ("--port", "99999"), 2, ("--port", "65535")),
    ],
)
def test_an_up_that_can_not_be_says_why_and_starts_nothing(
    tmp_path: Path, toml: str, flags: tuple[str, ...], code: int, says: tuple[str, ...]
) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "penstock.toml").write_text(toml)
    refused(up(data_dir, *flags), code, *says)
    nothing_runs(data_dir)


def test_a_setting_of_the_environment_is_checked_and_named(tmp_path: Path) -> None:
    refused(up(tmp_path / "data", PENSTOCK_PORT="high"), 2, "PENSTOCK_PORT")


def test_a_taken_port_is_named_and_nothing_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(up(tmp_path / "data", "--port", str(port)), 1, f"port {port}", "choose another")
    nothing_runs(tmp_path / "data")


def test_a_second_up_in_a_folder_names_the_first_ones_pid_and_does_it_no_harm(fabric: Fabric) -> None:
    assert fabric.up is not None
    refused(up(fabric.data_dir), 1, f"(process {fabric.up.pid})", "--data-dir")
    assert fabric.status()["ready"]
    assert fabric.invoke("serving")["RetMsg"] == '"first"'


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("invoke", "x"),
        ("logs", "x"),
        ("trigger", "list"),
        ("trigger", "create", "x", "--type", "ckafka", "--topic", "t"),
        ("top", "--once"),
    ],
)
def test_without_a_running_fabric_it_says_how_to_start_one(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = Fabric(tmp_path / "none").penstock(*arguments)
    refused(ran, 3, f"no fabric runs in {tmp_path}/none", "penstock up")
    assert not (tmp_path / "none").exists()


def test_a_deploy_without_a_running_fabric_says_how_to_start_one(tmp_path: Path) -> None:
    code = folder_of(tmp_path / "code", index=GOOD)
    refused(Fabric(tmp_path / "none").penstock("deploy", str(code), *HANDLER), 3, "penstock up")
