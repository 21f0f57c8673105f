"""What the host agent costs between a gateway and a jailed worker: 1 KB echo, `python -m tests.bench.bench_agent_hop`.

Three processes: this one is the gateway (frames over a Unix socket), the agent, and the jailed workers. The floor in the same run is a plain
child that answers the same runner frames over a socket pair, without agent, jail, counting or logs. CPU is read from /proc around the timed
part. Log blocks are encoded and written to the recent files, but not sent to Kafka.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import io
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from infra import telemetry
from infra.wire import FrameConnection, connect
from sandbox.runner import worker as runner
from schemas.frames import (
    Flow,
    Invoke,
    Kind,
    Spec,
    Splitter,
    decode_done,
    decode_result,
    encode_invoke,
    encode_run,
    json_frame,
)

KEY = b"k" * 32
CODE = """
import time

def main_handler(event, context):
    if "sleep" in event:
        time.sleep(event["sleep"])
    return event
"""
EVENT = json.dumps({"pad": "x" * 1000}).encode()


def zipped(source: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("index.py", source)
    return out.getvalue()


class Store:
    """One package, from memory."""

    async def get(self, _bucket: str, _key: str, _expect: str | None = None) -> bytes:
        return zipped(CODE)


class Sink:
    """Takes what would go to Kafka."""

    async def send(self, _topic: str, *, key: bytes | None, value: bytes | None, timeout_s: float) -> None:
        del key, value, timeout_s

    def send_nowait(self, _topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        del key, value
        return True


async def serve(address: str, folder: Path) -> None:
    from sandbox.agent.agent import AgentConfig, run_agent
    from sandbox.jail import JailConfig, JailDriver

    telemetry.configure("agent", level="WARNING")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, stop.set)  # our parent is gone, or wants us to end
    driver = JailDriver(JailConfig(folder / "jail", f"{os.getpid():08x}", allow_weaker=True))
    config = AgentConfig("bench", "host", "zone", address, KEY, folder / "agent", "ap-guangzhou")
    await run_agent(
        config, driver=driver, store=Store(), producer=Sink(), stop=stop, ready=lambda _: print("up", flush=True)
    )


class Gateway:
    """Keeps a number of invocations in flight."""

    def __init__(self, spec: Spec, flow: Flow | None) -> None:
        self._spec, self._flow = spec, flow
        self._corr = 0
        self._event = EVENT
        self._left = 0
        self._pending = 0
        self._done: asyncio.Future[None] | None = None
        self._connection: FrameConnection | None = None
        self.levels: dict[int, int] = {}

    async def open(self, address: str) -> None:
        self._connection = await connect(address, KEY, {"kind": "gateway"}, self._frames, lambda _c, _e: None)
        self._connection.send(json_frame(Kind.SPEC, 1, dataclasses.asdict(self._spec)))
        if self._flow is not None:
            self._connection.send(json_frame(Kind.FLOW, 2, dataclasses.asdict(self._flow)))

    async def run(self, count: int, in_flight: int, event: bytes = EVENT) -> None:
        self._event = event
        self._left, self._pending = count, 0
        self._done = asyncio.get_running_loop().create_future()
        for _ in range(min(in_flight, count)):
            self._send()
        await self._done

    def close(self) -> None:
        assert self._connection is not None
        self._connection.close()

    def _send(self) -> None:
        assert self._connection is not None
        self._left -= 1
        self._pending += 1
        self._corr += 1
        flow = 0 if self._flow is None else 2
        self._connection.send(
            encode_invoke(Invoke(self._corr, 1, flow, 1, 0, self._corr.to_bytes(16, "big"), self._event))
        )

    def _frames(self, _connection: FrameConnection, frames: list[tuple[int, bytes]]) -> None:
        for kind, payload in frames:
            if kind == Kind.RESULT:
                result = decode_result(payload)
                assert result.status == 200, result
                self.levels[result.level] = self.levels.get(result.level, 0) + 1
                self._pending -= 1
                if self._left:
                    self._send()
                elif not self._pending and self._done is not None:
                    self._done.set_result(None)


def cpu_s(pids: list[int]) -> float:
    """User and system seconds of these processes."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def below(pid: int) -> list[int]:
    """Descendants of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *below(int(child))]
    return found


def _leaves(pid: int) -> int:
    return len([p for p in below(pid) if not below(p)])


async def measure(agent: int, gateway: Gateway, count: int, in_flight: int) -> dict[str, float]:
    await gateway.run(count // 10, in_flight)
    workers = below(agent)
    before = cpu_s([agent]), cpu_s(workers), time.process_time(), time.perf_counter()
    await gateway.run(count, in_flight)
    after = cpu_s([agent]), cpu_s(workers), time.process_time(), time.perf_counter()
    took = [b - a for a, b in zip(before, after, strict=True)]
    return {
        "invocations_per_s": round(count / took[3]),
        "agent_cpu_us": round(took[0] / count * 1e6, 1),
        "worker_cpu_us": round(took[1] / count * 1e6, 1),
        "gateway_cpu_us": round(took[2] / count * 1e6, 1),
        "mean_us": round(took[3] / count * in_flight * 1e6),
    }


def floor(count: int, in_flight: int) -> dict[str, float]:
    """The same frames to a plain child process over a socket pair."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "index.py").write_text(CODE)
        pid = os.fork()
        if pid == 0:
            ours.close()
            runner.serve(theirs, [folder], folder)
        theirs.close()
        wanted = {"environment": {}, "context": {}, "code_dir": folder, "handler": "index.main_handler"}
        ours.sendall(json_frame(Kind.LOAD, 0, wanted))
        splitter = Splitter()
        while not splitter.feed(ours.recv(65536)):
            pass
        _pipeline(ours, splitter, count // 10, in_flight)
        began = time.perf_counter()
        _pipeline(ours, splitter, count, in_flight)
        took_s = time.perf_counter() - began
        ours.close()
        os.waitpid(pid, 0)
    return {"invocations_per_s": round(count / took_s), "mean_us": round(took_s / count * in_flight * 1e6)}


def _pipeline(sock: socket.socket, splitter: Splitter, count: int, in_flight: int) -> None:
    sent = done = 0
    while done < count:
        frames = []
        while sent < count and sent - done < in_flight:
            sent += 1
            frames.append(encode_run(sent, b"r" * 16, EVENT, Kind.RUN_BATCHED))
        if frames:
            sock.sendall(b"".join(frames))
        for _, payload in splitter.feed(sock.recv(262_144)):
            decode_done(payload)
            done += 1


async def compare(agent: int, address: str, count: int, in_flights: list[int], workers: int) -> dict[str, Any]:
    spec = Spec(
        appid="1250000000",
        uin="1",
        namespace="default",
        function="echo",
        version="$LATEST",
        code_sha256=sha256(zipped(CODE)).hexdigest(),
        handler="index.main_handler",
        runtime="Python3.10",
        memory_mib=128,
        timeout_s=3,
        init_timeout_s=65,
        region="ap-guangzhou",
        environment={},
    )
    found: dict[str, Any] = {}
    if workers:
        gateway = Gateway(spec, None)
        await gateway.open(address)
        began = time.perf_counter()
        await gateway.run(2 * workers, workers, b'{"sleep":0.3}')
        found["slow_handler"] = {"took_s": time.perf_counter() - began, "workers": _leaves(agent)}
        gateway.close()
    for in_flight in in_flights:
        n = count if in_flight > 1 else count // 5
        row: dict[str, Any] = {"floor": floor(n, min(in_flight, 16))}
        for name, flow in (("lanes", Flow("t", 0, 1)), ("calls", None)):
            gateway = Gateway(spec, flow)
            await gateway.open(address)
            row[name] = await measure(agent, gateway, n, in_flight)
            row[name]["levels"] = gateway.levels
            row[name]["ratio_to_floor"] = round(row[name]["invocations_per_s"] / row["floor"]["invocations_per_s"], 2)
            gateway.close()
        row["workers"] = _leaves(agent)
        found[f"in_flight_{in_flight}"] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=0, help="have as many workers from the start")
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 8, 32, 128])
    args = parser.parse_args()
    runner_of: Callable[..., Any] = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        runner_of = uvloop.run
    if args.serve:
        runner_of(serve(args.serve[0], Path(args.serve[1])))
        return
    address = f"unix:@penstock-bench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.bench.bench_agent_hop", "--serve", address, folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
            assert agent.stdout is not None
            assert agent.stdin is not None
            assert agent.stdout.readline() == "up\n"
            found = runner_of(compare(agent.pid, address, args.count, args.in_flight, args.workers))
            agent.stdin.close()
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"machine": machine, **found}, indent=1))


if __name__ == "__main__":
    main()
