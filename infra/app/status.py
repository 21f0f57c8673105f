"""`penstock status`: how a fabric is, from its own notes, the living processes and the gateway's /readyz. Standard library only."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from infra.app.console import ExitStatus, note, say, say_json, table
from infra.app.state import (
    ENDPOINTS,
    FabricFolder,
    FabricState,
    Phase,
    ProcessState,
    choose_folder,
    is_alive,
    running_state,
)

_READY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the gateway's /readyz said. `parts` by name; `trouble` is why nothing was heard."""

    is_ready: bool
    parts: Mapping[str, bool]
    trouble: str = ""


def run(args: argparse.Namespace) -> ExitStatus:
    """The command: 0 when ready, else 3."""
    folder = choose_folder(args.data_dir)
    state = running_state(folder)
    if state is None:
        shown = absent(folder)
        trouble = f"no fabric runs in {folder.path}: start it with `penstock up`"
    else:
        api = state.endpoints.get("api")
        readiness = ask(api) if api else Readiness(False, {}, "the gateway has no address yet")
        alive = frozenset(p.name for p in state.processes if is_alive(p))
        shown = judge(folder, state, alive, readiness)
        trouble = why_not(state, shown["processes"], readiness)
    if args.json:
        say_json(shown)
    elif state is not None:
        _show(state, shown)
    if shown["ready"]:
        return ExitStatus.OK
    note(f"penstock: {trouble}")
    return ExitStatus.PLATFORM


def absent(folder: FabricFolder) -> dict[str, Any]:
    """The status of a folder in which no fabric runs."""
    return {
        "ready": False,
        "endpoints": dict.fromkeys(ENDPOINTS),
        "credentials_file": str(folder.credentials_file),
        "data_dir": str(folder.path),
        "driver": None,
        "processes": [],
        "warnings": [],
    }


def judge(folder: FabricFolder, state: FabricState, alive: frozenset[str], readiness: Readiness) -> dict[str, Any]:
    """The status of a running fabric, in the shape that DESIGN.md section 10 fixes. Pure.

    Args:
        folder: where it runs.
        state: what `up` noted last.
        alive: names of the processes that live; `up` may not have noticed a death yet.
        readiness: the gateway's answer.
    """
    processes = [
        {
            "name": p.name,
            "pid": p.pid if p.name in alive else None,
            "state": _state(p, is_here=p.name in alive),
            "restarts": p.restarts,
            "since": p.since,
        }
        for p in state.processes
    ]
    all_run = bool(processes) and all(p["state"] == "running" for p in processes)
    return {
        "ready": state.phase is Phase.READY and all_run and readiness.is_ready,
        "endpoints": {name: state.endpoints.get(name) for name in ENDPOINTS},
        "credentials_file": str(folder.credentials_file),
        "data_dir": str(folder.path),
        "driver": state.driver or None,
        "processes": processes,
        "warnings": list(state.warnings),
    }


def _state(process: ProcessState, *, is_here: bool) -> str:
    return "backoff" if process.state in ("running", "starting") and process.pid and not is_here else process.state


def why_not(state: FabricState, processes: list[dict[str, Any]], readiness: Readiness) -> str:
    """Why the fabric is not ready, as one line."""
    away = [f"{p['name']} is {p['state']}" for p in processes if p["state"] != "running"]
    parts = [f"the gateway waits for {name}" for name, is_well in readiness.parts.items() if not is_well]
    reasons = away or parts or ([readiness.trouble] if readiness.trouble else [])
    phase = "not ready" if state.phase is Phase.READY else str(state.phase)
    logs = f"; logs are in {state.data_dir}/log" if away else ""
    return f"the fabric is {phase}" + (f": {', '.join(reasons)}{logs}" if reasons else "")


def ask(api: str, *, timeout_s: float = _READY_S) -> Readiness:
    """What the gateway's /readyz says."""
    import http.client

    connection = http.client.HTTPConnection(urlsplit(api).netloc, timeout=timeout_s)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(65_536)
    except (OSError, http.client.HTTPException) as exc:
        return Readiness(False, {}, f"the gateway does not answer at {api} ({str(exc) or type(exc).__name__})")
    finally:
        connection.close()
    try:
        parts = {str(k): bool(v) for k, v in json.loads(body)["parts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        parts = {}
    is_ready = answer.status == http.client.OK
    return Readiness(
        is_ready, parts, "" if is_ready else f"the gateway says that it is not ready (HTTP {answer.status})"
    )


def _show(state: FabricState, shown: Mapping[str, Any]) -> None:
    word = "ready" if shown["ready"] else "not ready" if state.phase is Phase.READY else str(state.phase)
    say(
        f"Penstock is {word}, process {state.up.pid}, since {state.up.since}, driver {shown['driver'] or 'not known yet'}"
    )
    say()
    for name, address in shown["endpoints"].items():
        if address:
            say(f"  {name:<12} {address}")
    say(f"  {'credentials':<12} {shown['credentials_file']}")
    say(f"  {'data':<12} {shown['data_dir']}")
    say()
    header = ("process", "pid", "state", "restarts", "since")
    rows = table(header, [tuple(p.values()) for p in shown["processes"]]).splitlines()
    say("\n".join("  " + row for row in rows))
    for warning in shown["warnings"]:
        say(f"\n  warning: {warning}")
