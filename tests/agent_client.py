"""A real agent over the real jail, and a gateway's end of its connection; in this process or as one that can be killed.

As a program: `python -m tests.agent_client ADDRESS FOLDER` serves until its standard input ends, with packages from FOLDER/packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

from infra import telemetry
from infra.wire import FrameConnection, connect
from sandbox.agent.agent import Agent, AgentConfig, run_agent
from sandbox.agent.host import HostLimits
from sandbox.jail import JailConfig, JailDriver
from schemas import avro, topics
from schemas.errors import ObjectNotFound
from schemas.frames import Flow, Invoke, Kind, Result, Spec, decode_result, encode_invoke, json_frame
from schemas.records import LogBlock, LogLine, Member
from tests.packages import zipped

KEY = b"k" * 32
WAIT_S = 30.0


class FolderStore:
    """Packages from a folder, by the name that they have in the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, code: str) -> str:
        """Keep a package with one index.py; its hash."""
        return self.add_zip(zipped(("index.py", code.encode())))

    def add_zip(self, data: bytes) -> str:
        digest = sha256(data).hexdigest()
        path = self.folder / "sha256" / f"{digest}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return digest

    async def get(self, bucket: str, key: str, expect_sha256: str | None = None) -> bytes:
        try:
            return (self.folder / key).read_bytes()
        except FileNotFoundError as exc:
            raise ObjectNotFound(key) from exc


