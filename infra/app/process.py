"""What the entry points of our own processes share: flags, logs, settings, waiting for Kafka, a clean stop at SIGTERM.

Exit status 0 after a signal, 78 for what only an operator can change (`penstock up` then stops everything and shows the message), 1 else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import telemetry
from infra.clock import mono_s
from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from infra.settings import FabricSettings, load
from schemas.errors import BrokerUnavailable, ConfigError, IsolationUnavailable, PenstockError, UserError
from schemas.topics import TOPICS

EXIT_CONFIG = 78
_BROKER_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Process:
    """One of our processes: its settings and its slot (`gateway-1`)."""

    settings: FabricSettings
    slot: str

    @property
    def cluster(self) -> Cluster:
        """The fabric's Kafka cluster."""
        servers = self.settings.bootstrap_servers
        if servers is None:
            raise ConfigError("no Kafka: set PENSTOCK_BOOTSTRAP_SERVERS, or start this process by `penstock up`")
        return Cluster(servers, tuple(self.settings.kafka_options.items()))


def main(run: Callable[[Process], Coroutine[Any, Any, None]], *, quick_loop: bool = True) -> None:
    """Entry point: run until a signal.

    Args:
        run: the process; cancelled at SIGTERM and SIGINT, ends when it has cleaned up.
        quick_loop: uvloop where it is installed.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--slot", required=True)
    args = parser.parse_args()
    try:
        telemetry.configure(args.slot)
        process = Process(load(args.data_dir), args.slot)
        with asyncio.Runner(loop_factory=_loop_factory() if quick_loop else None) as runner:
            runner.run(_until_signalled(run(process)))
    except (UserError, IsolationUnavailable) as exc:
        print(f"{args.slot}: {exc}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    except PenstockError as exc:
        print(f"{args.slot}: {exc}", file=sys.stderr)
        sys.exit(1)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


async def _until_signalled(run: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(run)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def wait_for_kafka(cluster: Cluster) -> None:
    """Return when the cluster answers and Penstock's topics are there; BrokerUnavailable after two minutes."""
    deadline = mono_s() + _BROKER_WAIT_S
    while True:
        admin = Admin(cluster, timeout_s=2.0)
        try:
            await admin.provision(TOPICS)
            return
        except BrokerUnavailable:
            if mono_s() > deadline:
                raise
            await asyncio.sleep(0.1)
        finally:
            admin.close()


async def every(period_s: float, work: Callable[[], Awaitable[None] | None]) -> None:
    """Do `work` each period until cancelled; one that fails is logged and comes again."""
    log = telemetry.get_logger("infra.app")
    while True:
        try:
            done = work()
            if done is not None:
                await done
        except PenstockError as exc:
            log.warning("periodic work failed", error=str(exc))
        await asyncio.sleep(period_s)
