"""The `jail` driver: a node is a zygote behind namespaces, cgroups, seccomp and Landlock; a worker is a fork of it.

Three modes, the best that works is chosen by really making a node in each: `full` (root: every layer, an unprivileged uid outside), `userns`
(no root: a user namespace with one uid, no cgroups unless delegated) and `bare` (no namespaces: rlimits, seccomp, Landlock only).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sandbox.driver import Capabilities
from sandbox.isolation import cgroups, syscalls
from sandbox.jailnode import JailNode
from sandbox.runner import kernel
from schemas.errors import IsolationUnavailable, WorkerStartFailed
from schemas.limits import TMP_BYTES, WORKER_FILES, WORKER_PIDS

Mode = Literal["full", "userns", "bare"]
_MODES: tuple[Mode, ...] = ("full", "userns", "bare")
_LAUNCHER = Path(__file__).parent / "runner" / "launcher.py"
_START_TIMEOUT_S = 10.0
_UID_BASE = 0x4000_0000
_UIDS_PER_FABRIC = 1 << 14
_TMP_NOTE = (
    "the scratch folder of a worker is on tmpfs: files there count against the function's memory, "
    "so its limit is the smaller of 512 MB and that memory"
)
_LOST: dict[Mode, tuple[str, ...]] = {
    "full": (),
    "userns": ("separate host user per tenant",),
    "bare": (
        "user namespace",
        "pid namespace",
        "mount namespace",
        "network namespace",
        "separate host user per tenant",
    ),
}


@dataclass(frozen=True, slots=True)
class JailConfig:
    """`state_dir` is the driver's own; `fabric` names this fabric's cgroups (8 hex digits)."""

    state_dir: Path
    fabric: str
    allow_weaker: bool
    cpus_per_worker: float = 1.0


class JailDriver:
    """Makes jails. One per agent."""

    name = "jail"

    def __init__(self, config: JailConfig) -> None:
        self._config = config
        self._hierarchy = cgroups.Hierarchy(1, {})
        self._groups: cgroups.GroupPool | None = None
        self._nodes: set[JailNode] = set()
        self._tenants: dict[str, int] = {}
        self._made = 0
        self._probed: tuple[Mode, Capabilities] | None = None

    def probe(self) -> Capabilities:
        """Make a throw-away node in each mode, best first, until one comes up."""
        if self._probed is None:
            self._probed = self._look()
        return self._probed[1]

    async def start(self) -> None:
        """Sweep leftovers; refuse when layers are missing and less was not allowed."""
        config = self._config
        shutil.rmtree(config.state_dir, ignore_errors=True)
        self._hierarchy = cgroups.find(f"penstock-{config.fabric}")
        await asyncio.to_thread(cgroups.sweep, self._hierarchy, with_parents=False)
        found = await asyncio.to_thread(self.probe)
        if found.missing and not config.allow_weaker:
            raise IsolationUnavailable(found.missing)
        if self._hierarchy.parents:
            self._groups = cgroups.GroupPool(self._hierarchy)
            await asyncio.to_thread(self._groups.refill)

    async def create_node(self, tenant: str) -> JailNode:
        """A node of the tenant; WorkerStartFailed when it does not come up in 10 s."""
        self.probe()
        assert self._probed is not None
        node = await asyncio.to_thread(self._make, self._probed[0], tenant)
        self._nodes.add(node)
        node.watch(asyncio.get_running_loop(), self._nodes.discard)
        return node

    async def close(self) -> None:
        """End all nodes and remove all groups."""
        await asyncio.gather(*(node.close() for node in list(self._nodes)), return_exceptions=True)
        if self._groups is not None:
            self._groups.close()
        await asyncio.to_thread(cgroups.sweep, self._hierarchy, with_parents=True)
        shutil.rmtree(self._config.state_dir, ignore_errors=True)

    # making

    def _look(self) -> tuple[Mode, Capabilities]:
        self._hierarchy = cgroups.find(f"penstock-{self._config.fabric}")
        lost = list(self._hierarchy.missing)
        notes = [_TMP_NOTE]
        try:
            syscalls.program()
        except (ImportError, OSError, RuntimeError):
            lost.append("seccomp")
        if kernel.landlock_abi() == 0:
            lost.append("Landlock")
        for mode in _MODES:
            if mode == "full" and os.geteuid() != 0:
                continue
            try:
                self._make(mode, "probe").end()
            except WorkerStartFailed as exc:
                notes.append(f"mode {mode} does not work here: {exc}")
                continue
            notes.insert(0, f"jail mode {mode}, cgroup version {self._hierarchy.version}")
            return mode, Capabilities(self.name, (*_LOST[mode], *lost), tuple(notes))
        raise WorkerStartFailed("no mode of the jail works on this machine: " + "; ".join(notes))

    def _make(self, mode: Mode, tenant: str) -> JailNode:
        """Start a launcher and wait until its zygote is ready. Blocking."""
        self._made += 1
        self._config.state_dir.mkdir(parents=True, exist_ok=True)
        self._config.state_dir.chmod(0o755)
        home = self._config.state_dir / f"node-{os.getpid()}-{self._made}"
        for folder in (home / "root", home / "code"):
            folder.mkdir(parents=True)
            folder.chmod(0o755)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = self._settings(mode, home)
        try:
            process = _launch(theirs, settings)
        finally:
            theirs.close()
        node = JailNode(
            tenant,
            mode,
            process,
            ours,
            home,
            groups=self._groups,
            address_space=not self._groups,
            cpus=self._config.cpus_per_worker,
        )
        ours.settimeout(_START_TIMEOUT_S)
        try:
            self._await_ready(node, ours, self._uids(tenant))
        except (OSError, ValueError) as exc:
            node.end()
            raise WorkerStartFailed(f"a node in mode {mode} did not come up: {exc}") from exc
        return node

    def _await_ready(self, node: JailNode, control: socket.socket, uids: tuple[int, int]) -> None:
        while True:
            data = control.recv(4096)
            if not data:
                raise OSError("the launcher ended without a word")
            said: dict[str, Any] = json.loads(data)
            if "failed" in said:
                raise OSError(said["failed"])
            if "map" in said:
                _write_maps(node.launcher_pid, uids)
                control.send(b"mapped")
            elif said.get("ready"):
                return

    def _settings(self, mode: Mode, home: Path) -> dict[str, Any]:
        try:
            program = syscalls.program().hex()
        except (ImportError, OSError, RuntimeError):
            program = ""
        return {
            "mode": mode,
            "root": str(home / "root"),
            "code": str(home / "code"),
            "python_prefix": os.path.realpath(sys.base_prefix),
            "python": _interpreter(),
            "runner": str(_LAUNCHER.parent.parent.parent),
            "tmp_mib": TMP_BYTES >> 20,
            "pids": WORKER_PIDS,
            "files": WORKER_FILES,
            "seccomp": program,
        }

    def _uids(self, tenant: str) -> tuple[int, int]:
        """Host uids of a tenant's zygote and workers: they own nothing and no other fabric of this machine is likely to use them."""
        slot = self._tenants.setdefault(tenant, len(self._tenants) % (_UIDS_PER_FABRIC // 2))
        base = _UID_BASE + zlib.crc32(self._config.fabric.encode()) % (1 << 14) * _UIDS_PER_FABRIC
        return base + 2 * slot, base + 2 * slot + 1


def _interpreter() -> str:
    base = getattr(sys, "_base_executable", sys.executable) or sys.executable
    return os.path.realpath(base)


def _launch(control: socket.socket, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    memory = os.memfd_create("penstock-settings")
    try:
        os.write(memory, json.dumps(settings).encode())
        command = [_interpreter(), "-I", "-S", "-B", str(_LAUNCHER), str(control.fileno()), str(memory)]
        return subprocess.Popen(
            command, env={}, pass_fds=(control.fileno(), memory), stdin=subprocess.DEVNULL, start_new_session=True
        )
    finally:
        os.close(memory)


def _write_maps(launcher: int, uids: tuple[int, int]) -> None:
    """Map 0 and 1000 of the node's user namespace; the zygote is the launcher's only child."""
    with open(f"/proc/{launcher}/task/{launcher}/children") as file:
        child = int(file.read().split()[0])
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{name}", "w") as file:
            file.write(f"0 {uids[0]} 1\n1000 {uids[1]} 1\n")
