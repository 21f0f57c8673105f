"""How an agent makes nodes and workers: one port, one implementation per isolation technique.

All implementations pass tests/integration/driver_conformance.py. Every coroutine is cancel-safe: cancelled, it leaves no process, cgroup or
mount behind.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from schemas.frames import Spec
from schemas.records import StatusReason


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can isolate on this machine.

    `missing` names the layers that are not there (empty: full isolation); `notes` are facts that an operator should know, in sentences.
    """

    driver: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker ended: by itself with `code` (negative: signal), because its memory limit was reached, or because it was killed."""

    reason: Literal["exit", "oom", "killed"]
    code: int
    peak_kib: int


class Worker(Protocol):
    """A process that runs one function version. Its socket speaks the worker's half of schemas.frames."""

    @property
    def pid(self) -> int:
        """Host pid of the init of its pid namespace."""
        ...

    @property
    def socket(self) -> socket.socket:
        """Our end of its control socket: non-blocking stream."""
        ...

    @property
    def stdout_fd(self) -> int:
        """Non-blocking read end of its descriptor 1; closed by `close`."""
        ...

    @property
    def stderr_fd(self) -> int:
        """Non-blocking read end of its descriptor 2; closed by `close`."""
        ...

    def kill(self) -> None:
        """End it and everything in its pid namespace, at once; idempotent."""
        ...

    async def exited(self) -> WorkerExit:
        """Wait for its end; may be awaited by several, and again after the end."""
        ...

    def memory_kib(self) -> int:
        """What it uses now; 0 when that can't be told."""
        ...

    def close(self) -> None:
        """Give back descriptors and cgroup; kills it when it still runs. Idempotent."""
        ...


class Node(Protocol):
    """An isolated compute unit of one tenant."""

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def alive(self) -> bool:
        """False once its zygote is gone: all its workers are then dead too."""
        ...

    async def start_worker(
        self, spec: Spec, code_dir: Path, layer_dirs: Sequence[Path] = (), *, environment: dict[str, str]
    ) -> Worker:
        """Start a worker that waits for LOAD. `environment` is what the user's code will see; `layer_dirs` has the unpacked layers of the
        Spec in its order, which the worker sees as one read-only tree: where two have the same path, the later one wins.

        Raises WorkerStartFailed.
        """
        ...

    async def check_code(self, spec: Spec, code_dir: Path, layer_dirs: Sequence[Path] = ()) -> tuple[StatusReason, ...]:
        """Look, without running user code, whether the handler (of a custom runtime: the bootstrap) can be found: why not, or nothing."""
        ...

    async def close(self) -> None:
        """End all workers and the node."""
        ...


class NodeDriver(Protocol):
    """Makes nodes."""

    @property
    def name(self) -> str:
        """`jail` or `microvm`."""
        ...

    def probe(self) -> Capabilities:
        """Try every layer once, in throw-away processes; remembered."""
        ...

    async def start(self) -> None:
        """Sweep what a killed predecessor left behind. Raises IsolationUnavailable when layers are missing and less was not allowed."""
        ...

    async def create_node(self, tenant: str) -> Node:
        """Make a node. Raises WorkerStartFailed."""
        ...

    async def close(self) -> None:
        """Close all nodes; nothing is left."""
        ...
