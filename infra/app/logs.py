"""`penstock logs`: the lines of a function, oldest first, in arrival order."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from infra import clock
from infra.app.client import connect
from infra.app.console import ExitStatus, UsageProblem, note
from infra.app.state import choose_folder
from infra.app.times import local_text, parse_since
from schemas.errors import ApiUnavailable, BadRequest

_PAGE_LINES: Final = 5_000
_WAIT_MS: Final = 5_000
_GIVE_UP_S: Final = 60.0
_PAUSE_S: Final = 0.5


class Api(Protocol):
    """What lines are read from."""

    def call(self, action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The answer's fields; raises BadRequest or ApiUnavailable."""
        ...


def run(args: argparse.Namespace) -> ExitStatus:
    """The command."""
    since = None
    if args.since is not None:
        try:
            since = parse_since(args.since, now_ms=clock.unix_ms())
        except ValueError as exc:
            raise UsageProblem(f"--since: {exc}") from exc
    api = connect(choose_folder(args.data_dir))
    fields = {"FunctionName": args.function, "Namespace": args.namespace, "FunctionRequestId": args.request_id}
    for lines in pages(api, fields, since=since, follow=args.follow):
        write = _as_json if args.json else _as_text
        sys.stdout.write("".join(write(line) for line in lines))
        if args.follow:
            sys.stdout.flush()
    return ExitStatus.OK


def pages(
    api: Api, fields: Mapping[str, Any], *, since: int | None, follow: bool, give_up_s: float = _GIVE_UP_S
) -> Iterator[list[dict[str, Any]]]:
    """Lines as they come: to the end that is kept now, or for ever when following (a fabric that is away for a while is waited for)."""
    cursor = ""
    away_since_s: float | None = None
    while True:
        wanted = {**fields, "Limit": _PAGE_LINES, **({"Cursor": cursor} if cursor else {"Since": since})}
        if follow and cursor:
            wanted["WaitMs"] = _WAIT_MS
        try:
            answer = api.call("GetFunctionLogLines", wanted)
        except (ApiUnavailable, BadRequest) as exc:
            if not (follow and cursor and _may_pass(exc)):
                raise
            if away_since_s is None:
                away_since_s = clock.mono_s()
                note("penstock: the fabric does not answer; waiting for it")
            if clock.mono_s() - away_since_s > give_up_s:
                raise
            time.sleep(_PAUSE_S)
            continue
        away_since_s = None
        cursor = str(answer["Cursor"])
        if answer["Lines"]:
            yield answer["Lines"]
        if answer["AtEnd"] and not follow:
            return


def _may_pass(error: ApiUnavailable | BadRequest) -> bool:
    return not isinstance(error, BadRequest) or error.api_code.startswith(("ResourceUnavailable", "InternalError"))


def _as_json(line: Mapping[str, Any]) -> str:
    plain = {
        "request_id": line["RequestId"],
        "unix_ms": line["UnixMs"],
        "stream": line["Stream"],
        "line": line["Line"],
    }
    return json.dumps(plain, ensure_ascii=False) + "\n"


def _as_text(line: Mapping[str, Any]) -> str:
    return f"{local_text(line['UnixMs'])} {line['RequestId'][:8]} {line['Stream']:<8} {line['Line']}\n"
