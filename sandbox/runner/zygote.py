"""The zygote of a node: pid 1 inside, forks a worker when the agent asks, and reports how each ended. User code never runs in it.

Exec'd by the launcher with an empty environment: `python -I -S zygote.py CONTROL SETTINGS`, two descriptors: a SEQPACKET socket to the agent
and a memory file with the settings (JSON). Standard library only.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import asyncio  # noqa: F401 - imported, like others below, for the workers that fork from here
import base64  # noqa: F401
import collections  # noqa: F401
import contextlib
import datetime  # noqa: F401
import decimal  # noqa: F401
import functools  # noqa: F401
import gc
import hashlib  # noqa: F401
import json
import logging  # noqa: F401
import re  # noqa: F401
import resource
import select
import signal
import socket
import typing  # noqa: F401
import uuid  # noqa: F401
from typing import Any, NoReturn

from sandbox.runner import codecheck, custom, kernel, rootfs, worker

del sys.path[0]

INSIDE_UID = 1000
_HIDE_CODE = "size=4k,mode=555"


class Node:
    """What the agent told this node: `mode` full, userns or bare; limits; the seccomp program."""

    def __init__(self, control: socket.socket, wanted: dict[str, Any]) -> None:
        self.control = control
        self.seccomp = bytes.fromhex(wanted["seccomp"])
        self.mode = str(wanted["mode"])
        self.prefix = str(wanted["python_prefix"])
        self.tmp_mib = int(wanted["tmp_mib"])
        self.pids, self.files = int(wanted["pids"]), int(wanted["files"])
        self.children: dict[int, int] = {}
        """Worker pid in this pid namespace → the agent's number for it."""


def main() -> None:
    """Say ready, then serve until the agent closes the socket."""
    kernel.die_with_parent()
    os.environ.clear()
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    with os.fdopen(int(sys.argv[2]), "rb") as file:
        file.seek(0)
        node = Node(control, json.loads(file.read()))
    gc.collect()
    gc.freeze()
    control.send(b'{"ready":true}')
    _serve(node)


def _serve(node: Node) -> None:
    """Fork when asked, report ends; exit when the agent closes the socket."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda _n, _f: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    poller = select.poll()
    poller.register(node.control, select.POLLIN)
    poller.register(wake_read, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                _reap(node)
            else:
                data, fds = kernel.recv_with_fds(node.control)
                if not data:
                    os._exit(0)
                _fork(node, json.loads(data)["id"], fds)


def _reap(node: Node) -> None:
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        number = node.children.pop(pid, None)
        if number is not None:
            ended = {"id": number, "exited": os.waitstatus_to_exitcode(status), "peak_kib": usage.ru_maxrss}
            node.control.send(json.dumps(ended).encode())


def _fork(node: Node, number: int, fds: list[int]) -> None:
    """Two forks: the first joins the cgroups and leaves the namespaces, the second is pid 1 of the worker's own and waits to be claimed."""
    if node.mode == "bare":
        pid = os.fork()
        if pid == 0:
            _be_worker(node, fds)
        node.children[pid] = number
    else:
        read, write = os.pipe()
        middle = os.fork()
        if middle == 0:
            _be_middle(node, fds, write)
        os.close(write)
        pid = int.from_bytes(os.read(read, 4), "little")
        os.close(read)
        os.waitpid(middle, 0)
        if pid:
            node.children[pid] = number
        else:
            node.control.send(json.dumps({"id": number, "exited": 1, "peak_kib": 0}).encode())
    for fd in fds:
        os.close(fd)


def _be_middle(node: Node, fds: list[int], report: int) -> NoReturn:
    try:
        for fd in fds[3:]:
            os.write(fd, b"0")  # cgroup.procs, opened by the agent: it moves the writer
        kernel.unshare(kernel.NEWNS | kernel.NEWPID | kernel.NEWIPC)
        pid = os.fork()
        if pid == 0:
            os.close(report)
            _be_worker(node, fds)
        os.write(report, pid.to_bytes(4, "little"))
    except OSError as exc:
        os.write(fds[2], f"penstock: no worker: {exc}\n".encode())
        os.write(report, b"\0\0\0\0")
    os._exit(0)


