"""The host agent process: `python -m infra.app.agent --data-dir D --slot agent-1`. Sandboxes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from infra.app.process import Process, main, wait_for_kafka
from infra.credentials import fabric_key
from infra.kafka.clients import Cluster
from infra.kafka.producer import Producer
from infra.kafka.tables import TableReader
from infra.objectstore.store import ObjectStore
from infra.settings import FabricSettings, store_address
from infra.steps import StepLoop
from infra.telemetry import get_logger
from proxy.network import NetworkModule
from sandbox.agent.agent import AgentConfig, StepHandler, run_agent
from sandbox.agent.host import HostLimits
from sandbox.agent.provisions import Provisions
from sandbox.driver import Capabilities
from sandbox.jail import JailConfig, JailDriver
from schemas import topics
from schemas.errors import ConfigError, IsolationUnavailable, PenstockError

log = get_logger("infra.app.agent")
FOLLOW_AGAIN_S = 1.0


def fabric_id(data_dir: Path) -> str:
    """8 hex digits that tell this fabric's cgroups and sockets from another's on the machine."""
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]


async def run(process: Process) -> None:
    """Choose the driver, say what it can isolate, then serve."""
    settings = process.settings
    driver = _driver(settings)
    folder = settings.data_dir / "agent"
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    probing = asyncio.ensure_future(asyncio.to_thread(driver.probe))
    try:
        await _start(process, driver, folder, probing)
    finally:
        await asyncio.wait([probing])  # its thread can't be cancelled, and makes the cgroups that close removes
        await driver.close()


async def _start(process: Process, driver: JailDriver, folder: Path, probing: asyncio.Future[Capabilities]) -> None:
    settings = process.settings
    found = await asyncio.shield(probing)
    said: dict[str, Any] = {"driver": found.driver, "missing": found.missing, "notes": found.notes}
    if found.missing and not settings.allow_weaker_isolation:
        refusal = IsolationUnavailable(found.missing)
        _write(folder / "capabilities.json", {**said, "message": str(refusal)})
        raise refusal
    _write(folder / "capabilities.json", said)
    await wait_for_kafka(process.cluster)
    await _serve(process, driver, folder)


def _driver(settings: FabricSettings) -> JailDriver:
    if settings.driver == "microvm":
        raise ConfigError("the microvm driver is not built yet: use --driver jail")
    return JailDriver(
        JailConfig(settings.data_dir / "agent" / "nodes", fabric_id(settings.data_dir), settings.allow_weaker_isolation)
    )


async def _serve(process: Process, driver: JailDriver, folder: Path) -> None:
    settings = process.settings
    address = store_address(settings)
    store = ObjectStore(address.endpoint, address.keys.access_key, address.keys.secret_key, region=address.region)
    producer = Producer(process.cluster, client_id=process.slot, linger_ms=2)
    await producer.start()

    async def steps(module: str, handle: StepHandler) -> None:
        await StepLoop(process.cluster, producer, module=module, instance_id=process.slot, handle=handle).run()

    config = AgentConfig(
        member_id=process.slot,
        host=settings.host,
        zone=settings.zone,
        address=f"unix:@penstock-{fabric_id(settings.data_dir)}-{process.slot}",
        key=fabric_key(settings.data_dir),
        folder=folder,
        region=settings.region,
        bucket=address.bucket,
        stop_s=1.0,
        limits=HostLimits(keep_alive_s=settings.worker_idle_s),
    )
    stop = asyncio.Event()
    running = asyncio.get_running_loop().create_task(
        run_agent(
            config,
            driver=driver,
            store=store,
            producer=producer,
            stop=stop,
            steps=steps,
            follow=partial(_follow, process.cluster),
        )
    )
    network = asyncio.get_running_loop().create_task(steps("network", NetworkModule().handle))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        raise
    finally:
        network.cancel()
        await asyncio.wait([network])
        await producer.close(1.0)
        await store.close()


async def _follow(cluster: Cluster, provisions: Provisions) -> None:
    """Feed the agent's provisions from their topic and that of the members; a broker that is away is tried again."""
    fed: dict[str, Callable[[str, Any], None]] = {
        topics.PROVISIONS: provisions.provision_changed,
        topics.MEMBERS: provisions.member_changed,
    }
    while True:
        tables = TableReader(cluster, [spec for spec in topics.TOPICS if spec.name in fed])
        try:
            await tables.start()
            for name, changed in fed.items():
                tables.view(name).follow(changed)
            await provisions.run()
        except PenstockError as exc:
            log.warning("provisions can't be followed", reason=str(exc))
            await asyncio.sleep(FOLLOW_AGAIN_S)
        finally:
            await tables.close()


def _write(path: Path, value: dict[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(value))
    part.replace(path)


if __name__ == "__main__":
    main(run)
