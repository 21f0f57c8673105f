"""What a running fabric says of itself in its data folder, so that `penstock status` and every other command can find it.

    fabric.json        written whole by `penstock up` at each change: phase, endpoints, processes
    up.lock            a lock that `up` holds as long as it lives, so that there is one at a time
    agent/capabilities.json   written by the host agent at its start: {"driver", "missing": [], "notes": [], "message"?}
    log/<process>.log  what each process wrote

A file can outlive its process, so each pid stands there with the process's mark (boot and start time): a pid that was given
to someone else since does not count. Standard library only, and little of it: `status` has 0.2 s of CPU.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from schemas.errors import ConfigError, UserError

DEFAULT_DATA_DIR: Final = "~/.penstock"
ENDPOINTS: Final = ("api", "bridge", "kafka", "s3", "ui", "metrics")
_VERSION: Final = 1


class Phase(StrEnum):
    """Of a fabric."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One supervised process. `since` is ISO-8601 in UTC: when `state` began; `mark` tells it from a later owner of the pid."""

    name: str
    pid: int
    state: str
    restarts: int
    since: str
    mark: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class FabricState:
    """All of fabric.json. `startup` holds the seconds of each part of the start."""

    data_dir: str
    phase: Phase
    up: ProcessState
    endpoints: dict[str, str | None] = field(default_factory=dict)
    driver: str = ""
    processes: tuple[ProcessState, ...] = ()
    warnings: tuple[str, ...] = ()
    startup: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FabricFolder:
    """Where things are in a data folder."""

    path: Path

    @property
    def state_file(self) -> Path:
        return self.path / "fabric.json"

    @property
    def lock_file(self) -> Path:
        return self.path / "up.lock"

    @property
    def credentials_file(self) -> Path:
        return self.path / "credentials.json"

    @property
    def capabilities_file(self) -> Path:
        return self.path / "agent" / "capabilities.json"

    def log_file(self, process: str) -> Path:
        return self.path / "log" / f"{process}.log"


def choose_folder(flag: str | None) -> FabricFolder:
    """The data folder: the flag's, else PENSTOCK_DATA_DIR's, else ~/.penstock; absolute."""
    chosen = flag or os.environ.get("PENSTOCK_DATA_DIR") or DEFAULT_DATA_DIR
    return FabricFolder(Path(chosen).expanduser().absolute())


def process_mark(pid: int) -> str:
    """Boot and start time of a living process; empty when there is none (a zombie is none)."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, IndexError):
        return ""
    state, started_ticks = after_name[0], after_name[19]
    return "" if state in "ZX" else f"{boot}/{started_ticks}"


def is_alive(process: ProcessState) -> bool:
    """Whether this very process still lives."""
    return process.pid > 0 and process.mark != "" and process_mark(process.pid) == process.mark


def write_state(folder: FabricFolder, state: FabricState) -> None:
    """Replace fabric.json, whole or not at all."""
    fresh = folder.state_file.with_name(".fabric.json.new")
    fresh.write_text(json.dumps({"version": _VERSION, **asdict(state)}, indent=1) + "\n")
    fresh.replace(folder.state_file)


def read_state(folder: FabricFolder) -> FabricState | None:
    """The last state that was written; None when nothing readable is there."""
    try:
        found: dict[str, Any] = json.loads(folder.state_file.read_bytes())
        if found.pop("version") != _VERSION:
            return None
        return FabricState(
            **{
                **found,
                "phase": Phase(found["phase"]),
                "up": ProcessState(**found["up"]),
                "processes": tuple(ProcessState(**p) for p in found["processes"]),
                "warnings": tuple(found["warnings"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def running_state(folder: FabricFolder) -> FabricState | None:
    """The state of the fabric that runs in this folder now; None when none does."""
    state = read_state(folder)
    if state is None or state.phase is Phase.STOPPED or not is_alive(state.up):
        return None
    return state


class UpLock:
    """The lock that one `penstock up` holds on a data folder. Released when closed, or when the process ends, however."""

    def __init__(self, folder: FabricFolder) -> None:
        """Take it.

        Raises:
            UserError: another process holds it; the message names the pid.
            ConfigError: the folder can't be used.
        """
        try:
            folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(folder.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(
                f"the data folder {folder.path} can't be used: {exc.strerror}; choose another with --data-dir"
            ) from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise UserError(
                f"a fabric runs in {folder.path} already (process {holder}): stop it, or choose another folder with --data-dir"
            ) from exc
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class AgentCapabilities:
    """What the host agent wrote. `message` is there when it refused to start."""

    driver: str
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    message: str = ""


def read_capabilities(folder: FabricFolder) -> AgentCapabilities | None:
    """What the agent said at its last start; None when nothing readable is there."""
    try:
        found = json.loads(folder.capabilities_file.read_bytes())
        return AgentCapabilities(
            str(found["driver"]),
            tuple(map(str, found.get("missing", ()))),
            tuple(map(str, found.get("notes", ()))),
            str(found.get("message") or ""),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
