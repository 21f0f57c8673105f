"""Enters a jail and execs the zygote in it. Started by the driver as `python -I -S launcher.py CONTROL SETTINGS`.

Two processes come of it: the launcher, which stays outside only to be the parent and ends when the zygote ends, and pid 1 of the node.
Standard library only.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import contextlib
import json
import socket
from typing import Any, NoReturn

from sandbox.runner import kernel, rootfs


def main() -> None:
    """Build the tree, leave the namespaces, exec; a failure is told to the agent in one message."""
    kernel.die_with_parent()
    os.umask(0o022)  # what is made below is read by the node's user
    control, settings_fd = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(os.dup(settings_fd), "rb") as file:
        file.seek(0)
        wanted = json.loads(file.read())
    for fd in (control, settings_fd):
        os.set_inheritable(fd, True)
    try:
        if wanted["mode"] == "full":
            _enter_as_root(wanted, control)
        elif wanted["mode"] == "userns":
            _enter_unprivileged(wanted)
        _exec_zygote(wanted, control, settings_fd)
    except OSError as exc:
        with socket.socket(fileno=control) as sock:
            sock.send(json.dumps({"failed": str(exc)}).encode())
        os._exit(1)


def _enter_as_root(wanted: dict[str, Any], control: int) -> None:
    """Real root: namespaces that the machine owns, then a user namespace in which even uid 0 is nobody outside."""
    kernel.unshare(kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP)
    rootfs.build(wanted["root"], wanted["code"], wanted["python_prefix"], wanted["runner"])
    asked, answered = os.pipe(), os.pipe()
    pid = os.fork()
    if pid:
        _ask_for_map(control, pid, asked[0], answered[1])
        _wait_for(pid)
    kernel.die_with_parent()
    _enter_tree()
    kernel.unshare(kernel.NEWUSER | kernel.NEWNS)
    os.write(asked[1], b"m")
    if os.read(answered[0], 1) != b"m":
        os._exit(1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _enter_unprivileged(wanted: dict[str, Any]) -> None:
    """No root: a user namespace with one uid, and in it what it allows."""
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(
        kernel.NEWUSER | kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP
    )
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    rootfs.build(wanted["root"], wanted["code"], wanted["python_prefix"], wanted["runner"])
    pid = os.fork()
    if pid:
        _wait_for(pid)
    kernel.die_with_parent()
    _enter_tree()


def _enter_tree() -> None:
    kernel.mount("proc", "proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.pivot_root_here()
    rootfs.seal()
    socket.sethostname("penstock")
    with contextlib.suppress(OSError):
        kernel.bring_loopback_up()


def _ask_for_map(control: int, pid: int, asked: int, answered: int) -> None:
    """Only the agent may write the uid map of a child of ours; it is told the pid and answers `mapped`."""
    if os.read(asked, 1) == b"m":
        with socket.socket(fileno=os.dup(control)) as sock:
            sock.send(json.dumps({"map": pid}).encode())
            if sock.recv(64) == b"mapped":
                os.write(answered, b"m")


def _wait_for(pid: int) -> NoReturn:
    os.closerange(3, 4096)
    _, status = os.waitpid(pid, 0)
    os._exit(0 if status == 0 else 1)


def _exec_zygote(wanted: dict[str, Any], control: int, settings: int) -> NoReturn:
    inside = wanted["mode"] != "bare"
    python, environment = wanted["python"], {}
    runner = rootfs.RUNNER_HOME if inside else wanted["runner"]
    if inside and not rootfs.is_system(wanted["python_prefix"]):
        python = rootfs.PYTHON_HOME + python[len(wanted["python_prefix"]) :]
        environment = {"LD_LIBRARY_PATH": f"{rootfs.PYTHON_HOME}/lib"}
    zygote = f"{runner}/sandbox/runner/zygote.py"
    os.execve(python, [python, "-I", "-S", "-B", zygote, str(control), str(settings)], environment)


if __name__ == "__main__":
    main()
