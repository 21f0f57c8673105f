"""A driver whose workers are played by the test: no process, no jail; and a gateway that is a list of results."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from infra.clock import mono_s
from sandbox.agent.codecache import CodeCache
from sandbox.agent.fences import Fences
from sandbox.agent.gatewaylink import GatewayLink
from sandbox.agent.host import Host, HostLimits
from sandbox.agent.logs import LogShipper
from sandbox.agent.nodes import Nodes
from sandbox.agent.starting import Starter
from sandbox.driver import Capabilities, WorkerExit
from schemas import avro
from schemas.frames import (
    Done,
    Flow,
    Invoke,
    Kind,
    Result,
    Spec,
    Splitter,
    decode_result,
    decode_run,
    encode_done,
    encode_invoke,
    frame,
    json_frame,
    parse_json,
)
from schemas.records import LogBlock, LogLine, StatusReason
from tests.packages import zipped

SPEC = Spec(
    appid="1250000000",
    uin="100000000001",
    namespace="default",
    function="echo",
    version="$LATEST",
    code_sha256="ab" * 32,
    handler="index.main_handler",
    runtime="Python3.10",
    memory_mib=128,
    timeout_s=3,
    init_timeout_s=5,
    region="ap-guangzhou",
    environment={"A": "1"},
)


class Given(NamedTuple):
    """One RUN as the worker got it."""

    sequence: int
    request_id: bytes
    event: bytes
    batched: bool


class FakeWorker:
    """Runs what the test tells it to run. A call begins when it is at the head, as in the real runner."""

    def __init__(self, driver: FakeDriver, tenant: str, spec: Spec) -> None:
        self.driver, self.tenant, self.spec = driver, tenant, spec
        self.pid = 1000 + len(driver.workers)
        self.socket, self._far = socket.socketpair()
        self.stdout_fd, self.stdout = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.stderr_fd, self.stderr = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.socket.setblocking(False)
        self._far.setblocking(False)
        self.given: deque[Given] = deque()
        self.loaded: dict[str, Any] | None = None
        self.killed = False
        self.closed = False
        self._held: list[bytes] = []
        self._splitter = Splitter()
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[WorkerExit] = self._loop.create_future()
        self._loop.add_reader(self._far, self._read)

    # driver's port

    def kill(self) -> None:
        self.killed = True
        if not self.driver.slow_death:
            self._dying(self.driver.death_turns)

    def _dying(self, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._dying, turns - 1)
        else:
            self.die(WorkerExit("killed", -9, 1))

    async def exited(self) -> WorkerExit:
        return await asyncio.shield(self._exit)

    def memory_kib(self) -> int:
        return 1

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.socket.close()
        os.close(self.stdout_fd)
        os.close(self.stderr_fd)

    # what the test does

    @property
    def alive(self) -> bool:
        return not self._exit.done()

    def ready(self, **said: Any) -> None:
        self._send(json_frame(Kind.READY, 0, {"ok": True, **said}))

    def finish(self, body: bytes | None = None, outcome: int = 0, *, peak_kib: int = 7) -> None:
        """The head ends; its DONE may be kept back when it is batched and more is at hand."""
        head = self.given.popleft()
        done = encode_done(Done(head.sequence, outcome, peak_kib, head.event if body is None else body))
        if head.batched and self.given and self.driver.holds_back:
            self._held.append(done)
        else:
            self._send(b"".join([*self._held, done]))
            self._held = []
        if self.given:
            self.driver.begins(self, self.given[0])

    def say(self, text: str, stream: int = 1, sequence: int | None = None) -> None:
        number = self.given[0].sequence if sequence is None else sequence
        self._send(frame(Kind.LOG, number.to_bytes(4, "big") + bytes([stream]) + text.encode()))

    def send(self, data: bytes) -> None:
        self._send(data)

    def die(self, how: WorkerExit) -> None:
        if not self._exit.done():
            self._loop.remove_reader(self._far)
            self._far.close()
            os.close(self.stdout)
            os.close(self.stderr)
            self._exit.set_result(how)

    def hang_up(self) -> None:
        self._loop.remove_reader(self._far)
        self._far.shutdown(socket.SHUT_RDWR)

    def _send(self, data: bytes) -> None:
        if self.alive:
            assert self._far.send(data) == len(data)

    def _read(self) -> None:
        try:
            data = self._far.recv(1 << 20)
        except OSError:
            return
        if not data:
            self._loop.remove_reader(self._far)
            return
        for kind, payload in self._splitter.feed(data):
            if kind == Kind.LOAD:
                self.loaded = parse_json(payload)[1]
                self.driver.on_load(self)
            else:
                assert kind in (Kind.RUN, Kind.RUN_BATCHED)
                self.given.append(Given(*decode_run(payload), kind == Kind.RUN_BATCHED))
                if len(self.given) == 1:
                    self.driver.begins(self, self.given[0])
                self.driver.on_run(self)


class FakeNode:
    def __init__(self, driver: FakeDriver, tenant: str) -> None:
        self.driver, self.tenant, self.alive = driver, tenant, True

    async def start_worker(
        self, spec: Spec, code_dir: Path, layer_dirs: Sequence[Path] = (), *, environment: dict[str, str]
    ) -> FakeWorker:
        self.driver.forks_now += 1
        self.driver.most_forks = max(self.driver.most_forks, self.driver.forks_now)
        try:
            await self.driver.fork_gate.wait()
            if self.driver.fork_errors:
                raise self.driver.fork_errors.pop(0)
        finally:
            self.driver.forks_now -= 1
        worker = FakeWorker(self.driver, self.tenant, spec)
        self.driver.workers.append(worker)
        self.driver.environment = environment
        return worker

    async def check_code(self, spec: Spec, code_dir: Path, layer_dirs: Sequence[Path] = ()) -> tuple[StatusReason, ...]:
        return self.driver.reasons

    async def close(self) -> None:
        self.alive = False
        self.driver.closed_nodes.append(self.tenant)


class FakeDriver:
    """By default every worker is ready at once and every call waits for the test."""

    name = "fake"

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.nodes: list[FakeNode] = []
        self.closed_nodes: list[str] = []
        self.begun: list[Given] = []
        self.reasons: tuple[StatusReason, ...] = ()
        self.environment: dict[str, str] = {}
        self.fork_errors: list[Exception] = []
        self.fork_gate = asyncio.Event()
        self.fork_gate.set()
        self.forks_now = self.most_forks = 0
        self.slow_death = False
        self.death_turns = 1
        self.holds_back = False
        self.on_load: Callable[[FakeWorker], None] = lambda worker: worker.ready()
        self.on_run: Callable[[FakeWorker], None] = lambda _: None
        self.on_begin: Callable[[FakeWorker, Given], None] = lambda _w, _g: None

    @property
    def live(self) -> list[FakeWorker]:
        return [w for w in self.workers if w.alive]

    def begins(self, worker: FakeWorker, given: Given) -> None:
        self.begun.append(given)
        self.on_begin(worker, given)

    def probe(self) -> Capabilities:
        return Capabilities("fake", (), ())

    async def start(self) -> None:
        """Nothing to sweep."""

    async def create_node(self, tenant: str) -> FakeNode:
        node = FakeNode(self, tenant)
        self.nodes.append(node)
        return node

    async def close(self) -> None:
        """Nothing to close."""


class FakeConnection:
    """The agent's side of a gateway's connection; collects results."""

    def __init__(self) -> None:
        self.results: dict[int, Result] = {}
        self.answers: list[int] = []
        self.others: list[bytes] = []

    def send(self, data: bytes) -> None:
        ((kind, payload),) = Splitter().feed(data)
        if kind == Kind.RESULT:
            result = decode_result(payload)
            assert result.corr not in self.results, "answered twice"
            self.results[result.corr] = result
            self.answers.append(result.corr)
        else:
            self.others.append(data)


class Gateway:
    """Speaks to one GatewayLink as the router does."""

    def __init__(self, agent: FakeAgent) -> None:
        self.link = GatewayLink(agent, {"id": "gateway-1"})
        self.connection = FakeConnection()
        self.results = self.connection.results
        self._numbers = 0
        self._specs: dict[str, int] = {}
        self._flows: dict[Flow, int] = {}

    def send(self, data: bytes) -> None:
        connection: Any = self.connection
        self.link.frames(connection, Splitter().feed(data))

    def spec(self, spec: Spec) -> int:
        name = repr(spec)
        if name not in self._specs:
            self._specs[name] = self._next()
            self.send(json_frame(Kind.SPEC, self._specs[name], dataclasses.asdict(spec)))
        return self._specs[name]

    def flow(self, flow: Flow) -> int:
        if flow not in self._flows:
            self._flows[flow] = self._next()
            self.send(json_frame(Kind.FLOW, self._flows[flow], dataclasses.asdict(flow)))
        return self._flows[flow]

    def invoke(self, event: Any = None, *, flow: Flow | None = None, spec: Spec = SPEC, flags: int = 0) -> int:
        return self.invoke_all([event], flow=flow, spec=spec, flags=flags)[0]

    def invoke_all(
        self, events: list[Any], *, flow: Flow | None = None, spec: Spec = SPEC, flags: int = 0
    ) -> list[int]:
        number, flow_number = self.spec(spec), 0 if flow is None else self.flow(flow)
        corrs = [self._next() for _ in events]
        self.send(
            b"".join(
                encode_invoke(Invoke(c, number, flow_number, 1, flags, c.to_bytes(16, "big"), json.dumps(e).encode()))
                for c, e in zip(corrs, events, strict=True)
            )
        )
        return corrs

    def cancel(self, corr: int) -> None:
        self.send(json_frame(Kind.CANCEL, corr, None))

    def close(self) -> None:
        connection: Any = self.connection
        self.link.lost(connection, None)

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers


class Sink:
    """Takes log blocks."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        assert value is not None
        self.lines += avro.decode(LogBlock, value).lines
        return True

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, timeout_s: float) -> None:
        self.send_nowait(topic, key=key, value=value)

    def of(self, corr: int) -> list[str]:
        request_id = str(UUID(int=corr))
        return [
            line.line.replace(f" RequestId: {request_id}", "") for line in self.lines if line.request_id == request_id
        ]


