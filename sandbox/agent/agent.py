"""The host agent as a whole: what it is made of, how it starts and how it ends.

    await run_agent(config, driver=…, store=…, producer=…, stop=event)

Wiring (settings, Kafka clients, the step loop) is infra.app's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.telemetry import get_logger
from infra.wire import ClosedCallback, FramesCallback, Server
from sandbox.agent.code import CodeModule
from sandbox.agent.codecache import DEFAULT_BYTES, CodeCache, PackageSource
from sandbox.agent.compute import ComputeModule
from sandbox.agent.fences import Fences
from sandbox.agent.gatewaylink import GatewayLink
from sandbox.agent.host import Host, HostLimits
from sandbox.agent.journal import Journal
from sandbox.agent.logs import LogShipper
from sandbox.agent.membership import Membership, RecordSink
from sandbox.agent.nodes import Nodes
from sandbox.agent.provisions import Provisions
from sandbox.agent.recentlogs import RecentBlocks
from sandbox.agent.starting import Starter
from sandbox.driver import NodeDriver
from schemas.package import CODE_BUCKET
from schemas.records import StatusReason, StepCommand

log = get_logger("sandbox.agent")

StepHandler = Callable[[StepCommand], Awaitable[tuple[StatusReason, ...]]]


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent must be told.

    `address` is where it listens (`unix:@NAME`, `unix:/PATH` or `tcp:HOST:PORT`, port 0 for any); `key` and `region` are the fabric's; `folder` is the agent's
    own below the data folder. `stop_s` is how long running invocations may take to end when it stops.
    """

    member_id: str
    host: str
    zone: str
    address: str
    key: bytes
    folder: Path
    region: str
    bucket: str = CODE_BUCKET
    cache_bytes: int = DEFAULT_BYTES
    recent_log_bytes: int = 64 * 1024 * 1024
    stop_s: float = 5.0
    limits: HostLimits = field(default_factory=HostLimits)


class Agent:
    """One host agent."""

    def __init__(self, config: AgentConfig, *, driver: NodeDriver, store: PackageSource, producer: RecordSink) -> None:
        self._config, self._driver = config, driver
        self._recent = RecentBlocks(config.folder / "logs", limit_bytes=config.recent_log_bytes)
        self._shipper = LogShipper(config.member_id, producer, self._recent, Journal(config.folder / "logs"))
        self._cache = CodeCache(config.folder / "code", store, bucket=config.bucket, limit_bytes=config.cache_bytes)
        self._nodes = Nodes(driver)
        self.host = Host(config.limits, self._nodes, Starter(self._nodes, self._cache), self._shipper)
        self.fences = Fences()
        self.modules: dict[str, StepHandler] = {
            "code": CodeModule(self._nodes, self._cache).handle,
            "compute": ComputeModule(self.host, self._nodes, self._cache).handle,
        }
        self._links: set[GatewayLink] = set()
        self._membership = Membership(
            producer, member_id=config.member_id, host=config.host, zone=config.zone, facts=self.facts
        )
        self.provisions = Provisions(
            self.host, producer, member_id=config.member_id, term=self._membership.term, region=config.region
        )
        identity = {"kind": "agent", "id": config.member_id, "term": self._membership.term}
        self._server = Server(config.address, config.key, identity, self._opened)

    @property
    def address(self) -> str:
        """Where it listens; with port 0 the real port is known after `start`."""
        return self._server.address

    def facts(self) -> dict[str, Any]:
        """For people: what it holds, and what isolation it has."""
        found = self._driver.probe()
        return {
            **self.host.facts(),
            "gateways": len(self._links),
            "code_bytes": self._cache.disk_bytes,
            "lost_log_lines": self._shipper.lost_lines,
            "driver": found.driver,
            "missing": list(found.missing),
        }

    async def start(self) -> None:
        """Sweep what a predecessor left, then listen.

        Raises:
            IsolationUnavailable: the driver refuses to run with less.
            OSError: the address is taken, or the folder can't be written.
        """
        self._config.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        await self._driver.start()
        await self._cache.start()
        self._recent.start()
        self._shipper.recover()
        self.host.start()
        self._server.start()
        log.info("the host agent listens", address=self.address, **self._driver_facts())

    async def announce(self) -> None:
        """Heartbeats until cancelled."""
        await self._membership.run(self.address)

    async def close(self) -> None:
        """Finish what runs (to the deadline), say goodbye, end all workers and nodes. Nothing is left."""
        await self.host.close(self._config.stop_s)
        self._shipper.flush()
        await self._membership.leave()
        await self._server.close()
        await self._cache.close()
        await self._driver.close()
        self._shipper.flush()
        await self._shipper.drain(2.0)
        await asyncio.to_thread(self._recent.close)

    def closed(self, link: GatewayLink) -> None:
        """See LinkOwner."""
        self._links.discard(link)

    def _opened(self, peer: dict[str, Any]) -> tuple[FramesCallback, ClosedCallback]:
        link = GatewayLink(self, peer)
        self._links.add(link)
        return link.frames, link.lost

    def _driver_facts(self) -> dict[str, Any]:
        found = self._driver.probe()
        return {"driver": found.driver, "missing": list(found.missing), "notes": list(found.notes)}


async def run_agent(
    config: AgentConfig,
    *,
    driver: NodeDriver,
    store: PackageSource,
    producer: RecordSink,
    stop: asyncio.Event,
    steps: Callable[[str, StepHandler], Coroutine[Any, Any, None]] | None = None,
    follow: Callable[[Provisions], Coroutine[Any, Any, None]] | None = None,
    ready: Callable[[Agent], None] | None = None,
) -> None:
    """Run an agent until `stop` is set.

    Args:
        config: see AgentConfig.
        driver: makes nodes; started and closed here.
        store: code packages.
        producer: started and closed by the caller, who flushes it after this returns.
        stop: set it to stop: running invocations get `config.stop_s` to end.
        steps: makes the endless run of a sub-resource module's step loop from its name and handler.
        follow: makes the endless run that feeds the agent's provisions and lets them look.
        ready: called once, when it listens.

    Raises:
        IsolationUnavailable, OSError: see Agent.start.
    """
    agent = Agent(config, driver=driver, store=store, producer=producer)
    try:
        await agent.start()
        if ready is not None:
            ready(agent)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(agent.announce())]
            if steps is not None:
                tasks += [group.create_task(steps(*module)) for module in agent.modules.items()]
            if follow is not None:
                tasks.append(group.create_task(follow(agent.provisions)))
            await stop.wait()
            for task in tasks:
                task.cancel()
    finally:
        await agent.close()
