"""`penstock top`: what runs now, by function, and which processes are alive."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from infra import clock
from infra.app.client import Client, connect
from infra.app.console import ExitStatus, say, say_json, table
from infra.app.state import choose_folder
from infra.app.times import local_text

FUNCTION_HEADER: Final = (
    "function", "in/s", "done/s", "failed/s", "running", "queued", "mean ms", "max ms", "wait ms",
    "warm", "L1", "L2", "L3", "L4", "L5", "done", "failed", "retried", "throttled", "dead",
)  # fmt: skip
MEMBER_HEADER: Final = ("process", "host", "zone", "address", "last seen")


def run(args: argparse.Namespace) -> ExitStatus:
    """The command: once with --once, --json, or when stdout is no terminal; else again and again until Ctrl-C."""
    api = connect(choose_folder(args.data_dir))
    if args.json:
        answer = api.call("GetActivity", {})
        say_json({"Functions": answer["Functions"], "Members": answer["Members"]})
    elif args.once or not sys.stdout.isatty():
        say(_plain(api.call("GetActivity", {})))
    else:
        _live(api, args.every)
    return ExitStatus.OK


def function_rows(functions: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The busiest first."""
    ordered = sorted(functions, key=lambda f: (-f["ArrivalsPerS"], -f["InFlight"], f["Key"]))
    return [
        (
            f["Key"].split("/", 1)[-1],
            f"{f['ArrivalsPerS']:.1f}",
            f"{f['CompletedPerS']:.1f}",
            f"{f['FailedPerS']:.1f}",
            str(f["InFlight"]),
            str(f["Queued"]),
            *(f"{f[name] / 1000:.1f}" for name in ("DurationMeanUs", "DurationMaxUs", "WaitMeanUs")),
            *(str(count) for count in f["Cold"]),
            *(str(f[name]) for name in ("Completed", "Failed", "Retried", "Throttled", "Dead")),
        )
        for f in ordered
    ]


def member_rows(members: Sequence[Mapping[str, Any]], now_ms: int) -> list[tuple[str, ...]]:
    """Every process that announced itself, with the age of its last sign of life."""
    return [
        (
            f"{m['Kind']} {m['MemberId']}",
            str(m["Host"]),
            str(m["Zone"]),
            str(m["Address"]),
            f"{max(0, now_ms - m['UnixMs']) / 1000:.1f} s ago",
        )
        for m in members
    ]


def _plain(answer: Mapping[str, Any]) -> str:
    functions, members = function_rows(answer["Functions"]), member_rows(answer["Members"], clock.unix_ms())
    shown = table(FUNCTION_HEADER, functions) if functions else "no function has run yet"
    return f"{shown}\n\n{table(MEMBER_HEADER, members)}" if members else shown


def _live(api: Client, every_s: float) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def grid(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
        made = Table(box=None, pad_edge=False)
        for number, name in enumerate(header):
            made.add_column(name, justify="left" if number < left else "right", no_wrap=number == 0)
        for row in rows:
            made.add_row(*map(Text, row))
        return made

    def page() -> Group:
        answer = api.call("GetActivity", {})
        now_ms = clock.unix_ms()
        return Group(
            Text(f"{local_text(now_ms)[:-4]}   Ctrl-C ends", style="dim"),
            grid(FUNCTION_HEADER, function_rows(answer["Functions"]), 1),
            Text(""),
            grid(MEMBER_HEADER, member_rows(answer["Members"], now_ms), len(MEMBER_HEADER)),
        )

    with Live(page(), console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(page(), refresh=True)
