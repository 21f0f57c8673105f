"""What of a fabric is on the machine: processes, cgroups, mounts, sockets. Found from outside, by the data folder and what is derived of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from infra.app.agent import fabric_id


def remains(data_dir: Path, *, tcp_ports: Iterable[int] = (), tree: Iterable[tuple[int, str]] = ()) -> list[str]:
    """Everything that is left of the fabric, a line each; empty when nothing is.

    Args:
        data_dir: the fabric's.
        tcp_ports: on which it listened.
        tree: processes that it had, as `process_tree` gave them.
    """
    own = f"penstock-{fabric_id(data_dir)}"
    still = [f"process {pid} of its tree" for pid, began in tree if start_time(pid) == began]
    return [*still, *processes(data_dir), *cgroups(data_dir), *_mounts(data_dir), *_sockets(own, set(tcp_ports))]


def processes(data_dir: Path) -> list[str]:
    """Processes that name the folder on their command line or in their environment, or live in its cgroups (workers)."""
    own = f"/penstock-{fabric_id(data_dir)}"
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            named = os.fsencode(data_dir) in line + b"\0" + (entry / "environ").read_bytes()
            if (named or own in (entry / "cgroup").read_text()) and start_time(int(entry.name)):
                found.append(f"process {entry.name}: {line.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    return found


def cgroups(data_dir: Path) -> list[str]:
    """Folders of its cgroups, in every hierarchy, parents included."""
    own = f"penstock-{fabric_id(data_dir)}"
    root = Path("/sys/fs/cgroup")
    parents = [*root.glob(own), *root.glob(f"*/{own}"), *root.glob(f"*/*/{own}")]
    return [f"cgroup {path}" for parent in parents for path in (parent, *(p for p in parent.iterdir() if p.is_dir()))]


def _mounts(data_dir: Path) -> list[str]:
    return [f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if str(data_dir) in line]


def _sockets(own: str, ports: set[int]) -> list[str]:
    found = [f"socket {line}" for line in Path("/proc/net/unix").read_text().splitlines() if f"@{own}" in line]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, state = line.split()[1], line.split()[3]
        if state == "0A" and int(address.split(":")[1], 16) in ports:
            found.append(f"socket listening on port {int(address.split(':')[1], 16)}")
    return found


def process_tree(root: int) -> list[tuple[int, str]]:
    """A process and all its descendants, each with its start time (a pid alone may be given to another later)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        found.append((pid, start_time(pid)))
    return [(pid, began) for pid, began in found if began]


def start_time(pid: int) -> str:
    """In clock ticks since the machine's start; empty when it does not live (a zombie does not)."""
    with suppress(OSError, IndexError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if after_name[0] in "ZX" else after_name[19]
    return ""
