"""Named fault points: places where a test has a process killed, so that each is hit and not hoped for.

A test sets PENSTOCK_FAULTS to a folder and writes the file `<folder>/<point>` with process ids, one a line. The first process that comes by
takes the file away (so it strikes once) and sends each of them SIGKILL: its own, or another's. Without that variable a point does nothing.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

VARIABLE: Final = "PENSTOCK_FAULTS"
_FOLDER: Final = os.environ.get(VARIABLE, "")


def fault(point: str) -> None:
    """Die here, or have another process die, if a test asks for it."""
    if _FOLDER:
        _strike(Path(_FOLDER), point.replace("/", "-"))


def _strike(folder: Path, point: str) -> None:
    struck = folder / f"{point}.struck"
    try:
        (folder / point).rename(struck)
    except FileNotFoundError:
        return
    own = os.getpid()
    for pid in sorted(map(int, struck.read_text().split()), key=lambda pid: pid == own):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
