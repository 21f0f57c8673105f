"""`penstock up`: start a fabric in the foreground, watch it, stop it.

It is ready when every process runs, Penstock's topics are there, a consumer group has joined the broker once, and the gateway says
so. From then on a process that ends is started again, with back-off and a line that says so. Ctrl-C, SIGTERM and SIGHUP
stop all in order; a second one kills. When `up` itself is killed the kernel ends its children, and the next `up` starts as usual.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from infra import clock
from infra.app.console import ExitStatus, note, say, say_json
from infra.app.stack import AGENT, Endpoints, OwnCommand, Stack, check_store, own_command
from infra.app.state import (
    AgentCapabilities,
    FabricFolder,
    FabricState,
    Phase,
    ProcessState,
    UpLock,
    choose_folder,
    is_alive,
    process_mark,
    read_capabilities,
    read_state,
    write_state,
)
from infra.app.status import Readiness, judge
from infra.app.times import iso_utc
from infra.credentials import fabric_key, make_credentials
from infra.settings import FabricSettings, config_file, load, show, unknown_variables
from infra.supervisor import ChildState, ChildStatus, Supervisor, describe, last_lines
from schemas.errors import BrokerUnavailable, ConfigError, DeadlineExceeded, PenstockError, PlatformError, UserError

_START_S: Final = 120.0
_LEFTOVERS_S: Final = 5.0
_READY_EVERY_S: Final = 0.03
_HOPELESS_RESTARTS: Final = 6
_STEADY_MS: Final = 1_000


class StartRefused(UserError):
    """A process said that it can't run as things are; the message is its own."""

    code = "StartRefused"


def run(args: argparse.Namespace) -> ExitStatus:
    """The command."""
    folder = choose_folder(args.data_dir)
    flags = {name: getattr(args, name) for name in ("port", "bootstrap_servers", "s3_endpoint", "driver")}
    settings = load(folder.path, flags={**flags, "allow_weaker_isolation": args.allow_weaker_isolation})
    if args.print_config:
        _print_config(settings, folder, as_json=args.json)
        return ExitStatus.OK
    if settings.driver == "microvm":
        raise ConfigError("the microvm driver is not built yet: use --driver jail, or auto")
    return asyncio.run(Fabric(folder, settings, as_json=args.json, is_verbose=args.verbose).run())


def _print_config(settings: FabricSettings, folder: FabricFolder, *, as_json: bool) -> None:
    shown = show(settings)
    if as_json:
        say_json(shown)
        return
    say(f"# file: {config_file(folder.path) or 'none'}")
    for name, value in shown.items():
        say(f"{name} = {value!r}" if value is not None else f"# {name} is not set")


