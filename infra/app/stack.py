"""The processes of one fabric on this machine: what each is, how it is started, when it is ready, in which order they stop.

    kafka         the embedded broker, unless a cluster is given
    objectstore   the embedded S3 store, unless an endpoint is given
    gateway-1, streams-1, agent-1   our own: `python -m infra.app.<kind> --data-dir D --slot NAME`

All are started at once: importing takes our own as long as the broker needs, and each waits for it by itself. Ports are chosen before
anything starts and stay for the life of the fabric, so what is started again is found where it was.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from infra.app.preparation import Preparation
from infra.app.state import FabricFolder, read_state
from infra.app.status import ask
from infra.broker.kafka import Broker
from infra.credentials import Credentials
from infra.loopback import HOST, accepts, choose_port, free_port
from infra.objectstore.rclone import EmbeddedStore
from infra.settings import FabricSettings, child_environment
from infra.supervisor import ChildSpec

GATEWAY: Final = "gateway-1"
STREAMS: Final = "streams-1"
AGENT: Final = "agent-1"
KAFKA: Final = "kafka"
OBJECTSTORE: Final = "objectstore"
# From SIGTERM to SIGKILL; one after another they make ten seconds.
_STOP_S: Final = {GATEWAY: 3.0, STREAMS: 2.0, AGENT: 2.0, OBJECTSTORE: 0.5, KAFKA: 2.5}
_PROBE_S: Final = 2.0


def own_command(kind: str, folder: FabricFolder, slot: str) -> list[str]:
    """The command line of one of our own processes. `-P`: the current folder is not where its modules come from."""
    return [sys.executable, "-P", "-m", f"infra.app.{kind}", "--data-dir", str(folder.path), "--slot", slot]


OwnCommand = Callable[[str, FabricFolder, str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the parts of the fabric listen. `api` and `s3` are URLs, `kafka` is `host:port[,…]`."""

    api: str
    kafka: str
    s3: str

    def shown(self) -> dict[str, str | None]:
        """As `penstock status` shows them; what is not built is null."""
        metrics = f"{self.api}/metrics"
        return {"api": self.api, "bridge": None, "kafka": self.kafka, "s3": self.s3, "ui": None, "metrics": metrics}


