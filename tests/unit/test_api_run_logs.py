"""GetFunctionLogs and GetRequestStatus: runs put together from the log's lines, windows, filters, pages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra import clock
from ingest.api.describe import time_text
from ingest.api.runs import RunBuilder, status_of
from sandbox.agent.logencoding import end_line, report_line, start_line
from schemas.records import LogLine
from schemas.runerror import error_body
from schemas.runstatus import RunStatus
from tests.api_fakes import FakeFabric, creation
from tests.unit.test_api_versions import HELLO, ask, code, settle

IDS = [f"{n:08d}-0000-4000-8000-000000000000" for n in range(8)]


def run_lines(n: int, at_ms: int, *, ms: int = 5, mib: int = 10, status: int = RunStatus.OK) -> list[LogLine]:
    """What the agent writes of one run."""
    request_id = IDS[n]
    lines = [LogLine(request_id, at_ms, "platform", start_line(request_id))]
    lines.append(LogLine(request_id, at_ms, "stdout", f"hello from {n}"))
    if status != RunStatus.OK:
        body = error_body(RunStatus(status), "boom", bytes(16)).decode()
        lines.append(LogLine(request_id, at_ms + ms, "platform", f"ERROR RequestId: {request_id} Result: {body}"))
    report = report_line(request_id, duration_us=ms * 1000, memory_mib=128, peak_kib=mib * 1024)
    return lines + [LogLine(request_id, at_ms + ms, "platform", text) for text in (end_line(request_id), report)]


@pytest.fixture
async def fabric() -> FakeFabric:
    made = FakeFabric()
    await ask(made, "CreateFunction", creation())
    await settle()
    return made


async def logs(fabric: FakeFabric, **fields: Any) -> list[str]:
    answer = await ask(fabric, "GetFunctionLogs", {**HELLO, **fields})
    assert "Error" not in answer, answer
    assert answer["TotalCount"] >= len(answer["Data"])
    return [row["RequestId"][7] for row in answer["Data"]]


async def test_a_run_is_shown_with_its_lines_and_figures(fabric: FakeFabric) -> None:
    now_ms = clock.unix_ms() - 1_000
    fabric.logs.lines = run_lines(0, now_ms, ms=7, mib=33)
    [row] = (await ask(fabric, "GetFunctionLogs", HELLO))["Data"]
    assert row == {
        "FunctionName": "hello", "RequestId": IDS[0], "StartTime": time_text(now_ms), "RetCode": 0, "InvokeFinished": 1,
        "RetMsg": "", "Duration": 7.0, "BillDuration": 7, "MemUsage": 33 * 1024 * 1024, "Level": "", "Source": "",
        "RetryNum": 0, "Log": "\n".join(line.line for line in fabric.logs.lines),
    }  # fmt: skip
    [row] = (await ask(fabric, "GetRequestStatus", {**HELLO, "FunctionRequestId": IDS[0]}))["Data"]
    assert (row["RetCode"], row["Duration"], row["MemUsage"], row["RetMsg"]) == (0, 7.0, 33.0, "")


async def test_runs_are_ordered_filtered_and_paged(fabric: FakeFabric) -> None:
    now_ms = clock.unix_ms() - 60_000
    statuses = [RunStatus.OK, RunStatus.USER_EXCEPTION, RunStatus.TIMEOUT, RunStatus.MEMORY]
    for n, status in enumerate(statuses):
        fabric.logs.lines += run_lines(n, now_ms + n, ms=(3, 1, 4, 2)[n], mib=(1, 3, 2, 4)[n], status=status)
    fabric.logs.lines += run_lines(4, now_ms + 4)[:2]
    assert await logs(fabric) == ["4", "3", "2", "1", "0"]
    assert await logs(fabric, Order="asc", Offset=1, Limit=2) == ["1", "2"]
    assert await logs(fabric, OrderBy="duration", Order="asc", Offset=1) == ["1", "3", "0", "2"]
    assert await logs(fabric, OrderBy="mem_usage", Limit=1) == ["3"]
    assert await logs(fabric, Filter={"RetCode": "is0"}) == ["0"]
    assert await logs(fabric, Filter={"RetCode": "not0"}) == ["3", "2", "1"]
    assert await logs(fabric, Filter={"RetCode": "TimeLimitExceeded"}) == ["2"]
    assert await logs(fabric, Filter={"RetCode": "ResourceLimitExceeded"}) == ["3"]
    assert await logs(fabric, Filter={"RetCode": "UserCodeException"}) == ["1"]
    assert await logs(fabric, FunctionRequestId=IDS[1]) == ["1"]
    data = (await ask(fabric, "GetFunctionLogs", HELLO))["Data"]
    assert [(row["RetCode"], row["InvokeFinished"]) for row in data] == [(2, 0), (434, 1), (433, 1), (430, 1), (0, 1)]
    assert json.loads(data[1]["RetMsg"])["statusCode"] == 434
    states = [await ask(fabric, "GetRequestStatus", {**HELLO, "FunctionRequestId": IDS[n]}) for n in (0, 1, 4)]
    assert [state["Data"][0]["RetCode"] for state in states] == [0, -1, 1]


async def test_only_runs_that_began_in_the_window_are_shown(fabric: FakeFabric) -> None:
    now_ms = clock.unix_ms() // 1000 * 1000
    for n, minutes in enumerate((120, 20, 10)):
        fabric.logs.lines += run_lines(n, now_ms - minutes * 60_000)
    assert await logs(fabric) == ["2"]
    assert await logs(fabric, FunctionRequestId=IDS[0]) == ["0"]
    early, late = time_text(now_ms - 20 * 60_000), time_text(now_ms - 10 * 60_000)
    assert await logs(fabric, StartTime=early, EndTime=late) == ["2", "1"]
    assert await logs(fabric, StartTime=early, EndTime=early) == ["1"]
    status = {**HELLO, "FunctionRequestId": IDS[1]}
    assert (await ask(fabric, "GetRequestStatus", status))["TotalCount"] == 0
    assert (await ask(fabric, "GetRequestStatus", {**status, "StartTime": early, "EndTime": late}))["TotalCount"] == 1


async def test_each_attempt_of_a_request_is_a_run(fabric: FakeFabric) -> None:
    now_ms = clock.unix_ms() - 5_000
    fabric.logs.lines = run_lines(0, now_ms, status=RunStatus.USER_EXCEPTION) + run_lines(0, now_ms + 100)
    answer = await ask(fabric, "GetRequestStatus", {**HELLO, "FunctionRequestId": IDS[0]})
    assert [(row["RetryNum"], row["RetCode"]) for row in answer["Data"]] == [(1, 0), (0, -1)]


async def test_more_lines_than_a_page_are_read_to_the_end(fabric: FakeFabric) -> None:
    now_ms = clock.unix_ms() - 5_000
    first, *rest = run_lines(0, now_ms)
    fabric.logs.lines = [first, *[LogLine(IDS[0], now_ms, "stdout", str(i)) for i in range(12_000)], *rest]
    [row] = (await ask(fabric, "GetFunctionLogs", HELLO))["Data"]
    assert (row["RetCode"], row["Log"].count("\n")) == (0, 12_003)
    fabric.logs.lines = [first, *[LogLine(IDS[0], now_ms, "stdout", str(i)) for i in range(210_000)], *rest]
    assert await code(fabric, "GetFunctionLogs", HELLO) == "FailedOperation"


def test_a_function_can_not_pretend_an_end() -> None:
    builder = RunBuilder()
    builder.take(run_lines(0, 1)[:2])
    fake = [end_line(IDS[0]), report_line(IDS[0], duration_us=1, memory_mib=1, peak_kib=1), start_line(IDS[0])]
    builder.take([LogLine(IDS[0], 2, "stdout", text) for text in fake])
    [run] = builder.runs
    assert (run.status, run.duration_ms, len(run.lines)) == (0, 0, 5)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ('{"statusCode": 433}', 433), ('{"statusCode": 433, "stackTrace": "cut of', 433), ("", 430), ("[1]", 430),
        ('{"statusCode": true}', 430), ('{"statusCode": 7}', 430), ("[" * 100_000, 430),
        ('{"errorMessage": "\\"statusCode\\": 499', 430),
    ],
)  # fmt: skip
def test_the_status_is_that_of_the_error(error: str, status: int) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"StartTime": "2026-01-01 00:00:00"}, "InvalidParameterValue.StartTimeOrEndTime"),
        ({"EndTime": "2026-01-01 00:00:00"}, "InvalidParameterValue.StartTimeOrEndTime"),
        ({"StartTime": "yesterday", "EndTime": "today"}, "InvalidParameterValue.StartTimeOrEndTime"),
        ({"StartTime": "0001-01-01 00:00:00", "EndTime": "0001-01-01 00:00:01"}, ""),
        (
            {"StartTime": "2026-01-02 00:00:00", "EndTime": "2026-01-01 00:00:00"},
            "InvalidParameterValue.StartTimeOrEndTime",
        ),
        (
            {"StartTime": "2026-01-01 00:00:00", "EndTime": "2026-01-02 00:00:01"},
            "InvalidParameterValue.StartTimeOrEndTime",
        ),
        ({"StartTime": "2026-01-01 00:00:00", "EndTime": "2026-01-02 00:00:00"}, ""),
        ({"Offset": 9_000, "Limit": 1_001}, "LimitExceeded.Offset"),
        ({"Filter": {"RetCode": "7"}}, "InvalidParameterValue.RetCode"),
        ({"OrderBy": "colour"}, "InvalidParameterValue.OrderBy"),
        ({"Order": "up"}, "InvalidParameterValue.Order"),
        ({"Qualifier": "1"}, "UnsupportedOperation"),
        ({"SearchContext": {"Keyword": "x"}}, "UnsupportedOperation"),
        ({"FunctionName": "nobody"}, "ResourceNotFound.FunctionName"),
    ],
)
async def test_what_is_asked_wrongly_is_refused(fabric: FakeFabric, fields: dict[str, Any], wanted: str) -> None:
    assert await code(fabric, "GetFunctionLogs", {**HELLO, **fields}) == wanted


async def test_a_request_status_needs_a_request(fabric: FakeFabric) -> None:
    assert await code(fabric, "GetRequestStatus", HELLO) == "MissingParameter"
