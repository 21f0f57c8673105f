"""Resource limits of nodes and workers by cgroups, version 1 (a tree per controller) and 2 (one tree) behind one face.

All groups of a fabric stand under one parent, `penstock-<id>`, so that a start can sweep what a killed predecessor left: kill what lives
in them, remove them. Making a group is the slow part of a start, so `GroupPool` makes worker groups ahead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
CPU_PERIOD_US = 100_000
_CONTROLLERS = ("memory", "cpu", "pids")
_SWEEP_S = 5.0


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where each controller's parent group is. With version 2 all are the same folder."""

    version: int
    parents: dict[str, Path]

    @property
    def missing(self) -> tuple[str, ...]:
        """Controllers that can't be used."""
        return tuple(f"{name} cgroup" for name in _CONTROLLERS if name not in self.parents)

    @property
    def folders(self) -> list[Path]:
        """Distinct parents."""
        return list(dict.fromkeys(self.parents.values()))


def find(fabric: str, *, root: Path = Path("/sys/fs/cgroup")) -> Hierarchy:
    """Make the parent groups where this user may; what can't be made is missing."""
    if (root / "cgroup.controllers").exists():
        return Hierarchy(2, _find_v2(root, fabric))
    parents = {}
    for name in _CONTROLLERS:
        folder = root / name / fabric
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            parents[name] = folder
    return Hierarchy(1, parents)


def _find_v2(root: Path, fabric: str) -> dict[str, Path]:
    own = root / _own_group().lstrip("/")
    for base in (root, own.parent if own != root else own):
        folder = base / fabric
        try:
            folder.mkdir(exist_ok=True)
            have = set((base / "cgroup.subtree_control").read_text().split())
            for name in _CONTROLLERS:
                if name not in have:
                    (base / "cgroup.subtree_control").write_text(f"+{name}")
            (folder / "cgroup.subtree_control").write_text(" ".join(f"+{n}" for n in _CONTROLLERS))
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        return dict.fromkeys(_CONTROLLERS, folder)
    return {}


def _own_group() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    return "/"


class Group:
    """One group of a worker: a folder per controller, with limits set."""

    def __init__(self, hierarchy: Hierarchy, name: str) -> None:
        self.name = name
        self._hierarchy = hierarchy
        self._folders = {c: parent / name for c, parent in hierarchy.parents.items()}
        for folder in dict.fromkeys(self._folders.values()):
            folder.mkdir()

    def limit(self, *, memory_mib: int, pids: int, cpus: float) -> None:
        """Set the limits, also again and higher; memory counts everything, also files on a tmpfs."""
        v2 = self._hierarchy.version == 2
        if not v2:
            with contextlib.suppress(OSError):  # memory and swap together may never be less than memory
                self._write("memory", "memory.memsw.limit_in_bytes", "-1")
        self._write("memory", "memory.max" if v2 else "memory.limit_in_bytes", str(memory_mib * MIB))
        with contextlib.suppress(OSError):  # only where swap is accounted
            self._write(
                "memory",
                "memory.swap.max" if v2 else "memory.memsw.limit_in_bytes",
                "0" if v2 else str(memory_mib * MIB),
            )
        self._write("pids", "pids.max", str(pids))
        quota = int(cpus * CPU_PERIOD_US)
        if v2:
            self._write("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}")
        else:
            self._write("cpu", "cpu.cfs_quota_us", str(quota))

    def open_procs(self) -> list[int]:
        """Descriptors into which a process writes `0` to move itself here (the opener's rights count)."""
        folders = dict.fromkeys(self._folders.values())
        return [os.open(f / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for f in folders]

    def memory_kib(self) -> int:
        """What it uses now; 0 when that can't be told."""
        name = "memory.current" if self._hierarchy.version == 2 else "memory.usage_in_bytes"
        return int(self._read("memory", name) or 0) // 1024

    def peak_kib(self) -> int:
        """The most it used; 0 when that can't be told."""
        name = "memory.peak" if self._hierarchy.version == 2 else "memory.max_usage_in_bytes"
        return int(self._read("memory", name) or 0) // 1024

    def oom_kills(self) -> int:
        """How often the kernel killed in this group for want of memory."""
        name = "memory.events" if self._hierarchy.version == 2 else "memory.oom_control"
        for line in self._read("memory", name).splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def remove(self) -> bool:
        """Remove its folders; False when one is still busy."""
        done = True
        for folder in dict.fromkeys(self._folders.values()):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                done = False
        return done

    def _write(self, controller: str, name: str, text: str) -> None:
        folder = self._folders.get(controller)
        if folder is not None:
            (folder / name).write_text(text)

    def _read(self, controller: str, name: str) -> str:
        folder = self._folders.get(controller)
        with contextlib.suppress(OSError):
            return "" if folder is None else (folder / name).read_text()
        return ""


def sweep(hierarchy: Hierarchy, *, with_parents: bool) -> int:
    """Kill what lives below the parents and remove the groups; how many processes were killed."""
    killed = 0
    deadline = time.monotonic() + _SWEEP_S
    while True:
        groups = [Path(d) for p in hierarchy.folders for d, _, _ in os.walk(p, topdown=False) if Path(d) != p]
        if with_parents:
            groups += hierarchy.folders
        killed += _kill_all(groups)
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        if not any(g.exists() for g in groups) or time.monotonic() > deadline:
            return killed
        time.sleep(0.01)


def _kill_all(groups: list[Path]) -> int:
    killed = 0
    for group in groups:
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                if int(pid) != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                        killed += 1
    return killed


class GroupPool:
    """Groups made ahead of need. Any thread may call; `take` is quick, `refill` makes folders."""

    def __init__(self, hierarchy: Hierarchy, *, ahead: int = 8) -> None:
        self._hierarchy, self._ahead = hierarchy, ahead
        self._lock = threading.Lock()
        self._ready: list[Group] = []
        self._leaving: list[Group] = []
        self._made = 0
        self._closed = False

    def take(self) -> Group:
        """A group without limits set."""
        with self._lock:
            return self._ready.pop() if self._ready else self._make()

    def give_back(self, group: Group) -> None:
        """Its processes are dead or dying; it is removed now or at a later `refill`."""
        if not group.remove():
            with self._lock:
                self._leaving.append(group)

    def refill(self) -> None:
        """Make groups ahead, remove those that were busy."""
        with self._lock:
            if self._closed:
                return
            self._leaving = [g for g in self._leaving if not g.remove()]
            while len(self._ready) < self._ahead:
                self._ready.append(self._make())

    def close(self) -> None:
        """Remove all that can be removed; a sweep gets the rest."""
        with self._lock:
            self._closed = True
            for group in (*self._ready, *self._leaving):
                group.remove()
            self._ready.clear()
            self._leaving.clear()

    def _make(self) -> Group:
        self._made += 1
        return Group(self._hierarchy, f"w{os.getpid()}-{self._made}")