class Store:
    """Every hash is a package, unless told otherwise."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    async def get(self, bucket: str, key: str, expect_sha256: str | None = None) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        return zipped(("index.py", b"def main_handler(e, c): return e\n"))


class FakeAgent:
    """Host, fences and links over the fake driver."""

    def __init__(self, folder: Path, limits: HostLimits) -> None:
        self.driver, self.sink, self.store = FakeDriver(), Sink(), Store()
        self.cache = CodeCache(folder, self.store)
        self.nodes = Nodes(self.driver)
        self.shipper = LogShipper("agent-1", self.sink)
        self.host = Host(limits, self.nodes, Starter(self.nodes, self.cache), self.shipper)
        self.fences = Fences()

    def closed(self, link: GatewayLink) -> None:
        """A link is gone."""

    def gateway(self) -> Gateway:
        return Gateway(self)

    def lines(self, corr: int) -> list[str]:
        self.shipper.flush()
        return self.sink.of(corr)


async def until(condition: Callable[[], Any], within_s: float = 5.0) -> None:
    """Poll on the loop until the condition holds."""
    deadline = mono_s() + within_s
    while not condition():
        assert mono_s() < deadline, "it did not come to pass"
        await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything that is under way on this loop happen."""
    for _ in range(30):
        await asyncio.sleep(0)
