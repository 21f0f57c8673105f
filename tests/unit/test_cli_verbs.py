"""The command line against the real cloud API, with fakes behind its ports: arguments, output, exit statuses."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from infra.app import cli
from schemas.records import FunctionActivity, LanePartition, LogLine, Member, StatusReason
from tests.api_fakes import APPID, SECRET_ID, SECRET_KEY, UIN, FakeFabric
from tests.cli_desk import GOOD, settle


async def test_deploy_creates_then_updates_only_what_was_asked_for(make_desk: Any) -> None:
    async with make_desk() as desk:
        made = await desk.deploy("--memory", "256", "--env", "A=1", "--env", "B=x=y", "--json")
        assert (made.code, made.json["Status"], made.json["Created"]) == (0, "Active", True)
        (record,) = desk.fabric.functions.rows.values()
        assert (record.serving.memory_mib, record.serving.timeout_s, record.serving.runtime) == (256, 3, "Python3.10")
        assert record.serving.environment == {"A": "1", "B": "x=y"}
        (desk.code / "index.py").write_text(GOOD + "# 2\n")
        again = await desk.deploy("--timeout", "9")
        assert (again.code, "updated" in again.out) == (0, True)
        (record,) = desk.fabric.functions.rows.values()
        assert (record.serving.memory_mib, record.serving.timeout_s) == (256, 9)
        assert record.serving.environment == {"A": "1", "B": "x=y"}
        assert [c.kind for c in desk.fabric.streams.sent] == ["create-function", "update-function", "update-function"]
        await desk.deploy("--timeout", "9")
        assert len(desk.fabric.streams.sent) == 4, "an equal configuration is not sent again"


async def test_a_create_that_fails_is_told_and_leaves_nothing(make_desk: Any) -> None:
    async with make_desk() as desk:
        desk.fabric.streams.code_fails = (StatusReason("UserCodeError", "index.py, line 3: invalid syntax"),)
        ran = await desk.deploy()
        assert ran.code == 1
        assert "could not be created (CreateFailed)" in ran.err
        assert "UserCodeError: index.py, line 3: invalid syntax" in ran.err
        assert desk.fabric.functions.rows == {}


async def test_an_update_that_fails_keeps_the_code_and_the_configuration_from_before(make_desk: Any) -> None:
    async with make_desk() as desk:
        await desk.deploy("--timeout", "5")
        (before,) = desk.fabric.functions.rows.values()
        send = desk.fabric.streams.send

        async def fail_code(key: str, command: Any) -> Any:
            is_code = command.config is not None and command.config.code_sha256 != before.serving.code_sha256
            desk.fabric.streams.code_fails = (StatusReason("UserCodeError", "bad"),) if is_code else ()
            return await send(key, command)

        desk.fabric.streams.send = fail_code
        (desk.code / "index.py").write_text("def main_handler(:\n")
        ran = await desk.deploy("--timeout", "50", "--json")
        assert (ran.code, ran.json["Status"], ran.json["StatusReasons"]) == (1, "UpdateFailed", ["UserCodeError: bad"])
        assert "the version from before keeps serving" in ran.err
        (after,) = desk.fabric.functions.rows.values()
        assert after.serving == before.serving


async def test_a_leftover_that_never_ran_is_replaced(make_desk: Any) -> None:
    async with make_desk() as desk:
        desk.fabric.streams.code_fails = (StatusReason("UserCodeError", "bad"),)
        await desk.deploy()
        await asyncio.to_thread(lambda: None)
        (desk.code / "index.py").write_text(GOOD)
        desk.fabric.streams.code_fails = ()
        assert (await desk.deploy()).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["deploy", "{code}", "--handler", "absent.main_handler"], 1, "needs absent.py"),
        (["deploy", "{code}", "--handler", "nonsense"], 1, "FILE.FUNCTION"),
        (["deploy", "{code}", "--handler", "index.main_handler", "--name", "1x"], 2, "can't be a function's name"),
        (["deploy", "{code}", "--handler", "index.main_handler", "--memory", "100"], 2, "steps of 128"),
        (["deploy", "{code}", "--handler", "index.main_handler", "--timeout", "0"], 2, "from 1 to 900"),
        (["deploy", "{code}", "--handler", "index.main_handler", "--env", "novalue"], 2, "NAME=VALUE"),
        (["deploy", "{code}", "--handler", "index.main_handler", "--env", "SCF_X=1"], 1, "EnvironmentSystemProtect"),
        (["deploy", "{code}", "--handler", "index.main_handler", "--runtime", "Nodejs18.15"], 1, "CustomRuntime"),
        (["deploy", "{code}/absent", "--handler", "index.main_handler"], 1, "does not exist"),
        (["deploy", "{code}/index.py", "--handler", "index.main_handler"], 1, "not a zip file"),
        (["deploy", "{code}"], 2, "--handler"),
        (["deploy", "{code}", "--runtime", "Python3.10"], 2, "--handler"),
        (["deploy", "{code}", "--runtime", "CustomRuntime"], 1, "executable file bootstrap"),
        (["invoke", "absent"], 1, "does not exist"),
        (["invoke", "hello", "--payload", "{{bad"], 2, "not JSON"),
        (["invoke", "hello", "--payload", "@/no/such/file"], 2, "can't be read"),
        (["logs", "absent"], 1, "does not exist"),
        (["logs", "absent", "--since", "yesterday"], 2, "--since"),
        (["trigger", "create", "absent", "--type", "ckafka", "--topic", "orders"], 1, "does not exist"),
        (["trigger", "create", "absent", "--type", "ckafka", "--topic", "a b"], 2, "--topic"),
        (["trigger", "create", "absent", "--type", "ckafka", "--topic", "orders", "--from", "noon"], 2, "--from"),
        (["trigger", "create", "absent", "--type", "timer", "--topic", "orders"], 2, "invalid choice"),
        (["trigger", "delete", "absent"], 1, "has no trigger"),
        (["trigger", "delete", "a", "b", "c"], 2, "once"),
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "VERB"),
    ],
)
async def test_what_can_not_be_done_is_said_in_a_line_or_two_with_its_exit_status(
    make_desk: Any, arguments: list[str], code: int, says: str
) -> None:
    async with make_desk() as desk:
        ran = await desk.run(*(a.format(code=desk.code) for a in arguments))
        assert (ran.code, ran.out) == (code, ""), ran.err
        assert says in ran.err
        assert code == 2 or len(ran.err.splitlines()) <= 2


async def test_invoke_prints_the_return_value_and_with_json_the_result(make_desk: Any, tmp_path: Path) -> None:
    async with make_desk() as desk:
        await desk.deploy()
        ran = await desk.run("invoke", "hello", "--payload", '{"a": 1}', "--tail")
        assert (ran.code, ran.out, "hello" in ran.err) == (0, '{"a": 1}\n', True)
        (tmp_path / "event.json").write_text("[1, 2]")
        result = (await desk.run("invoke", "hello", "--payload", f"@{tmp_path}/event.json", "--json")).json
        assert (result["InvokeResult"], result["RetMsg"]) == (0, "[1, 2]")
        assert result["FunctionRequestId"]


async def test_an_event_is_handed_over_and_its_id_shown(make_desk: Any) -> None:
    async with make_desk() as desk:
        await desk.deploy()
        ran = await desk.run("invoke", "hello", "--async", "--payload", "[1]")
        (event,) = desk.fabric.events.accepted
        assert (ran.code, ran.out, event.event) == (0, f"{event.request_id}\n", b"[1]")


async def test_a_run_that_fails_exits_1_with_the_error_and_its_trace(make_desk: Any) -> None:
    async with make_desk() as desk:
        await desk.deploy()
        ran = await desk.run("invoke", "hello", "--payload", '"fail"')
        assert (ran.code, ran.out) == (1, "")
        assert "status 430: UserCodeException: boom" in ran.err
        assert ran.err.splitlines()[-1] == "Traceback"
        ran = await desk.run("invoke", "hello", "--payload", '"fail"', "--json")
        assert (ran.code, ran.json["InvokeResult"], ran.err) == (1, 430, "")


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["absent"], 1, 435),
        (["hello", "--qualifier", "7"], 1, 442),
    ],
)
async def test_invoke_json_prints_a_result_also_when_the_run_never_began(
    make_desk: Any, arguments: list[str], code: int, status: int
) -> None:
    async with make_desk() as desk:
        await desk.deploy()
        ran = await desk.run("invoke", *arguments, "--json")
        assert (ran.code, ran.json["InvokeResult"]) == (code, status)
        assert json.loads(ran.json["RetMsg"])["statusCode"] == status
        assert ran.json["ErrMsg"]


async def test_a_broken_platform_exits_3_and_invoke_json_still_prints_a_result(make_desk: Any) -> None:
    async with make_desk() as desk:
        desk.fabric.streams.broken = True
        ran = await desk.deploy()
        assert (ran.code, "ResourceUnavailable" in ran.err) == (3, True)
        settle(desk.folder / "data", "http://127.0.0.1:1")
        for arguments in (["trigger", "list"], ["logs", "hello"], ["top"], ["invoke", "hello"]):
            ran = await desk.run(*arguments)
            assert (ran.code, "does not answer" in ran.err) == (3, True), arguments
        ran = await desk.run("invoke", "hello", "--json")
        assert (ran.code, ran.json["InvokeResult"]) == (3, 500)


async def test_without_a_fabric_every_verb_says_how_to_start_one(make_desk: Any) -> None:
    async with make_desk() as desk:
        (desk.folder / "data" / "fabric.json").unlink()
        for arguments in (["trigger", "list"], ["logs", "hello"], ["top"], ["invoke", "hello"], ["status"]):
            ran = await desk.run(*arguments)
            assert (ran.code, "penstock up" in ran.err) == (3, True), arguments


async def test_a_wrong_key_is_refused_with_the_apis_code(make_desk: Any) -> None:
    async with make_desk() as desk:
        state = json.loads((desk.folder / "data" / "fabric.json").read_text())
        settle(desk.folder / "data", state["endpoints"]["api"], key="wrong")
        ran = await desk.run("trigger", "list")
        assert (ran.code, "[AuthFailure.SignatureFailure]" in ran.err) == (1, True)


async def test_trigger_create_list_pause_and_delete(make_desk: Any) -> None:
    async with make_desk() as desk:
        await desk.deploy()
        flags = ["--from", "2026-01-31T12:00:00Z", "--batch", "10", "--concurrency", "4", "--retries", "0"]
        made = await desk.run(
            "trigger", "create", "hello", "--type", "ckafka", "--topic", "orders", "--ordering", "none", *flags
        )
        assert made.code == 0, made.err
        (record,) = desk.fabric.triggers.rows.values()
        source = record.kafka
        assert (record.name, source.topic, source.batch, source.concurrency, source.retries, source.ordering) == (
            "orders", "orders", 10, 4, 0, "none",
        )  # fmt: skip
        assert desk.fabric.sources.pinned[0][1:] == ("orders", "1769860800000")
        desk.fabric.lane("hello", "orders", "running", LanePartition(1, 5, 12, 3, 2, 0, 1, "waits"))
        (shown,) = (await desk.run("trigger", "list", "hello", "--json")).json
        assert list(shown) == ["name", "function", "namespace", "type", "source", "state", "partitions"]
        assert shown["partitions"][1] == {
            "partition": 1, "committed": 10, "end": 17, "lag": 7, "in_flight": 3, "parked": 1, "dead": 0, "why": "waits",
        }  # fmt: skip
        people = await desk.run("trigger", "list")
        assert "orders" in people.out
        assert (await desk.run("trigger", "pause", "orders")).code == 0
        assert (await desk.run("trigger", "list", "--json")).json[0]["state"] == "paused"
        assert (await desk.run("trigger", "resume", "hello", "--name", "orders")).code == 0
        assert (await desk.run("trigger", "delete", "hello", "orders")).code == 0
        assert (await desk.run("trigger", "list", "--json")).json == []


async def test_trigger_names_are_unique_in_a_namespace(make_desk: Any) -> None:
    async with make_desk() as desk:
        await desk.deploy()
        await desk.deploy(name="other")
        assert (await desk.run("trigger", "create", "hello", "--type", "ckafka", "--topic", "orders")).code == 0
        ran = await desk.run("trigger", "create", "other", "--type", "ckafka", "--topic", "orders")
        assert (ran.code, "--name" in ran.err) == (1, True)
        ran = await desk.run("trigger", "create", "other", "--type", "ckafka", "--topic", "orders", "--name", "o2")
        assert ran.code == 0


async def test_logs_are_printed_oldest_first_in_pages(make_desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.app.logs._PAGE_LINES", 3)
    async with make_desk() as desk:
        await desk.deploy()
        desk.fabric.logs.lines = [LogLine("0123456789", 1_000 * i, "stdout", f"line {i} \udcff") for i in range(8)]
        lines = [json.loads(x) for x in (await desk.run("logs", "hello", "--json")).out.splitlines()]
        assert [x["unix_ms"] for x in lines] == [1_000 * i for i in range(8)]
        assert set(lines[0]) == {"request_id", "unix_ms", "stream", "line"}
        people = await desk.run("logs", "hello", "--since", "5000")
        assert people.out.count("01234567 stdout   line") == 3


async def test_logs_that_follow_go_on_behind_the_last_line() -> None:
    from infra.app.logs import pages
    from schemas.errors import ApiUnavailable

    class Api:
        def __init__(self) -> None:
            self.asked: list[dict[str, Any]] = []

        def call(self, action: str, fields: Any) -> dict[str, Any]:
            self.asked.append(dict(fields))
            number = len(self.asked)
            if number == 2:
                raise ApiUnavailable("away")
            return {"Lines": [{"Line": number}], "Cursor": f"c{number}", "AtEnd": True}

    api = Api()
    followed = pages(api, {"FunctionName": "f"}, since=7, follow=True)
    assert [next(followed), next(followed)] == [[{"Line": 1}], [{"Line": 3}]]
    assert (api.asked[0]["Since"], api.asked[2]["Cursor"], api.asked[2]["WaitMs"]) == (7, "c1", 5_000)


async def test_top_shows_functions_and_members(make_desk: Any) -> None:
    async with make_desk() as desk:
        key = f"{APPID}/default/busy"
        desk.fabric.activity.put(
            key,
            FunctionActivity(1, key, 0, 5, 3, 1, 0, 0, 0, 1, 0, 2.5, 1.5, 0.5, 1_500, 9_000, 20, (2, 1, 0, 0, 0, 1)),
        )
        desk.fabric.members.put("agent/a", Member("agent", "agent-1", "h", "zone-1", "unix:@[x]", 1, 1))
        shown = (await desk.run("top", "--json")).json
        assert (shown["Functions"][0]["Key"], shown["Functions"][0]["Completed"]) == (key, 3)
        people = await desk.run("top")
        assert ("default/busy" in people.out, "agent agent-1" in people.out) == (True, True)


async def test_a_call_waits_for_a_gateway_that_is_started_again(tmp_path: Path) -> None:
    import socket

    from infra.app.client import Client
    from infra.credentials import Credentials

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}", Credentials(SECRET_ID, SECRET_KEY, "ap-guangzhou", APPID, UIN))
    call = asyncio.ensure_future(asyncio.to_thread(client.call, "ListEventSources", {}))
    await asyncio.sleep(0.3)
    assert not call.done()
    from ingest.api.server import ApiServer

    fabric = FakeFabric()
    server = ApiServer(fabric.api, fabric.metrics, fabric.health)
    await server.start("127.0.0.1", port)
    try:
        assert (await call)["Sources"] == []
    finally:
        await server.close()
        await fabric.streams.close()


def test_version_is_that_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == cli.VERSION


def test_help_of_every_verb_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ["up", "demo", "status", "deploy", "invoke", "logs", "top", "version", "trigger"]
    for arguments in [[v] for v in verbs] + [["trigger", v] for v in ("create", "list", "delete", "pause", "resume")]:
        with pytest.raises(SystemExit) as ended:
            cli.run([*arguments, "--help"])
        assert ended.value.code == 0
        assert "usage: penstock " + " ".join(arguments) in capsys.readouterr().out


def test_verbs_that_are_not_built_are_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["--help"])
    said = capsys.readouterr().out
    assert not any(f"\n    {verb} " in said for verb in ("dlq", "cache", "dev"))


def test_a_fault_of_ours_is_one_line_and_a_trace_only_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.app.status.run", lambda args: 1 / 0)
    assert cli.run(["status"]) == 3
    said = capsys.readouterr().err
    assert ("ZeroDivisionError" in said, len(said.splitlines())) == (True, 1)
    monkeypatch.setenv("PENSTOCK_DEBUG", "1")
    assert cli.run(["status"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_zip_of_a_zip_is_sent_as_it_is(tmp_path: Path) -> None:
    from infra.app.bundle import bundle, check_handler

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("index.py", GOOD)
    (tmp_path / "f.zip").write_bytes(out.getvalue())
    assert bundle(tmp_path / "f.zip") == out.getvalue()
    assert check_handler(out.getvalue(), "index.main_handler").files == {"index.py"}
