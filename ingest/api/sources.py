"""ListEventSources, Penstock's own action: every trigger that pulls, with where it stands in each partition and why it does not move."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ingest.api.fields import param
from ingest.api.params import must, namespace, trigger_name
from ingest.api.ports import LaneState, Position
from ingest.api.services import Call, Services
from schemas.errors import DependencyError
from schemas.ids import FunctionKey, TriggerKey, is_function_name
from schemas.records import LanePartition, TriggerRecord

AT_ONCE: Final = 8
"""Brokers are asked about so many triggers at a time."""


@dataclass(frozen=True, slots=True)
class ListEventSources:
    """Request; all fields narrow the listing."""

    namespace: str = namespace()
    function_name: str | None = param(
        None, code="InvalidParameterValue.FunctionName", check=must(is_function_name, "the name of a function")
    )
    trigger_name: str | None = trigger_name(required=False)


async def list_event_sources(services: Services, call: Call, request: ListEventSources) -> Mapping[str, Any]:
    """Sources by function and name. Committed and End are read from the brokers now; Lag is End - Committed, in records."""
    triggers = [t for t in _triggers(services, call, request) if request.trigger_name in (None, t.name)]
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(trigger: TriggerRecord) -> dict[str, Any]:
        async with gate:
            return await _source(services, trigger)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(trigger)) for trigger in triggers]
    return {"Sources": [task.result() for task in tasks]}


def _triggers(services: Services, call: Call, request: ListEventSources) -> list[TriggerRecord]:
    if request.function_name is not None:
        key = call.function(request.namespace, request.function_name)
        services.function(key)
        return services.triggers_of(key)
    functions = services.functions.within(services.namespace(call.caller.appid, request.namespace))
    return [t for f in functions for t in services.triggers_of(FunctionKey(f.appid, f.namespace, f.name))]


async def _source(services: Services, trigger: TriggerRecord) -> dict[str, Any]:
    key = TriggerKey(FunctionKey(trigger.appid, trigger.namespace, trigger.function), trigger.name)
    lanes = services.lanes.of(key)
    positions: Mapping[int, Position] = {}
    unreachable = ""
    source = trigger.kafka
    if source is not None:
        try:
            positions = await services.sources.positions(source.bootstrap_servers, source.group_id, source.topic)
        except DependencyError as exc:
            unreachable = f"Kafka does not answer at {source.bootstrap_servers or services.bootstrap_servers}: {exc}"
    dead: Mapping[int, int] = {}
    try:
        dead = await services.dead.dead(key)
    except DependencyError as exc:
        unreachable = unreachable or f"Kafka does not answer at {services.bootstrap_servers}: {exc}"
    return {
        "Name": trigger.name,
        "Function": trigger.function,
        "Namespace": trigger.namespace,
        "Type": trigger.type,
        "Source": source.topic if source is not None else "",
        "BootstrapServers": (source.bootstrap_servers or services.bootstrap_servers) if source is not None else "",
        "GroupId": source.group_id if source is not None else "",
        "State": source_state(trigger, lanes, unreachable=bool(unreachable)),
        "Partitions": partitions_of(positions, lanes.partitions, dead, unreachable),
    }


def source_state(trigger: TriggerRecord, lanes: LaneState, *, unreachable: bool) -> str:
    """One word: paused, unreachable, what its owners say (running, …), or starting when none has said anything yet."""
    if not trigger.enabled:
        return "paused"
    if unreachable:
        return "unreachable"
    return lanes.state or "starting"


def partitions_of(
    positions: Mapping[int, Position], lanes: Mapping[int, LanePartition], dead: Mapping[int, int], unreachable: str
) -> list[dict[str, Any]]:
    """Partitions in order: all that the broker or an owner knows of. Committed, End and Lag are null when the broker does not answer."""
    rows = []
    for partition in sorted({*positions, *lanes}):
        position, lane = positions.get(partition), lanes.get(partition)
        rows.append(
            {
                "Partition": partition,
                "Committed": position.committed if position is not None else None,
                "End": position.end if position is not None else None,
                "Lag": max(0, position.end - position.committed) if position is not None else None,
                "InFlight": lane.in_flight if lane is not None else 0,
                "Parked": lane.parked if lane is not None else 0,
                "Dead": dead.get(partition, 0),
                "Why": unreachable or (lane.why if lane is not None else ""),
            }
        )
    return rows
