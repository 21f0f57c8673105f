"""How a command speaks and ends: results on stdout, troubles on stderr, exit statuses. Standard library only."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

from schemas.errors import BadRequest, ConfigError, DependencyError, IsolationUnavailable, PenstockError, PlatformError


class ExitStatus(IntEnum):
    """What a command's end means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PLATFORM = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class UsageProblem(ConfigError):
    """A command line that can't be meant: a file that is not there, a name that is not legal."""

    code = "UsageProblem"


def status_of(error: PenstockError) -> ExitStatus:
    """The exit status for an error that ended a command."""
    if isinstance(error, ConfigError):
        return ExitStatus.USAGE
    if isinstance(error, BadRequest):
        ours = error.api_code.startswith(("InternalError", "ResourceUnavailable", "RequestLimitExceeded"))
        return ExitStatus.PLATFORM if ours else ExitStatus.FAILED
    if isinstance(error, IsolationUnavailable):
        return ExitStatus.FAILED
    return ExitStatus.PLATFORM if isinstance(error, DependencyError | PlatformError) else ExitStatus.FAILED


def say(text: str = "") -> None:
    """A line of the result."""
    print(text)


def say_json(value: Any) -> None:
    """The result as one JSON text."""
    print(json.dumps(value, ensure_ascii=False))


def note(text: str) -> None:
    """A line beside the result, on stderr."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def complain(error: BaseException) -> None:
    """One or two lines on stderr that say what went wrong and what to do; with PENSTOCK_DEBUG=1 the traceback too."""
    if os.environ.get("PENSTOCK_DEBUG"):
        traceback.print_exception(error)
    code = f" [{error.api_code}]" if isinstance(error, BadRequest) else ""
    note(f"penstock: {error}{code}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows in columns, numbers to the right."""
    cells = [list(header), *[["" if c is None else str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [all(_is_number(row[i]) for row in cells[1:]) and len(cells) > 1 for i in range(len(header))]
    lines = []
    for row in cells:
        fitted = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True))
        lines.append("  ".join(fitted).rstrip())
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text == "" or text.replace(".", "", 1).replace("-", "", 1).isdigit()
