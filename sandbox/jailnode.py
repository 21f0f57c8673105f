"""One jail from the agent's side: the conversation with its zygote, and its workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sandbox.blanks import Blanks
from sandbox.driver import WorkerExit
from sandbox.isolation.cgroups import Group, GroupPool
from sandbox.runner import rootfs
from sandbox.trees import merge, merged_name
from schemas.errors import WorkerStartFailed
from schemas.frames import Spec
from schemas.limits import WORKER_PIDS
from schemas.records import StatusReason

_FORK_TIMEOUT_S = 5.0
_CHECK_TIMEOUT_S = 20.0
_CREDENTIALS = struct.Struct("3i")
_CLAIM = struct.Struct("!I")
_BLANK_MIB = 32
"""What a worker may use before it is claimed."""
_ADDRESS_SPACE_SLACK_MIB = 512
"""RLIMIT_AS counts what is mapped, not what is used; Python maps some hundred MiB that it never touches."""


class JailWorker:
    """One worker process. See sandbox.driver.Worker."""

    def __init__(
        self,
        control: socket.socket,
        pipes: tuple[int, int],
        group: Group | None,
        give_back: Callable[[Group], None] | None,
    ) -> None:
        self.pid = 0
        self.socket = control
        self.stdout_fd, self.stderr_fd = pipes
        self._group, self._give_back = group, give_back
        self._pidfd = -1
        self._killed = False
        self._ended: asyncio.Future[WorkerExit] = asyncio.get_running_loop().create_future()
        self._baseline = group.oom_kills() if group is not None else 0

    def born(self, pid: int) -> None:
        """It said hello; from now on it can be killed by its descriptor, whatever becomes of the number."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def claim(self, wanted: dict[str, Any], *, memory_mib: int, cpus: float) -> None:
        """Give a blank its limits, then tell it what it is to be. Raises OSError when it is dead."""
        if self._group is not None:
            self._group.limit(memory_mib=memory_mib, pids=WORKER_PIDS, cpus=cpus)
        message = json.dumps(wanted).encode()
        self.socket.send(_CLAIM.pack(len(message)) + message)  # the first bytes of an empty socket: they go whole

    def kill(self) -> None:
        """See the port."""
        if self._pidfd >= 0 and not self._ended.done():
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def exited(self) -> WorkerExit:
        """See the port."""
        return await asyncio.shield(self._ended)

    def memory_kib(self) -> int:
        """See the port."""
        return self._group.memory_kib() if self._group is not None else 0

    def close(self) -> None:
        """See the port."""
        self.kill()
        self.socket.close()
        for fd in (self.stdout_fd, self.stderr_fd, self._pidfd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.stdout_fd = self.stderr_fd = self._pidfd = -1
        if self._group is not None and self._give_back is not None:
            self._give_back(self._group)
            self._give_back = None

    def ended(self, code: int, peak_kib: int) -> None:
        """The zygote has reaped it."""
        if self._ended.done():
            return
        # The kernel's own peak of a process counts pages that it shares with the zygote; the group's is what was charged.
        peak = (self._group.peak_kib() if self._group is not None else 0) or peak_kib
        if self._group is not None and self._group.oom_kills() > self._baseline:
            self._ended.set_result(WorkerExit("oom", code, peak))
        else:
            self._ended.set_result(WorkerExit("killed" if self._killed else "exit", code, peak))


class JailNode:
    """One node. Made by JailDriver; see sandbox.driver.Node."""

    def __init__(
        self,
        tenant: str,
        mode: str,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        home: Path,
        *,
        groups: GroupPool | None,
        address_space: bool,
        cpus: float,
    ) -> None:
        self.tenant = tenant
        self._mode, self._process, self._control, self._home = mode, process, control, home
        self._groups, self._address_space, self._cpus = groups, address_space, cpus
        self._workers: dict[int, JailWorker] = {}
        self._numbers = 0
        self._alive = True
        # Without cgroups nothing of a start takes long; `bare` is a weaker mode in which a start goes as it is.
        self._blanks = Blanks(self._fork) if groups is not None and mode != "bare" else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forget: Callable[[JailNode], None] | None = None

    @property
    def alive(self) -> bool:
        """False once its zygote is gone."""
        return self._alive

    @property
    def launcher_pid(self) -> int:
        """Host pid of the process outside."""
        return self._process.pid

    def watch(self, loop: asyncio.AbstractEventLoop, forget: Callable[[JailNode], None]) -> None:
        """Begin to follow the zygote on this loop, and to make blank workers."""
        self._loop, self._forget = loop, forget
        self._control.setblocking(False)
        loop.add_reader(self._control.fileno(), self._hear)
        self._fill()

    async def start_worker(
        self, spec: Spec, code_dir: Path, layer_dirs: Sequence[Path] = (), *, environment: dict[str, str]
    ) -> JailWorker:
        """See the port; the environment reaches the worker with LOAD."""
        wanted = {"bootstrap": spec.is_custom, **await self._bring(spec, code_dir, layer_dirs)}
        if self._mode == "bare":
            scratch = self._home / f"tmp-{self._numbers + 1}"
            scratch.mkdir()
            wanted["scratch"] = str(scratch)
        return await self._start(wanted, memory_mib=spec.memory_mib)

    async def check_code(self, spec: Spec, code_dir: Path, layer_dirs: Sequence[Path] = ()) -> tuple[StatusReason, ...]:
        """See the port: a worker reads the source and says what it sees."""
        wanted = {"check": True, "bootstrap": spec.is_custom, "handler": spec.handler}
        wanted |= await self._bring(spec, code_dir, layer_dirs)
        if self._mode == "bare":
            wanted["scratch"] = str(self._home)
        worker = await self._start(wanted, memory_mib=512)
        loop, said = asyncio.get_running_loop(), b""
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                while chunk := await loop.sock_recv(worker.socket, 65536):
                    said += chunk
            return tuple(StatusReason(code, text) for code, text in json.loads(said))
        except (TimeoutError, OSError, ValueError):
            return (StatusReason("InvalidParameterValue.Code", "the code could not be read within its limits"),)
        finally:
            worker.close()

    async def close(self) -> None:
        """See the port."""
        self.end()
        await asyncio.to_thread(self._process.wait)
        for worker in list(self._workers.values()):
            worker.ended(-9, 0)
            worker.close()

    def end(self) -> None:
        """Kill everything at once and remove the folder. Blocking for as long as the kernel needs; idempotent."""
        if self._loop is not None and self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
        self._alive = False
        if self._blanks is not None:
            self._blanks.close()
        self._process.kill()  # its child dies with it, and that is pid 1 of the node
        self._control.close()
        self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)
        if self._forget is not None:
            self._forget(self)

    async def _bring(self, spec: Spec, code_dir: Path, layer_dirs: Sequence[Path]) -> dict[str, Any]:
        """The package, and its layers as one tree, below the node's code folder; what a worker is told of where they are."""
        code, layers = spec.code_sha256, merged_name(spec.layers) if layer_dirs else ""
        await self._bring_tree(code, [code_dir])
        if layers:
            await self._bring_tree(layers, layer_dirs)
        if self._mode == "bare":
            home = self._home / "code"
            return {"code_dir": str(home / code), "layers_dir": str(home / layers) if layers else ""}
        bound = [[f"{rootfs.CODE_ROOT}/{code}", rootfs.USER_CODE]]
        if layers:
            bound.append([f"{rootfs.CODE_ROOT}/{layers}", rootfs.LAYERS])
        return {"code_dir": rootfs.USER_CODE, "layers_dir": rootfs.LAYERS if layers else "", "bound": bound}

    async def _bring_tree(self, name: str, sources: Sequence[Path]) -> None:
        """Made when the first worker needs it; those of the same packages share it."""
        target = self._home / "code" / name
        if not target.exists():
            try:
                await asyncio.to_thread(merge, sources, target)
            except OSError as exc:
                raise WorkerStartFailed(f"the node can't take the package: {exc.strerror or exc}") from exc

    async def _start(self, wanted: dict[str, Any], *, memory_mib: int) -> JailWorker:
        """A worker that was told what it is to be: a blank one, or when there is none a new one."""
        if not self._alive:
            raise WorkerStartFailed("the node is gone")
        if self._address_space:
            wanted["address_space_mib"] = memory_mib + _ADDRESS_SPACE_SLACK_MIB
        try:
            blank = await self._blanks.take() if self._blanks is not None else None
            if blank is not None:
                with contextlib.suppress(WorkerStartFailed):  # it died a moment ago
                    return self._claim(blank, wanted, memory_mib)
            return self._claim(await self._fork(), wanted, memory_mib)
        finally:
            self._fill()

    def _claim(self, worker: JailWorker, wanted: dict[str, Any], memory_mib: int) -> JailWorker:
        try:
            worker.claim(wanted, memory_mib=memory_mib, cpus=self._cpus)
        except OSError as exc:
            said = _drain(worker.stderr_fd)
            worker.close()
            raise WorkerStartFailed(f"no worker: {said or exc!r}") from exc
        return worker

    def _fill(self) -> None:
        if self._alive and self._blanks is not None:
            self._blanks.fill()

    async def _fork(self) -> JailWorker:
        """A blank worker, in its namespaces and its cgroup. Cancelled, it leaves nothing."""
        if not self._alive:
            raise WorkerStartFailed("the node is gone")
        self._numbers += 1
        number = self._numbers
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.setblocking(False)
        out, err = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        os.set_blocking(out[0], False)
        os.set_blocking(err[0], False)
        group = self._group()
        procs = group.open_procs() if group is not None else []
        worker = JailWorker(ours, (out[0], err[0]), group, self._groups.give_back if self._groups else None)
        self._workers[number] = worker
        try:
            try:
                message = json.dumps({"id": number}).encode()
                socket.send_fds(self._control, [message], [theirs.fileno(), out[1], err[1], *procs])
            finally:
                theirs.close()
                for fd in (out[1], err[1], *procs):
                    os.close(fd)
            worker.born(await self._hello(ours))
        except (OSError, TimeoutError) as exc:
            said = _drain(err[0])
            worker.close()
            raise WorkerStartFailed(f"no worker: {said or exc!r}") from exc
        except BaseException:
            worker.close()
            raise
        if self._groups is not None:
            asyncio.get_running_loop().run_in_executor(None, self._groups.refill)
        return worker

    def _group(self) -> Group | None:
        if self._groups is None:
            return None
        group = self._groups.take()
        group.limit(memory_mib=_BLANK_MIB, pids=WORKER_PIDS, cpus=self._cpus)
        return group

    async def _hello(self, ours: socket.socket) -> int:
        """The worker's first byte carries its pid, translated by the kernel."""
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()

        def said() -> None:
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(ours.fileno(), said)
        try:
            async with asyncio.timeout(_FORK_TIMEOUT_S):
                await readable
        finally:
            loop.remove_reader(ours.fileno())
        data, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        for _, kind, payload in ancillary:
            if data and kind == socket.SCM_CREDENTIALS:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
                return int(_CREDENTIALS.unpack(payload[: _CREDENTIALS.size])[0])
        raise OSError("the worker ended before it said hello")

    def _hear(self) -> None:
        """Messages of the zygote: ends of workers, or its own end."""
        while True:
            try:
                data = self._control.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._gone()
                return
            said = json.loads(data)
            worker = self._workers.pop(said["id"], None)
            if worker is not None:
                worker.ended(said["exited"], said["peak_kib"])
                if self._blanks is not None:
                    self._blanks.lost(worker)

    def _gone(self) -> None:
        self.end()
        for worker in list(self._workers.values()):
            worker.ended(-9, 0)
        self._workers.clear()


def _drain(fd: int) -> str:
    with contextlib.suppress(OSError):
        return os.read(fd, 4096).decode("utf-8", "replace").strip()
    return ""