class Stack:
    """Ports, files and child specs of a fabric. Making one prepares the files of broker and store, and starts nothing.

    Args:
        folder: the data folder.
        settings: the effective settings.
        credentials: of the fabric's tenant.
        own: makes the command lines of our own processes; tests give others.

    Raises:
        PortTaken: an asked port has a listener.
        SetupError: Java, Kafka's jars or rclone are missing.
        ConfigError: files of broker or store are damaged.
    """

    def __init__(
        self, folder: FabricFolder, settings: FabricSettings, credentials: Credentials, *, own: OwnCommand = own_command
    ) -> None:
        self.folder, self.settings, self._own = folder, settings, own
        asked = settings.port
        if asked is not None:
            choose_port(asked=asked, last=None, wanted_for="the cloud API")
        self.broker = None if settings.bootstrap_servers else Broker(folder.path / "kafka", port=settings.kafka_port)
        self.store = None if settings.s3_endpoint else EmbeddedStore(folder.path / "store", port=settings.s3_port)
        self._first_commands: dict[str, list[str]] = {}
        taken: list[int] = [] if asked is None else [asked]
        if self.broker is not None:
            self._first_commands[KAFKA] = self.broker.prepare()
            taken.append(self.broker.port)
        if self.store is not None:
            self._first_commands[OBJECTSTORE] = self.store.prepare()
            if self.store.port in taken:  # chosen, but nobody listens there yet
                self.store = EmbeddedStore(folder.path / "store", port=free_port(taken))
                self._first_commands[OBJECTSTORE] = self.store.prepare()
            taken.append(self.store.port)
        port = asked or choose_port(asked=None, last=_last_api_port(folder), wanted_for="the cloud API", avoid=taken)
        self.endpoints = Endpoints(
            api=f"http://{HOST}:{port}",
            kafka=settings.bootstrap_servers or (self.broker.bootstrap_servers if self.broker else ""),
            s3=settings.s3_endpoint or (self.store.endpoint if self.store else ""),
        )
        self._environment = child_environment(self._decided(port, credentials))

    def _decided(self, port: int, credentials: Credentials) -> dict[str, Any]:
        settings = self.settings
        return {
            "data_dir": self.folder.path,
            "port": port,
            "bootstrap_servers": self.endpoints.kafka,
            "s3_endpoint": settings.s3_endpoint,
            "s3_port": self.store.port if self.store is not None else None,
            "driver": settings.driver,
            "allow_weaker_isolation": settings.allow_weaker_isolation,
            "region": credentials.region,
            "appid": credentials.appid,
            "uin": credentials.uin,
            "log_level": settings.log_level,
        }

    def preparation(self) -> Preparation:
        """What makes the cluster fit for the fabric. A given cluster must answer soon, and is in use already: no warm-up."""
        given = self.broker is None
        return Preparation(
            self.folder.path,
            self._environment,
            self.folder.log_file("prepare"),
            cluster_id=self.broker.cluster_id if self.broker is not None else "",
            wait_s=5.0 if given else 120.0,
            warm_up=not given,
        )

    def specs(self) -> list[ChildSpec]:
        """All processes, the slowest to start first."""
        specs = []
        if self.broker is not None:
            specs.append(self._vendor(KAFKA, self._restart_broker, self._broker_listens, 4))
        if self.store is not None:
            specs.append(self._vendor(OBJECTSTORE, self._restart_store, self._store_listens, 3))
        specs.append(self._ours("gateway", GATEWAY, 0, probe=self._gateway_answers))
        specs.append(self._ours("streams", STREAMS, 1))
        specs.append(self._ours("agent", AGENT, 2))
        return specs

    def _ours(self, kind: str, slot: str, order: int, *, probe: Any = None) -> ChildSpec:
        return ChildSpec(
            slot,
            command=lambda: self._own(kind, self.folder, slot),
            log=self.folder.log_file(slot),
            environ=lambda: self._environment,
            probe=probe,
            ready_timeout_s=120.0,
            stop_order=order,
            stop_timeout_s=_STOP_S[slot],
        )

    def _vendor(self, name: str, again: Callable[[], list[str]], probe: Any, order: int) -> ChildSpec:
        def command() -> list[str]:
            return self._first_commands.pop(name, None) or again()

        environ = dict[str, str] if name == KAFKA else self._store_environment
        return ChildSpec(
            name,
            command=command,
            log=self.folder.log_file(name),
            environ=environ,
            probe=probe,
            stop_order=order,
            stop_timeout_s=_STOP_S[name],
        )

    def _restart_broker(self) -> list[str]:
        assert self.broker is not None
        return Broker(self.broker.data_dir, self.broker.installation, port=self.broker.port).prepare()

    def _restart_store(self) -> list[str]:
        assert self.store is not None
        return EmbeddedStore(self.store.data_dir, port=self.store.port).prepare()

    def _store_environment(self) -> dict[str, str]:
        return self.store.environment if self.store is not None else {}

    async def _broker_listens(self) -> bool:
        # That it is ours, and answers, is seen by the preparation.
        return self.broker is not None and accepts(self.broker.port)

    async def _store_listens(self) -> bool:
        # That it knows our key is seen by the gateway, which has boto3 loaded anyway (0.3 s).
        return self.store is not None and accepts(self.store.port)

    async def _gateway_answers(self) -> bool:
        """It serves; whether the whole fabric is ready is another question, for which it needs the others."""
        port = urlsplit(self.endpoints.api).port
        return port is not None and accepts(port)

    async def is_ready(self) -> tuple[bool, tuple[str, ...]]:
        """Whether the gateway says that all is ready, else what it waits for."""
        said = await asyncio.to_thread(ask, self.endpoints.api, timeout_s=_PROBE_S)
        waits = tuple(name for name, is_well in said.parts.items() if not is_well)
        return said.is_ready, waits or (() if said.is_ready else ("the gateway",))


def _last_api_port(folder: FabricFolder) -> int | None:
    state = read_state(folder)
    with suppress(ValueError):
        return urlsplit((state and state.endpoints.get("api")) or "").port
    return None


async def check_store(stack: Stack) -> None:
    """Make sure that a given object store answers and knows our keys. Raises StoreUnavailable or ConfigError."""
    if stack.store is not None:
        return
    from infra.objectstore.store import ObjectStore
    from infra.settings import store_address

    address = store_address(stack.settings)
    store = ObjectStore(address.endpoint, address.keys.access_key, address.keys.secret_key, region=address.region)
    try:
        await store.ensure_bucket(address.bucket)
    finally:
        await store.close()
