"""Commands and step results for tests of what decides about functions and triggers."""

from __future__ import annotations

from dataclasses import replace

from schemas.records import (
    AliasRecord,
    Command,
    FunctionConfig,
    KafkaSource,
    StatusReason,
    StepResult,
    TriggerRecord,
    VersionMatch,
)
from streams.sagas import WORKFLOWS

NOW_MS = 1_700_000_000_000
CONFIG = FunctionConfig("$LATEST", "0" * 64, 100, "index.main_handler", "Python3.10", 128, 3, 65)
SOURCE = KafkaSource("127.0.0.1:9092", "orders", "penstock.1250000000.default.hello.t.1")
FAILURE = (StatusReason("InvalidParameterValue.Handler", "index.py has no main_handler"),)


def command(
    kind: str,
    command_id: str = "c1",
    *,
    function: str = "hello",
    trigger: str | None = None,
    config: FunctionConfig | None = None,
    description: str | None = None,
    unix_ms: int = NOW_MS,
) -> Command:
    """One command; `create-function` and `update-function` without a configuration get the usual one."""
    if config is None and description is None and kind in {"create-function", "update-function"}:
        config = CONFIG
    return Command(
        command_id=command_id,
        kind=kind,
        unix_ms=unix_ms,
        appid="1250000000",
        uin="100000000001",
        namespace="default",
        function=function,
        description=description,
        config=config,
        trigger=None if trigger is None else trigger_record(trigger, function=function, command_id=command_id),
    )


def trigger_record(name: str = "t", *, function: str = "hello", command_id: str = "c1") -> TriggerRecord:
    """A Kafka trigger as a gateway proposes it."""
    return TriggerRecord(
        seq=0,
        appid="1250000000",
        uin="100000000001",
        namespace="default",
        function=function,
        name=name,
        type="ckafka",
        qualifier="$DEFAULT",
        enabled=True,
        trigger_desc="{}",
        custom_argument="",
        created_unix_ms=NOW_MS,
        modified_unix_ms=NOW_MS,
        applied=-1,
        command_id=command_id,
        kafka=SOURCE,
    )


def alias_record(
    name: str = "prod", version: str = "1", *, additional: str = "", weight: float = 0.0, rule: str = ""
) -> AliasRecord:
    """An alias as a gateway proposes it; `rule` is the version of a header rule."""
    matches = (VersionMatch(rule, "User", "exact", "Bob"),) if rule else ()
    return AliasRecord(
        0,
        "1250000000",
        "1",
        "default",
        "hello",
        name,
        version,
        "",
        NOW_MS,
        NOW_MS,
        -1,
        "c1",
        additional,
        weight,
        matches,
    )


def answer(
    command_id: str = "c1",
    *,
    function: str = "hello",
    step: int = 0,
    reasons: tuple[StatusReason, ...] = (),
    unix_ms: int = NOW_MS + 1,
) -> StepResult:
    """A module's answer to a step of the saga that a command began."""
    return StepResult(f"{command_id}/{step}", command_id, "code", f"1250000000/default/{function}", unix_ms, reasons)


def answers(
    command_id: str = "c1", *, function: str = "hello", kind: str = "create-function", unix_ms: int = NOW_MS + 1
) -> tuple[StepResult, ...]:
    """Good answers to all steps of the saga that a command began."""
    count = len(WORKFLOWS[kind].steps)
    return tuple(answer(command_id, function=function, step=step, unix_ms=unix_ms) for step in range(count))


def other_config(handler: str = "index.other") -> FunctionConfig:
    """A configuration that differs from `CONFIG`."""
    return replace(CONFIG, handler=handler)
