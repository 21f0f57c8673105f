"""Processes that are started, watched, started again, and stopped in order.

    async with Supervisor(on_change=print) as supervisor:
        supervisor.start(ChildSpec("echo", command=lambda: ["cat"], log=folder / "echo.log"))
        await supervisor.ready(["echo"], timeout_s=5)
        ...
        await supervisor.stop()

Each child gets a session (so a process group) of its own, its output in its log, and dies with the thread that runs the event loop,
which must be the main thread (infra.tether). States: starting → running → (backoff → starting) … → stopped, or failed: it said
by exit status 78 that starting it again would not help. What follows an end is decided in infra.restarts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from infra import clock
from infra.restarts import Exit, GiveUp, RestartPolicy, after_exit
from infra.tether import tethered
from schemas.errors import DeadlineExceeded, PenstockError, PlatformError

_PROBE_EVERY_S: Final = 0.02
_PROBE_LIMIT_S: Final = 5.0
_KILL_WAIT_S: Final = 5.0
_LOG_KEPT_BYTES: Final = 8 * 1024 * 1024
_TAIL_BYTES: Final = 4096


class ChildState(StrEnum):
    """What `penstock status` shows."""

    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process to keep running.

    Args:
        name: e.g. `gateway-1`; unique in its supervisor.
        command: called before every start, off the event loop; the command line, or a PenstockError when it can't be started now.
        log: where stdout and stderr go.
        environ: called before every start: variables on top of our own.
        probe: True when it is ready; polled from each start on, at most 5 s a call; OSError is no, PenstockError kills the child.
            Without it, started is ready.
        ready_timeout_s: a start that is not ready by then is killed and counts as ended.
        stop_order: lower ones are stopped first, equal ones together.
        stop_timeout_s: from SIGTERM to SIGKILL.
    """

    name: str
    command: Callable[[], Sequence[str]]
    log: Path
    environ: Callable[[], Mapping[str, str]] = dict
    probe: Callable[[], Awaitable[bool]] | None = None
    ready_timeout_s: float = 60.0
    stop_order: int = 0
    stop_timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """A child now. `pid` 0 means that no process is there; `since_unix_ms` is when the state began; `ended` the last end nobody asked for."""

    name: str
    state: ChildState
    pid: int
    restarts: int
    since_unix_ms: int
    log: Path
    ended: Exit | None = None
    next_start_in_s: float = 0.0
    reason: str = ""