class Topics:
    """What the agent wrote."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.members: list[Member | None] = []

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, timeout_s: float) -> None:
        self.send_nowait(topic, key=key, value=value)

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        if topic == topics.LOGS:
            assert value is not None
            self.lines += avro.decode(LogBlock, value).lines
        else:
            self.members.append(None if value is None else avro.decode(Member, value))
        return True


class Gateway:
    """A gateway's end of one connection."""

    def __init__(self) -> None:
        self._answers: dict[int, asyncio.Future[Result]] = {}
        self._numbers = 0
        self._declared: dict[str, int] = {}
        self._connection: FrameConnection | None = None

    async def open(self, address: str) -> None:
        self._connection = await connect(address, KEY, {"kind": "gateway", "id": "test"}, self._frames, self._lost)

    def close(self) -> None:
        assert self._connection is not None
        self._connection.close()

    def send(self, event: Any, spec: Spec, *, flow: Flow | None = None, flags: int = 0) -> asyncio.Future[Result]:
        """Invoke; the result comes later."""
        number = self._declare(Kind.SPEC, spec)
        flow_number = 0 if flow is None else self._declare(Kind.FLOW, flow)
        corr = self._next()
        answer = self._answers[corr] = asyncio.get_running_loop().create_future()
        body = json.dumps(event).encode()
        self._write(encode_invoke(Invoke(corr, number, flow_number, 1, flags, self.request_id(corr).bytes, body)))
        return answer

    async def call(self, event: Any, spec: Spec, *, flow: Flow | None = None, flags: int = 0) -> Result:
        async with asyncio.timeout(WAIT_S):
            return await self.send(event, spec, flow=flow, flags=flags)

    async def value(self, event: Any, spec: Spec) -> Any:
        """What the handler returned."""
        result = await self.call(event, spec)
        assert result.status == 200, result
        return json.loads(result.body)

    def declare(self, flow: Flow) -> None:
        self._declare(Kind.FLOW, flow)

    def cancel(self, answer: asyncio.Future[Result]) -> None:
        (corr,) = (c for c, a in self._answers.items() if a is answer)
        self._write(json_frame(Kind.CANCEL, corr, None))

    @staticmethod
    def request_id(corr: int) -> UUID:
        return UUID(int=corr)

    def _declare(self, kind: Kind, what: Spec | Flow) -> int:
        name = f"{kind}{what!r}"
        if name not in self._declared:
            self._declared[name] = self._next()
            self._write(json_frame(kind, self._declared[name], dataclasses.asdict(what)))
        return self._declared[name]

    def _write(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.send(data)

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _frames(self, _connection: FrameConnection, frames: list[tuple[int, bytes]]) -> None:
        for kind, payload in frames:
            if kind == Kind.RESULT:
                result = decode_result(payload)
                self._answers[result.corr].set_result(result)

    def _lost(self, _connection: FrameConnection, _error: BaseException | None) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.cancel()


@dataclasses.dataclass
class Running:
    """An agent in this process."""

    agent: Agent
    store: FolderStore
    topics: Topics
    folder: Path
    gateways: list[Gateway]

    async def gateway(self) -> Gateway:
        gateway = Gateway()
        await gateway.open(self.agent.address)
        self.gateways.append(gateway)
        return gateway

    def spec(self, code: str, **fields: Any) -> Spec:
        made = Spec(
            appid="1250000000",
            uin="100000000001",
            namespace="default",
            function="f",
            version="$LATEST",
            code_sha256=self.store.add(code),
            handler="index.main_handler",
            runtime="Python3.10",
            memory_mib=128,
            timeout_s=5,
            init_timeout_s=10,
            region="ap-guangzhou",
            environment={},
        )
        return dataclasses.replace(made, **fields)

    async def lines(self, corr: int, least: int = 3) -> list[tuple[str, str]]:
        """Stream and text of one invocation's log, once it has that many lines."""
        wanted = str(Gateway.request_id(corr))
        found: list[tuple[str, str]] = []
        async with asyncio.timeout(WAIT_S):
            while len(found) < least:
                await asyncio.sleep(0.01)
                found = [(x.stream, x.line) for x in self.topics.lines if x.request_id == wanted]
        return found


def config(address: str, folder: Path, limits: HostLimits | None = None) -> AgentConfig:
    return AgentConfig(
        "agent-1",
        "host-1",
        "zone-1",
        address,
        KEY,
        folder / "agent",
        "ap-guangzhou",
        stop_s=1.0,
        limits=limits or HostLimits(),
    )


def jail(folder: Path, fabric: str) -> JailDriver:
    return JailDriver(JailConfig(folder / "jail", fabric, allow_weaker=False))


@asynccontextmanager
async def running_agent(folder: Path, *, limits: HostLimits | None = None) -> AsyncIterator[Running]:
    """An agent on the real jail in this process; afterwards nothing of it is left."""
    store, written, stop = FolderStore(folder / "packages"), Topics(), asyncio.Event()
    up: asyncio.Future[Agent] = asyncio.get_running_loop().create_future()
    address = f"unix:@penstock-test-{os.getpid()}-{id(stop)}"
    ran = asyncio.get_running_loop().create_task(
        run_agent(
            config(address, folder, limits),
            driver=jail(folder, f"{os.getpid():08x}"),
            store=store,
            producer=written,
            stop=stop,
            ready=up.set_result,
        )
    )
    done: set[asyncio.Future[Any]] = {ran, up}
    await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
    if ran.done():
        ran.result()
    made = Running(up.result(), store, written, folder, [])
    try:
        yield made
    finally:
        stop.set()
        await ran
        for gateway in made.gateways:
            gateway.close()


def below(pid: int) -> list[int]:
    """Descendants of a process."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *below(int(child))]
    return found


async def until(condition: Callable[[], Any], within_s: float = WAIT_S) -> Any:
    """Poll until the condition holds; what it gave."""
    async with asyncio.timeout(within_s):
        while not (found := condition()):
            await asyncio.sleep(0.005)
    return found


async def _serve(address: str, folder: Path) -> None:
    telemetry.configure("agent", level="WARNING")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, stop.set)
    await run_agent(
        config(address, folder),
        driver=jail(folder, "7e570000"),
        store=FolderStore(folder / "packages"),
        producer=Topics(),
        stop=stop,
        ready=lambda _: print("up", flush=True),
    )


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))
