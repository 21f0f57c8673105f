"""`penstock trigger create|list|delete|pause|resume`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any, Protocol

from infra.app.client import connect
from infra.app.console import ExitStatus, UsageProblem, say, say_json, table
from infra.app.state import choose_folder
from infra.app.times import parse_start
from schemas.errors import BadRequest
from schemas.ids import is_topic, is_trigger_name


class Api(Protocol):
    """The cloud API, as far as triggers go."""

    def call(self, action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The answer's fields; raises BadRequest."""
        ...


def create(args: argparse.Namespace) -> ExitStatus:
    """`trigger create`: returns when the start offsets are committed."""
    desc = trigger_desc(args)
    name = args.name or args.topic
    if not is_trigger_name(name):
        raise UsageProblem(
            f"{name!r} can't be a trigger's name; give another with --name (letters, digits, dots, - and _)"
        )
    api = connect(choose_folder(args.data_dir))
    _check_unique(api, args.namespace, args.function, name, given=args.name is not None)
    answer = api.call(
        "CreateTrigger",
        {
            "FunctionName": args.function,
            "Namespace": args.namespace,
            "TriggerName": name,
            "Type": args.type,
            "TriggerDesc": json.dumps(desc, separators=(",", ":")),
            "Enable": "OPEN",
        },
    )
    if args.json:
        say_json(answer["TriggerInfo"])
    else:
        say(f"trigger {name} carries {args.topic} to {args.function}, from {args.start}")
    return ExitStatus.OK


def trigger_desc(args: argparse.Namespace) -> dict[str, Any]:
    """TriggerDesc of a ckafka trigger: what was given; the rest is the API's default. Raises UsageProblem."""
    if not is_topic(args.topic):
        raise UsageProblem(f"--topic {args.topic!r} is not the name of a Kafka topic")
    try:
        start = parse_start(args.start)
    except ValueError as exc:
        raise UsageProblem(f"--from: {exc}") from exc
    desc = {
        "topic": args.topic,
        "offset": start,
        "bootstrapServers": args.bootstrap_servers,
        "maxMsgNum": args.batch,
        "retry": args.retries,
        "concurrency": args.concurrency,
        "ordering": args.ordering,
        "onPoison": args.on_poison,
    }
    return {key: value for key, value in desc.items() if value is not None}


def _check_unique(api: Api, namespace: str, function: str, name: str, *, given: bool) -> None:
    """Names that the command line gives are unique in a namespace, so that one name is enough to find a trigger."""
    for source in api.call("ListEventSources", {"Namespace": namespace, "TriggerName": name})["Sources"]:
        if source["Function"] != function:
            advice = "choose another --name" if given else "choose a name with --name"
            raise BadRequest(
                "ResourceInUse.Trigger",
                f"function {source['Function']} has a trigger {name!r} already, and names are unique in a namespace: {advice}",
            )


def list_sources(args: argparse.Namespace) -> ExitStatus:
    """`trigger list`."""
    answer = connect(choose_folder(args.data_dir)).call(
        "ListEventSources", {"Namespace": args.namespace, "FunctionName": args.function}
    )
    sources = [shown_source(source) for source in answer["Sources"]]
    if args.json:
        say_json(sources)
        return ExitStatus.OK
    if not sources:
        say("there are no triggers; `penstock trigger create` makes one")
        return ExitStatus.OK
    header = (
        "trigger",
        "function",
        "source",
        "state",
        "partition",
        "committed",
        "end",
        "lag",
        "in flight",
        "parked",
        "dead",
        "why",
    )
    say(table(header, [row for source in sources for row in _rows(source)]))
    return ExitStatus.OK


def shown_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """One source under the names that DESIGN.md section 10 fixes."""
    return {
        "name": source["Name"],
        "function": source["Function"],
        "namespace": source["Namespace"],
        "type": source["Type"],
        "source": source["Source"],
        "state": source["State"],
        "partitions": [
            {
                "partition": p["Partition"],
                "committed": p["Committed"],
                "end": p["End"],
                "lag": p["Lag"],
                "in_flight": p["InFlight"],
                "parked": p["Parked"],
                "dead": p["Dead"],
                "why": p["Why"],
            }
            for p in source["Partitions"]
        ],
    }


def _rows(source: Mapping[str, Any]) -> list[tuple[object, ...]]:
    head = (source["name"], source["function"], source["source"], source["state"])
    if not source["partitions"]:
        return [(*head, *[""] * 8)]
    return [
        (*(head if number == 0 else ("", "", "", "")), *p.values()) for number, p in enumerate(source["partitions"])
    ]


def change(args: argparse.Namespace) -> ExitStatus:
    """`trigger delete|pause|resume`."""
    api = connect(choose_folder(args.data_dir))
    source = find(api, args.namespace, args.names, args.name)
    fields = {
        "FunctionName": source["Function"],
        "Namespace": args.namespace,
        "TriggerName": source["Name"],
        "Type": source["Type"],
    }
    if args.verb == "delete":
        api.call("DeleteTrigger", fields)
    else:
        api.call("UpdateTriggerStatus", {**fields, "Enable": "CLOSE" if args.verb == "pause" else "OPEN"})
    done = {"delete": "deleted", "pause": "paused", "resume": "resumed"}[args.verb]
    if args.json:
        say_json({"name": source["Name"], "function": source["Function"], "namespace": args.namespace, "done": done})
    else:
        say(f"trigger {source['Name']} of {source['Function']} is {done}")
    return ExitStatus.OK


def find(api: Api, namespace: str, names: list[str], name: str | None) -> dict[str, Any]:
    """The one trigger that `NAME`, `FUNCTION NAME` or `FUNCTION --name NAME` means.

    Raises:
        UsageProblem: none, or several, can be meant.
        BadRequest: there is no such trigger.
    """
    *function, wanted = [*names, name] if name is not None else names
    if len(function) > 1:
        raise UsageProblem("name the trigger once: NAME, FUNCTION NAME, or FUNCTION --name NAME")
    fields = {"Namespace": namespace, "FunctionName": function[0] if function else None, "TriggerName": wanted}
    found = api.call("ListEventSources", fields)["Sources"]
    if not found:
        where = f"function {function[0]}" if function else f"namespace {namespace}"
        raise BadRequest(
            "ResourceNotFound.Trigger", f"{where} has no trigger {wanted!r}; `penstock trigger list` shows all"
        )
    if len(found) > 1:
        functions = ", ".join(sorted(source["Function"] for source in found))
        raise UsageProblem(f"several functions have a trigger {wanted!r} ({functions}): say FUNCTION {wanted}")
    return dict(found[0])