class Supervisor:
    """Keeps children running until `stop`. All methods are for the event loop's thread.

    Args:
        on_change: called for every change of a child's status; must be quick and not raise.
        policy: waits between starts.
        steady_log_bytes: a log larger than this is moved to `<name>.log.1` before a start.
    """

    def __init__(
        self,
        *,
        on_change: Callable[[ChildStatus], None] = lambda _: None,
        policy: RestartPolicy | None = None,
        log_bytes: int = _LOG_KEPT_BYTES,
    ) -> None:
        self._on_change = on_change
        self._policy = policy or RestartPolicy()
        self._log_bytes = log_bytes
        self._children: dict[str, _Child] = {}
        self._changed = asyncio.Event()
        self._stopping = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start(self, spec: ChildSpec) -> None:
        """Begin to run a child; returns at once."""
        if spec.name in self._children:
            raise ValueError(f"a child {spec.name} is there already")
        if self._stopping:
            raise PlatformError(f"{spec.name} is not started: the supervisor is stopping")
        self._children[spec.name] = _Child(spec, self._policy, self._log_bytes, self._note)

    def statuses(self) -> list[ChildStatus]:
        """Every child, in the order of their starts."""
        return [child.status for child in self._children.values()]

    async def ready(self, names: Iterable[str], *, timeout_s: float) -> None:
        """Wait until all of these run.

        Raises:
            PlatformError: one of all children failed for good, or the supervisor stops.
            DeadlineExceeded: not in time; the message says which, and how it goes with them.
        """
        waited = list(names)
        try:
            async with asyncio.timeout(timeout_s):
                while not all(self._children[name].status.state is ChildState.RUNNING for name in waited):
                    self._raise_if_over()
                    await self._next_change()
        except TimeoutError as exc:
            late = [self._children[n] for n in waited if self._children[n].status.state is not ChildState.RUNNING]
            told = "; ".join(f"{child.status.name} is {describe(child.status)}" for child in late)
            raise DeadlineExceeded(f"not ready within {timeout_s:g} s: {told}") from exc

    async def failure(self) -> ChildStatus:
        """Wait for the first child that fails for good."""
        while True:
            for child in self._children.values():
                if child.status.state is ChildState.FAILED:
                    return child.status
            await self._next_change()

    async def stop(self) -> None:
        """Stop all children, in order; returns when none is left. Idempotent."""
        self._stopping = True
        self._changed.set()
        orders = sorted({child.spec.stop_order for child in self._children.values()})
        for order in orders:
            group = [child for child in self._children.values() if child.spec.stop_order == order]
            await asyncio.gather(*(child.stop() for child in group))

    def kill(self) -> None:
        """SIGKILL every child at once; `stop` then returns soon."""
        for child in self._children.values():
            child.hurry()

    def _raise_if_over(self) -> None:
        if self._stopping:
            raise PlatformError("the supervisor is stopping")
        for child in self._children.values():
            if child.status.state is ChildState.FAILED:
                raise PlatformError(f"{child.status.name} {describe(child.status)}")

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _note(self, status: ChildStatus) -> None:
        self._changed.set()
        self._on_change(status)