def _be_worker(node: Node, fds: list[int]) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sock = _descriptors(fds)
        sock.sendall(b"\0")  # its credentials tell the agent our pid outside
        wanted = _claim(sock)
        is_check, is_custom = bool(wanted.get("check")), bool(wanted.get("bootstrap"))
        listener = custom.listen() if is_custom and not is_check else None
        _confine(node, wanted, 0 if listener is None else listener.getsockname()[1])
        if is_check:
            path = _search_path(wanted)
            reasons = codecheck.check_bootstrap(path[0]) if is_custom else codecheck.check(wanted["handler"], path)
            sock.sendall(json.dumps(reasons).encode())
            os._exit(0)
        if listener is not None:
            custom.serve(sock, listener, _search_path(wanted), wanted.get("scratch", "/tmp"))  # noqa: S108 - its own mount
        worker.serve(sock, _search_path(wanted), wanted.get("scratch", "/tmp"))  # noqa: S108 - its own mount
    except SystemExit as exc:
        _leave(exc.code)
    except BaseException as exc:  # nothing may climb into the zygote's loop
        os.write(2, f"penstock: worker ended: {type(exc).__name__}: {exc}\n".encode())
        os._exit(1)
    os._exit(0)


def _search_path(wanted: dict[str, Any]) -> list[str]:
    """Where modules are looked for: the function's own before those of its layers, which may stand in a folder `python` too."""
    own, layers = str(wanted["code_dir"]), str(wanted["layers_dir"])
    return [own, layers, f"{layers}/python"] if layers else [own]


def _claim(sock: socket.socket) -> dict[str, Any]:
    """Wait to be told what to be: until then this is a blank, which nothing of any function has reached."""
    size = int.from_bytes(_exactly(sock, 4), "big")
    wanted: dict[str, Any] = json.loads(_exactly(sock, size))
    return wanted


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        os._exit(0)  # the agent has no use for it
    return data


def _leave(code: object) -> NoReturn:
    if code is None:
        os._exit(0)
    if isinstance(code, int):
        os._exit(code & 0xFF)
    os.write(2, f"{code}\n".encode("utf-8", "replace"))
    os._exit(1)


def _descriptors(fds: list[int]) -> socket.socket:
    """0 is /dev/null, 1 and 2 the pipes, 3 the control socket; nothing else stays open."""
    high = os.dup2(fds[0], 200, inheritable=False)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(fds[1], 1)
    os.dup2(fds[2], 2)
    os.dup2(high, 3, inheritable=False)
    os.closerange(4, 4096)
    return socket.socket(fileno=3)


def _confine(node: Node, wanted: dict[str, Any], own_port: int) -> None:
    """All layers, outermost first; after this nothing can be regained. `own_port` is where this worker itself listens, or 0."""
    if node.mode != "bare":
        quiet = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("tmpfs", "/tmp", "tmpfs", quiet, f"size={node.tmp_mib}m,mode=1777")  # noqa: S108
        kernel.mount("tmpfs", "/dev/shm", "tmpfs", quiet | kernel.MS_NOEXEC, "size=64m,mode=1777")  # noqa: S108
        kernel.mount("proc", "/proc", "proc", quiet | kernel.MS_NOEXEC)
        for source, target in wanted["bound"]:
            kernel.bind(source, target)
        kernel.mount("tmpfs", rootfs.CODE_ROOT, "tmpfs", quiet | kernel.MS_RDONLY, _HIDE_CODE)
    _limits(node, wanted)
    kernel.drop_bounding_set()
    if node.mode == "full":
        os.setresgid(INSIDE_UID, INSIDE_UID, INSIDE_UID)
        os.setresuid(INSIDE_UID, INSIDE_UID, INSIDE_UID)
    os.umask(0o022)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if node.mode == "bare":
        scratch = str(wanted["scratch"])
        readable = ["/usr", "/bin", "/lib", "/lib64", "/etc", "/dev", "/proc", "/sys/fs/cgroup", node.prefix]
        readable += [wanted["code_dir"], *([wanted["layers_dir"]] if wanted["layers_dir"] else [])]
        kernel.landlock(readable, [scratch, "/dev/null"], network=False, connect_to=own_port)
    else:
        kernel.landlock(["/"], ["/tmp", "/dev/shm", "/dev/null", "/dev/zero", "/dev/full"], network=True)  # noqa: S108
    if node.seccomp:
        kernel.load_seccomp(node.seccomp)


def _limits(node: Node, wanted: dict[str, Any]) -> None:
    for name, value in (("RLIMIT_NOFILE", node.files), ("RLIMIT_CORE", 0), ("RLIMIT_MEMLOCK", 65_536)):
        resource.setrlimit(getattr(resource, name), (value, value))
    if wanted.get("address_space_mib"):  # the stand-in where no memory cgroup is to be had
        limit = int(wanted["address_space_mib"]) << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if node.mode == "bare":
        resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 20, 512 << 20))


if __name__ == "__main__":
    main()
