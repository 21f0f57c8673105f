"""Log lines that are not yet acknowledged by Kafka, on disk: a killed agent's last lines are sent by its successor.

One file per generation; the shipper begins a new one at each flush and drops it when all its blocks are acknowledged, so there are few and
small ones. Written before the results of the same loop turn leave the agent. What a process wrote survives its SIGKILL (page cache),
not a power cut.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from infra.telemetry import get_logger

log = get_logger("sandbox.journal")

_LENGTH: Final = struct.Struct("!I")
_SUFFIX: Final = ".unshipped"


class Kept(NamedTuple):
    """Entries of one function as they were kept; `wall_offset_s` turns their monotonic times into wall times."""

    wall_offset_s: float
    key: str
    version: str
    memory_mib: int
    entries: list[Any]


class Journal:
    """The generations of one agent. A disk that fails is said once and journaling goes on without."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1
        self.generation = 0

    def recover(self) -> Iterator[Kept]:
        """What a predecessor left, oldest first; the files go when the caller has taken all."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        left = sorted(p for p in self._folder.glob(f"*{_SUFFIX}") if p.stem.isdigit())
        for path in left:
            yield from _read(path.read_bytes())
        for path in left:
            path.unlink(missing_ok=True)

    def append(self, kept: Kept) -> None:
        """Write to the current generation."""
        data = marshal.dumps(tuple(kept))
        try:
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._fd = os.open(self._path(self.generation), flags, 0o600)
            os.write(self._fd, _LENGTH.pack(len(data)) + data)
        except OSError as exc:
            log.warning("log lines are not kept against a kill", reason=exc.strerror)

    def close_generation(self) -> None:
        """What comes next belongs to the next generation."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.generation += 1

    def drop(self, generation: int) -> None:
        """All of it is acknowledged."""
        with contextlib.suppress(OSError):
            self._path(generation).unlink(missing_ok=True)

    def _path(self, generation: int) -> Path:
        return self._folder / f"{generation:012}{_SUFFIX}"


def _read(data: bytes) -> Iterator[Kept]:
    at = 0
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + length
        if at > len(data):
            return  # cut off by the kill
        try:
            yield Kept(*marshal.loads(data[at - length : at]))  # noqa: S302 - our own file, mode 0600
        except (ValueError, EOFError, TypeError):
            return
