"""The last log blocks of this host on disk, bounded: a ring of files `NNNNNNNN.blocks`, each block a u32 length and a LogBlock message.

They can be read when Kafka is away. Written by a thread of its own, because a disk can stall.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from infra.telemetry import get_logger
from schemas import avro
from schemas.errors import WireError
from schemas.records import LogBlock

log = get_logger("sandbox.recentlogs")

_LENGTH: Final = struct.Struct("!I")
_SUFFIX: Final = ".blocks"


class RecentBlocks:
    """Keeps about `limit_bytes` of blocks in `files` files of one folder."""

    def __init__(
        self, folder: Path, *, limit_bytes: int = 64 * 1024 * 1024, files: int = 8, waiting: int = 512
    ) -> None:
        self._folder, self._file_bytes, self._files = folder, limit_bytes // files, files
        self._queue: queue.Queue[bytes | None] = queue.Queue(waiting)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Go on after the newest file in the folder."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="recent-logs", daemon=True)
        self._thread.start()

    def append(self, block: bytes) -> bool:
        """Hand over one block; False (and dropped) when the disk is too slow."""
        try:
            self._queue.put_nowait(block)
        except queue.Full:
            return False
        return True

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is waiting, then end."""
        if self._thread is not None:
            try:
                self._queue.put(None, timeout=timeout_s)
            except queue.Full:
                return
            self._thread.join(timeout_s)

    def _run(self) -> None:
        number = max((int(p.stem) for p in _files(self._folder)), default=0)
        more = True
        while more:
            number += 1
            self._drop_old(number)
            try:
                with (self._folder / f"{number:08}{_SUFFIX}").open("wb", buffering=0) as out:
                    more = self._fill(out.write)
            except OSError as exc:
                log.warning("recent log lines are not kept", reason=exc.strerror)
                more = self._queue.get() is not None  # that one is lost; try again with the next

    def _fill(self, write: Callable[[bytes], int]) -> bool:
        written = 0
        while written < self._file_bytes:
            block = self._queue.get()
            if block is None:
                return False
            written += write(_LENGTH.pack(len(block)) + block)
        return True

    def _drop_old(self, newest: int) -> None:
        for path in _files(self._folder):
            if int(path.stem) <= newest - self._files:
                path.unlink(missing_ok=True)


def read_recent(folder: Path) -> Iterator[LogBlock]:
    """Blocks in the order they were written; ends a file at its first damaged block."""
    for path in _files(folder):
        data = path.read_bytes()
        at = 0
        while at + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + length
            try:
                yield avro.decode(LogBlock, data[at - length : at])
            except WireError:
                break


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"*{_SUFFIX}") if p.stem.isdigit())