class Fabric:
    """One run of `up`.

    Args:
        folder: the data folder.
        settings: the effective settings.
        as_json: say readiness as one JSON object (the shape of `status --json`) on stdout.
        is_verbose: say what is being done.
        own: makes the command lines of our own processes; tests give others.
    """

    def __init__(
        self,
        folder: FabricFolder,
        settings: FabricSettings,
        *,
        as_json: bool = False,
        is_verbose: bool = False,
        own: OwnCommand = own_command,
    ) -> None:
        self._folder, self._settings, self._own = folder, settings, own
        self._as_json, self._is_verbose = as_json, is_verbose
        self._began_s = self._lap_s = clock.mono_s()
        self._phase = Phase.STARTING
        self._phase_since_ms = clock.unix_ms()
        self._endpoints: Endpoints | None = None
        self._statuses: dict[str, ChildStatus] = {}
        self._marks: dict[int, str] = {}
        self._startup: dict[str, float] = {}
        self._stop = asyncio.Event()
        self._supervisor: Supervisor | None = None

    async def run(self) -> ExitStatus:
        """Start, watch, stop; returns when nothing of it runs any more."""
        lock = UpLock(self._folder)
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self._asked_to_stop)
            end_leftovers(self._folder)
            self._folder.capabilities_file.unlink(missing_ok=True)
            return await self._run_stack()
        finally:
            lock.close()

    async def _run_stack(self) -> ExitStatus:
        credentials = make_credentials(
            self._folder.path, region=self._settings.region, appid=self._settings.appid, uin=self._settings.uin
        )
        fabric_key(self._folder.path, make=True)
        stack = Stack(self._folder, self._settings, credentials, own=self._own)
        self._lap("files")
        await self._check_given(stack)
        self._endpoints = stack.endpoints
        self._say(f"Penstock starts in {self._folder.path}")
        async with Supervisor(on_change=self._changed) as supervisor:
            self._supervisor = supervisor
            try:
                await self._start(stack, supervisor)
                if not self._stop.is_set():
                    self._ready()
                    await _first(self._stop.wait(), supervisor.failure())
                self._raise_if_refused()
            except PenstockError:
                self._raise_if_refused()  # what a process said itself says more
                raise
            finally:
                self._enter(Phase.STOPPING)
                if not self._as_json:
                    self._say("stopping")
                await supervisor.stop()
                self._enter(Phase.STOPPED)
        self._say("stopped; the state stays in " + str(self._folder.path))
        return ExitStatus.OK

    # start

    async def _check_given(self, stack: Stack) -> None:
        """A cluster or store that is not ours must answer before anything is started."""
        await check_store(stack)
        if stack.broker is None:
            try:
                await stack.preparation().run(self._lap)
            except BrokerUnavailable as exc:
                raise BrokerUnavailable(
                    f"no Kafka broker answers at {stack.endpoints.kafka}: check --bootstrap-servers, and that the cluster runs ({exc})"
                ) from exc

    async def _start(self, stack: Stack, supervisor: Supervisor) -> None:
        """Everything up to readiness, or until a stop is asked for. Raises PenstockError."""
        for spec in stack.specs():
            supervisor.start(spec)
        self._lap("spawn")
        self._enter(Phase.STARTING)
        try:
            async with asyncio.timeout(_START_S):
                await _first(self._stop.wait(), self._become_ready(stack, supervisor), self._hopeless(supervisor))
        except TimeoutError:
            told = [f"{s.name} is {describe(s)}" for s in supervisor.statuses() if s.state is not ChildState.RUNNING]
            _, waits = await stack.is_ready()
            raise DeadlineExceeded(
                f"the fabric is not ready after {_START_S:g} s ({'; '.join(told) or 'waiting for ' + ', '.join(waits)});"
                f" logs are in {self._folder.path}/log"
            ) from None

    async def _become_ready(self, stack: Stack, supervisor: Supervisor) -> None:
        if stack.broker is not None:
            await stack.preparation().run(self._lap)
        names = [status.name for status in supervisor.statuses()]
        await supervisor.ready(names, timeout_s=_START_S)
        self._lap("processes")
        while not (_all_steady(supervisor.statuses()) and (await stack.is_ready())[0]):  # noqa: ASYNC110
            await asyncio.sleep(_READY_EVERY_S)
        self._lap("gateway ready")

    async def _hopeless(self, supervisor: Supervisor) -> None:
        """Ends with an error when a process refuses, or dies again and again, before all was ready once."""
        while True:
            self._raise_if_refused()
            for status in supervisor.statuses():
                if status.restarts >= _HOPELESS_RESTARTS and status.state is ChildState.BACKOFF:
                    raise PlatformError(
                        f"{status.name} {describe(status)}, {status.restarts + 1} times in a row; its log {status.log} ends:\n"
                        + "\n".join("  " + line for line in last_lines(status.log, 5))
                    )
            await asyncio.sleep(0.05)

    def _raise_if_refused(self) -> None:
        refused = next((s for s in self._statuses.values() if s.state is ChildState.FAILED), None)
        if refused is None:
            return
        said = read_capabilities(self._folder) if refused.name == AGENT else None
        lines = last_lines(refused.log, 1)
        last = lines[-1].removeprefix(f"{refused.name}: ") if lines else describe(refused)
        reason = (said.message if said is not None else "") or last
        raise StartRefused(f"{refused.name} can't run: {reason} (its log: {refused.log})")

    def _ready(self) -> None:
        self._startup["total"] = round(clock.mono_s() - self._began_s, 3)
        self._enter(Phase.READY)
        state = self._state()
        if self._as_json:
            alive = frozenset(p.name for p in state.processes)
            self._print(lambda: say_json(judge(self._folder, state, alive, Readiness(True, {}))))
            return
        self._say(f"Penstock is ready after {self._startup['total']:.1f} s\n")
        for name, address in state.endpoints.items():
            if address:
                self._say(f"  {name:<12} {address}")
        self._say(f"  {'credentials':<12} {self._folder.credentials_file}")
        self._say(f"  {'isolation':<12} {self._isolation()}")
        self._say(f"  {'logs':<12} {self._folder.path}/log")
        for warning in unknown_variables(os.environ):
            self._say(f"  {'warning':<12} {warning}")
        if self._is_verbose:
            parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self._startup.items())
            self._say(f"  {'start':<12} {parts}")
        self._say("\nCtrl-C stops it; its state stays.")

    def _isolation(self) -> str:
        said = read_capabilities(self._folder)
        if said is None:
            return f"{self._settings.driver} (the agent has not said more)"
        return f"{said.driver}, " + (f"WEAKER: {', '.join(said.missing)} missing" if said.missing else "complete")

    # while it runs

    def _asked_to_stop(self) -> None:
        if self._stop.is_set() and self._supervisor is not None:
            self._supervisor.kill()
        self._stop.set()

    def _changed(self, status: ChildStatus) -> None:
        self._statuses[status.name] = status
        self._marks[status.pid] = process_mark(status.pid) if status.pid else ""
        if status.state is ChildState.BACKOFF:
            self._print(
                lambda: note(
                    f"{status.name} {describe(status)}; it is started again in {status.next_start_in_s:g} s (log: {status.log})"
                )
            )
        elif status.state is ChildState.STOPPED and status.reason:
            self._print(lambda: note(f"{status.name} {status.reason}"))
        elif status.state is ChildState.RUNNING and status.restarts and self._phase is Phase.READY:
            self._print(lambda: note(f"{status.name} runs again (process {status.pid})"))
        elif self._is_verbose:
            self._print(lambda: note(f"{status.name} is {status.state}"))
        self._write()

    def _enter(self, phase: Phase) -> None:
        if phase is not self._phase:
            self._phase, self._phase_since_ms = phase, clock.unix_ms()
        self._write()

    def _write(self) -> None:
        try:
            write_state(self._folder, self._state())
        except OSError as exc:  # a full disk must not end a fabric that runs
            problem = f"{self._folder.state_file} can't be written: {exc.strerror}"
            self._print(lambda: note(problem))

    def _state(self) -> FabricState:
        said = read_capabilities(self._folder)
        return FabricState(
            data_dir=str(self._folder.path),
            phase=self._phase,
            up=ProcessState(
                "up", os.getpid(), str(self._phase), 0, iso_utc(self._phase_since_ms), process_mark(os.getpid())
            ),
            endpoints=self._endpoints.shown() if self._endpoints is not None else {},
            driver=said.driver if said is not None else self._settings.driver,
            processes=tuple(
                ProcessState(
                    s.name, s.pid, str(s.state), s.restarts, iso_utc(s.since_unix_ms), self._marks[s.pid], str(s.log)
                )
                for s in self._statuses.values()
            ),
            warnings=(*_isolation_warning(said), *unknown_variables(os.environ)),
            startup=dict(self._startup),
        )

    # words and times

    def _lap(self, part: str) -> None:
        now_s = clock.mono_s()
        self._startup[part] = round(now_s - self._lap_s, 3)
        self._lap_s = now_s

    def _say(self, text: str) -> None:
        if not self._as_json:
            self._print(lambda: say(text))

    def _print(self, speak: Callable[[], None]) -> None:
        with suppress(OSError):  # a terminal that went away is no reason to end
            speak()
            sys.stdout.flush()


