"""`penstock workflow list|show|replay`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from infra import clock
from infra.app.client import connect
from infra.app.console import ExitStatus, say, say_json, table
from infra.app.state import choose_folder
from infra.app.times import local_text
from schemas.records import StatusReason, WorkflowEvent, WorkflowRecord


def list_workflows(args: argparse.Namespace) -> ExitStatus:
    """`workflow list`: the newest first."""
    fields = {"FunctionName": args.function, "Namespace": args.namespace, "State": args.state, "Limit": args.limit}
    found = connect(choose_folder(args.data_dir)).call("ListWorkflows", fields)["Workflows"]
    now_ms = clock.unix_ms()
    if args.json:
        say_json([_shown(raw, now_ms) for raw in found])
        return ExitStatus.OK
    rows = [
        (raw["WorkflowId"], raw["Workflow"], _function(raw), raw["State"], local_text(raw["BeganUnixMs"]),
         f"{_took_ms(raw, now_ms)} ms", _waits(raw, now_ms))
        for raw in found
    ]  # fmt: skip
    say(table(("ID", "WORKFLOW", "RESOURCE", "STATE", "BEGAN", "TOOK", "WAITS FOR"), rows))
    return ExitStatus.OK


def show(args: argparse.Namespace) -> ExitStatus:
    """`workflow show`: every step, attempt, time and reason."""
    raw = _get(args)
    now_ms = clock.unix_ms()
    if args.json:
        say_json({**_shown(raw, now_ms), "events": [_shown_event(event) for event in raw["Events"]]})
        return ExitStatus.OK
    say(f"{raw['Workflow']} of {_function(raw)} is {raw['State']}; it began {local_text(raw['BeganUnixMs'])}")
    if waits := _waits(raw, now_ms):
        say(f"waits for: {waits}")
    began_ms = raw["BeganUnixMs"]
    rows = [(f"+{e['UnixMs'] - began_ms} ms", _given_text(e), _decided_text(e)) for e in raw["Events"]]
    say(table(("AT", "GIVEN", "DECIDED"), rows))
    if raw["LeftOut"]:
        say(f"{raw['LeftOut']} repeated attempts are not shown")
    return ExitStatus.OK


def replay(args: argparse.Namespace) -> ExitStatus:
    """`workflow replay`: decide all of it again, here, and compare. Exit 1 when something else comes out."""
    from streams.replay import replay as decide_again

    raw = _get(args)
    try:
        again = decide_again(record_of(raw))
    except ValueError as exc:
        say(f"{args.id}: {exc}")
        return ExitStatus.FAILED
    is_same = all(step.is_same for step in again) and len(again) == len(raw["Events"])
    if args.json:
        say_json({"id": args.id, "events": len(again), "same": is_same})
        return ExitStatus.OK if is_same else ExitStatus.FAILED
    rows = [
        (f"+{step.recorded.unix_ms - raw['BeganUnixMs']} ms", _given_text(recorded), _decided_text(recorded),
         "same" if step.is_same else f"NOW {step.decided.decided} {step.decided.module} {step.decided.operation}")
        for step, recorded in zip(again, raw["Events"], strict=False)
    ]  # fmt: skip
    say(table(("AT", "GIVEN", "DECIDED", "AGAIN"), rows))
    same = (
        "the same decisions come out" if is_same else "other decisions come out: the workflow's definition has changed"
    )
    say(f"{len(again)} events replayed: {same}")
    return ExitStatus.OK if is_same else ExitStatus.FAILED


def record_of(raw: Mapping[str, Any]) -> WorkflowRecord:
    """The record behind GetWorkflow's answer."""
    return WorkflowRecord(
        seq=raw["Seq"],
        saga_id=raw["WorkflowId"],
        key=raw["Resource"],
        workflow=raw["Workflow"],
        state=raw["State"],
        began_unix_ms=raw["BeganUnixMs"],
        unix_ms=raw["UnixMs"],
        events=tuple(_event_of(event) for event in raw["Events"]),
        left_out=raw["LeftOut"],
    )


def _event_of(raw: Mapping[str, Any]) -> WorkflowEvent:
    return WorkflowEvent(
        unix_ms=raw["UnixMs"],
        given=raw["Given"],
        decided=raw["Decided"],
        step_id=raw["StepId"],
        attempt=raw["Attempt"],
        reasons=tuple(StatusReason(reason["Code"], reason["Message"]) for reason in raw["Reasons"]),
        module=raw["Module"],
        operation=raw["Operation"],
        sent_step_id=raw["SentStepId"],
        sent_attempt=raw["SentAttempt"],
        due_unix_ms=raw["DueUnixMs"],
    )


def _get(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = connect(choose_folder(args.data_dir)).call("GetWorkflow", {"WorkflowId": args.id})[
        "Workflow"
    ]
    return found


def _function(raw: Mapping[str, Any]) -> str:
    return str(raw["Resource"]).partition("/")[2]


def _took_ms(raw: Mapping[str, Any], now_ms: int) -> int:
    ended = raw["State"] in ("succeeded", "failed")
    return int((raw["UnixMs"] if ended else now_ms) - raw["BeganUnixMs"])


def _waits(raw: Mapping[str, Any], now_ms: int) -> str:
    """What a workflow that has not ended waits for."""
    last = raw["Last"]
    if last is None or raw["State"] in ("succeeded", "failed"):
        return ""
    if last["Decided"] == "send":
        since_s = (now_ms - last["UnixMs"]) / 1000
        return f"module {last['Module']} to {last['Operation']}, {since_s:.1f} s, attempt {last['SentAttempt']}"
    why = "; ".join(f"{reason['Code']}: {reason['Message']}" for reason in last["Reasons"])
    return f"another try after attempt {last['Attempt']}: {why}"


def _given_text(event: Mapping[str, Any]) -> str:
    why = "".join(f" {reason['Code']}: {reason['Message']}" for reason in event["Reasons"])
    if event["Given"] in ("done", "failed", "retryable"):
        return f"{event['Given']} (step {event['StepId'].partition('/')[2]}, attempt {event['Attempt']}){why}"
    return f"{event['Given']}{why}"


def _decided_text(event: Mapping[str, Any]) -> str:
    if event["Decided"] == "send":
        again = f", attempt {event['SentAttempt']}" if event["SentAttempt"] > 1 else ""
        return f"send {event['Module']} {event['Operation']}{again}"
    return str(event["Decided"])


def _shown(raw: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    return {
        "id": raw["WorkflowId"],
        "workflow": raw["Workflow"],
        "resource": raw["Resource"],
        "state": raw["State"],
        "began_unix_ms": raw["BeganUnixMs"],
        "unix_ms": raw["UnixMs"],
        "took_ms": _took_ms(raw, now_ms),
        "waits_for": _waits(raw, now_ms),
        "left_out": raw["LeftOut"],
    }


def _shown_event(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "unix_ms": raw["UnixMs"],
        "given": raw["Given"],
        "decided": raw["Decided"],
        "step": raw["StepId"],
        "attempt": raw["Attempt"],
        "reasons": [{"code": reason["Code"], "message": reason["Message"]} for reason in raw["Reasons"]],
        "module": raw["Module"],
        "operation": raw["Operation"],
        "sent_attempt": raw["SentAttempt"],
    }
