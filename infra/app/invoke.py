"""`penstock invoke`: run a function once, and show SCF's Result."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from infra.app.client import connect
from infra.app.console import ExitStatus, UsageProblem, complain, note, say, say_json
from infra.app.state import choose_folder
from schemas.errors import BadRequest, PenstockError
from schemas.limits import SYNC_EVENT_BYTES
from schemas.runstatus import RunStatus

_TIMEOUT_S: Final = 330.0  # SCF's interface gives up at 300 s
_PLATFORM: Final = frozenset({RunStatus.START_RATE, RunStatus.NO_RESOURCES, RunStatus.CANCELLED, RunStatus.INTERNAL})
_STATUS_OF_CODE: Final = (
    ("ResourceNotFound.FunctionVersion", RunStatus.NO_QUALIFIER),
    ("ResourceNotFound.Qualifier", RunStatus.NO_QUALIFIER),
    ("ResourceNotFound.Alias", RunStatus.NO_QUALIFIER),
    ("ResourceNotFound", RunStatus.NO_FUNCTION),
    ("FailedOperation", RunStatus.FUNCTION_STATE),
    ("InvalidParameter.RequestTooLarge", RunStatus.EVENT_TOO_LARGE),
    ("InvalidParameter.Payload", RunStatus.BAD_EVENT),
    ("InvalidParameterValue.ClientContext", RunStatus.BAD_EVENT),
    ("RequestLimitExceeded", RunStatus.START_RATE),
    ("ResourceUnavailable", RunStatus.NO_RESOURCES),
    ("ResourceInsufficient", RunStatus.NO_RESOURCES),
    ("InternalError", RunStatus.INTERNAL),
)


def run(args: argparse.Namespace) -> ExitStatus:
    """The command."""
    event = payload_of(args.payload)
    try:
        result = _invoke(args, event)
    except PenstockError as exc:
        result = refused_result(exc)
        if not args.json:
            complain(exc)
    else:
        if not args.json:
            _show(result, tail=args.tail, is_async=args.is_async)
    if args.json:
        say_json(result)
    return exit_status(int(result.get("InvokeResult") or 0))


def _invoke(args: argparse.Namespace, event: str) -> dict[str, Any]:
    size = len(event.encode())
    if size > SYNC_EVENT_BYTES:
        raise BadRequest(
            "InvalidParameter.RequestTooLarge", f"the payload has {size:,} bytes; the limit is {SYNC_EVENT_BYTES:,}"
        )
    answer = connect(choose_folder(args.data_dir)).call(
        "Invoke",
        {
            "FunctionName": args.function,
            "Namespace": args.namespace,
            "Qualifier": args.qualifier,
            "ClientContext": event,
            "InvocationType": "Event" if args.is_async else "RequestResponse",
            "LogType": "Tail" if args.tail else None,
        },
        timeout_s=_TIMEOUT_S,
    )
    return dict(answer["Result"])


def payload_of(given: str | None) -> str:
    """The event's JSON text: as given, of @FILE, or of stdin for @-; empty when none is given. Raises UsageProblem."""
    if given is None:
        return ""
    try:
        if given == "@-":
            text = sys.stdin.read()
        elif given.startswith("@"):
            text = Path(given[1:]).read_text(encoding="utf-8")
        else:
            text = given
    except OSError as exc:
        raise UsageProblem(f"--payload {given}: the file can't be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageProblem(f"--payload {given}: the file is not UTF-8 text") from exc
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise UsageProblem(
            f"--payload is not JSON ({exc}); a text needs quotes of its own: --payload '\"text\"'"
        ) from exc
    return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def exit_status(invoke_result: int) -> ExitStatus:
    """0 when the run went well, 3 when the platform is at fault, 1 when the function or the call is."""
    if invoke_result == 0:
        return ExitStatus.OK
    if invoke_result in _PLATFORM or invoke_result > RunStatus.INTERNAL:
        return ExitStatus.PLATFORM
    return ExitStatus.FAILED


def refused_result(error: PenstockError) -> dict[str, Any]:
    """A Result for a run that never began."""
    code = error.api_code if isinstance(error, BadRequest) else "InternalError"
    known = (status for prefix, status in _STATUS_OF_CODE if code.startswith(prefix))
    status = next(known, RunStatus.BAD_PARAMETER)
    shown = {
        "errorCode": int(status),
        "errorMessage": str(error),
        "requestId": "",
        "stackTrace": "",
        "statusCode": int(status),
    }
    return {
        "FunctionRequestId": "",
        "InvokeResult": int(status),
        "RetMsg": json.dumps(shown, ensure_ascii=False),
        "ErrMsg": f"{code}: {error}",
        "Duration": 0.0,
        "BillDuration": 0,
        "MemUsage": 0,
        "Log": "",
    }


def _show(result: dict[str, Any], *, tail: bool, is_async: bool) -> None:
    if tail and result.get("Log"):
        note(str(result["Log"]).rstrip("\n"))
    status = int(result.get("InvokeResult") or 0)
    if is_async:
        say(str(result.get("FunctionRequestId", "")))
    elif status == 0:
        say(str(result.get("RetMsg", "")))
    else:
        note(f"penstock: the run failed with status {status}: {result.get('ErrMsg') or result.get('RetMsg')}")
        if trace := _stack_trace(result):
            note(trace)


def _stack_trace(result: dict[str, Any]) -> str:
    try:
        return str(json.loads(result["RetMsg"])["stackTrace"]).rstrip()
    except (ValueError, KeyError, TypeError):
        return ""