def _all_steady(statuses: list[ChildStatus]) -> bool:
    """Whether all run, and none has just been started again."""
    now_ms = clock.unix_ms()
    return all(
        s.state is ChildState.RUNNING and (s.restarts == 0 or now_ms - s.since_unix_ms >= _STEADY_MS) for s in statuses
    )


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for the first of these to end; the others are cancelled. Raises what the first one raises."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        try:
            task.result()
        except BaseExceptionGroup as group:
            known = group.subgroup(PenstockError)
            raise (known.exceptions[0] if known is not None else group.exceptions[0]) from group


def _isolation_warning(said: AgentCapabilities | None) -> tuple[str, ...]:
    if said is None or not said.missing:
        return ()
    return (f"functions are isolated less than they should be; missing: {', '.join(said.missing)}",)


def end_leftovers(folder: FabricFolder) -> None:
    """Kill what is left of a fabric whose `up` was killed: the kernel does so already, but it may take a moment.

    Raises:
        PlatformError: a process does not go away.
    """
    state = read_state(folder)
    left = [p for p in state.processes if is_alive(p)] if state is not None else []
    for process in left:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    deadline_s = clock.mono_s() + _LEFTOVERS_S
    while still := [p for p in left if is_alive(p)]:
        if clock.mono_s() > deadline_s:
            names = ", ".join(f"{p.name} (process {p.pid})" for p in still)
            raise PlatformError(f"{names} of an earlier fabric in {folder.path} can't be killed: end it yourself")
        time.sleep(0.01)
