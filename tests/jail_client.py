"""Talks to a worker as the agent does, for tests of drivers: load a function, run events, read what comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from sandbox.driver import Node, Worker
from schemas.frames import Done, DoneOutcome, Kind, Spec, Splitter, decode_done, encode_run, json_frame, parse_json

WAIT_S = 20.0


def spec(*, memory_mib: int = 128, sha256: str = "ab" * 32, handler: str = "index.main_handler") -> Spec:
    """A function version whose package is already on this host."""
    return Spec("1", "1", "default", "f", "$LATEST", sha256, handler, "Python3.10", memory_mib, 3, 65, "r", {})


def package(folder: Path, code: str) -> Path:
    """A package with one `index.py`."""
    folder.mkdir(parents=True)
    (folder / "index.py").write_text(code)
    return folder


class Ended(Exception):
    """The worker closed its socket instead of answering."""


class Talk:
    """One worker's conversation."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._splitter = Splitter()
        self._frames: list[tuple[int, bytes]] = []
        self._corr = 0

    async def load(self, *, environment: dict[str, str] | None = None) -> dict[str, Any]:
        """LOAD, then what READY says."""
        wanted = {
            "handler": "index.main_handler",
            "code_dir": "/var/user",
            "environment": environment or {"PATH": "/var/lang/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
            "context": {},
        }
        await self._send(json_frame(Kind.LOAD, 0, wanted))
        while True:
            kind, payload = await self._next()
            if kind == Kind.READY:
                said: dict[str, Any] = parse_json(payload)[1]
                return said

    async def run(self, event: Any) -> Any:
        """What the handler returned; AssertionError with its error when it failed, Ended when the worker died."""
        done = await self.done(event)
        assert done.outcome == DoneOutcome.OK, done.body.decode()
        return json.loads(done.body)

    async def done(self, event: Any) -> Done:
        """One RUN and its DONE."""
        self._corr += 1
        await self._send(encode_run(self._corr, b"\1" * 16, json.dumps(event).encode()))
        while True:
            kind, payload = await self._next()
            if kind == Kind.DONE:
                return decode_done(payload)

    async def _send(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            await asyncio.get_running_loop().sock_sendall(self.worker.socket, data)

    async def _next(self) -> tuple[int, bytes]:
        while not self._frames:
            async with asyncio.timeout(WAIT_S):
                try:
                    data = await asyncio.get_running_loop().sock_recv(self.worker.socket, 1 << 18)
                except ConnectionError:
                    data = b""
            if not data:
                raise Ended
            self._frames = self._splitter.feed(data)
        return self._frames.pop(0)


async def started(node: Node, code_dir: Path, wanted: Spec | None = None) -> Talk:
    """A loaded worker."""
    talk = Talk(await node.start_worker(wanted or spec(), code_dir, environment={}))
    assert await talk.load() == {"ok": True}
    return talk