class _Child:
    """One child and the task that keeps it running."""

    def __init__(
        self, spec: ChildSpec, policy: RestartPolicy, log_bytes: int, note: Callable[[ChildStatus], None]
    ) -> None:
        self.spec = spec
        self._policy, self._log_bytes, self._note = policy, log_bytes, note
        self._process: asyncio.subprocess.Process | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._was_killed = False
        self.status = ChildStatus(spec.name, ChildState.STARTING, 0, 0, clock.unix_ms(), spec.log)
        # Ends by itself after `stop`; `stop` waits for it.
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"supervise {spec.name}")

    async def stop(self) -> None:
        """SIGTERM, wait, SIGKILL; and no start any more."""
        self._stop.set()
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:  # leave nothing behind all the same
            self.hurry()
            raise

    def hurry(self) -> None:
        self._stop.set()
        self._hurry.set()

    def _set(self, state: ChildState, **changes: object) -> None:
        self.status = replace(self.status, state=state, since_unix_ms=clock.unix_ms(), **changes)  # type: ignore[arg-type]
        self._note(self.status)

    async def _run(self) -> None:
        try:
            await self._keep_running()
        except Exception as exc:  # noqa: BLE001 - a fault of ours must show as a failed child, not as one that nobody watches
            self._set(ChildState.FAILED, pid=0, reason=f"is not watched any more: {exc!r}")

    async def _keep_running(self) -> None:
        streak = 0
        while not self._stop.is_set():
            ended = await self._live()
            if self._stop.is_set():
                break
            decision = after_exit(self._policy, ended, streak=streak)
            if isinstance(decision, GiveUp):
                self._set(ChildState.FAILED, pid=0, ended=ended, reason=decision.reason)
                return
            streak = decision.streak
            self._set(ChildState.BACKOFF, pid=0, ended=ended, next_start_in_s=decision.delay_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(decision.delay_s):
                    await self._stop.wait()
            if not self._stop.is_set():
                self._set(ChildState.STARTING, restarts=self.status.restarts + 1, next_start_in_s=0.0)
        reason = f"did not end within {self.spec.stop_timeout_s:g} s and was killed" if self._was_killed else ""
        self._set(ChildState.STOPPED, pid=0, reason=reason)

    async def _live(self) -> Exit:
        """One life, from start to end."""
        began_s = clock.mono_s()
        try:
            argv = await asyncio.to_thread(self.spec.command)
            if self._stop.is_set():
                return Exit(None, 0.0)
            process = await self._spawn(list(argv))
        except (PenstockError, OSError) as exc:
            return Exit(None, 0.0, f"could not be started: {exc}")
        self._set(ChildState.STARTING, pid=process.pid)
        ended = asyncio.ensure_future(process.wait())
        stopped = asyncio.ensure_future(self._stop.wait())
        ready = asyncio.ensure_future(self._until_ready())
        reason = ""
        try:
            await asyncio.wait({ended, stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ended.done() and not self._stop.is_set():
                if reason := ready.result():
                    await self._end(process, ended, signal.SIGKILL)
                else:
                    self._set(ChildState.RUNNING)
                    await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(process, ended, signal.SIGTERM)
            was_ready = self.status.state is ChildState.RUNNING
            return Exit(ended.result(), clock.mono_s() - began_s, reason, was_ready=was_ready)
        finally:
            for future in (stopped, ready, ended):
                future.cancel()
            if process.returncode is None:
                _kill(process.pid)

    async def _spawn(self, argv: list[str]) -> asyncio.subprocess.Process:
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        turn_over(self.spec.log, self._log_bytes)
        with self.spec.log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *tethered(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.spec.environ()},
            )

    async def _until_ready(self) -> str:
        """Empty when the probe says yes, else why it was given up."""
        if self.spec.probe is None:
            return ""
        try:
            async with asyncio.timeout(self.spec.ready_timeout_s):
                while not await self._probe_once(self.spec.probe):  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(_PROBE_EVERY_S)
        except TimeoutError:
            return f"was not ready within {self.spec.ready_timeout_s:g} s"
        except PenstockError as exc:
            return str(exc)
        return ""

    async def _probe_once(self, probe: Callable[[], Awaitable[bool]]) -> bool:
        with suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(_PROBE_LIMIT_S):
                return await probe()
        return False

    async def _end(
        self, process: asyncio.subprocess.Process, ended: asyncio.Future[int], first: signal.Signals
    ) -> None:
        """Signal the child, then kill its whole group when it takes too long or there is no time."""
        if first is not signal.SIGKILL:
            with suppress(ProcessLookupError):
                process.send_signal(first)
            hurry = asyncio.ensure_future(self._hurry.wait())
            waited: set[asyncio.Future[Any]] = {ended, hurry}
            await asyncio.wait(waited, timeout=self.spec.stop_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
        if not ended.done():
            self._was_killed = first is not signal.SIGKILL
            _kill(process.pid)
            await asyncio.wait({ended}, timeout=_KILL_WAIT_S)
            if not ended.done():
                raise PlatformError(f"{self.spec.name} (process {process.pid}) does not die")


def _kill(pid: int) -> None:
    """The child is alive, so its group is there and is its own."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def describe(status: ChildStatus) -> str:
    """A child's status as the end of a sentence that starts with its name."""
    if status.ended is None:
        return str(status.state)
    what = f"ended ({exit_text(status.ended)}) after {status.ended.lived_s:.1f} s"
    return f"{what}: {status.reason}" if status.reason else what


def exit_text(ended: Exit) -> str:
    """For people: `signal SIGKILL`, `exit status 3`, or the reason."""
    if ended.reason:
        return ended.reason
    if ended.code is None:
        return "could not be started"
    if ended.code >= 0:
        return f"exit status {ended.code}"
    try:
        return f"signal {signal.Signals(-ended.code).name}"
    except ValueError:
        return f"signal {-ended.code}"


def turn_over(log: Path, limit_bytes: int) -> None:
    """Move a log that is larger than the limit to `<name>.1`, over the one that was there."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > limit_bytes:
            log.replace(log.with_name(log.name + ".1"))


def last_lines(log: Path, count: int = 1) -> list[str]:
    """The last lines of a log that say something; none when it can't be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]
