"""The embedded broker: one real Apache Kafka (KRaft, a single process) over one data folder.

`Broker` writes the files and says the command line; whoever supervises runs it in the foreground, and starts it again
after a `prepare()` when it dies. `running_broker` does both for tests and set-up. In the data folder:

    log/                    Kafka's own; the cluster id lives in log/meta.properties and never changes
    server.properties       written before every start, as is log4j2.properties
    ports.json              the ports of the last start, used again when they are free
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from infra.broker import installation as installed
from infra.broker import properties
from infra.foreground import Foreground
from infra.loopback import HOST, accepts, choose_port
from schemas.errors import BrokerUnavailable, ConfigError, PortTaken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from infra.broker.installation import Installation

_METADATA_LOG = "__cluster_metadata-0"
_CHECKPOINT = "00000000000000000000-0000000000.checkpoint"
_READY_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 2.0
_STOP_TIMEOUT_S = 10.0


class Broker:
    """One broker's files, ports and command line. Starts nothing.

    Args:
        data_dir: Its folder, made if missing. One process at a time (Kafka holds a lock in it).
        installation: What set-up made; looked up by default (raises SetupError when there is none).
        port: The port for clients; without it the last used one, else a free one.
    """

    def __init__(self, data_dir: Path, installation: Installation | None = None, *, port: int | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.installation = installation or installed.load()
        self._asked_port = port
        self.port = 0
        self.cluster_id = ""

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` for clients, once prepared."""
        return f"{HOST}:{self.port}"

    def prepare(self, *, flags: tuple[str, ...] | None = None) -> list[str]:
        """Write all files and choose the ports: call it before every start, while the broker is not running.

        Args:
            flags: more JVM flags instead of the one that uses the start-up archive.

        Returns:
            The command line; it runs in the foreground, logs warnings to stdout and ends on SIGTERM.

        Raises:
            PortTaken: the asked port has a listener.
            ConfigError: the folder can't be a broker's.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        log_dir = self.data_dir / "log"
        self.cluster_id = self._format(log_dir)
        self.port, controller_port = self._choose_ports()
        server = self.data_dir / "server.properties"
        _write(server, properties.render_server(log_dir=log_dir, port=self.port, controller_port=controller_port))
        log4j2 = self.data_dir / "log4j2.properties"
        _write(log4j2, properties.LOG4J2)
        if flags is None:
            flags = (self.installation.archive_flag,) if self.installation.archive.exists() else ()
        temporary = self.data_dir / "tmp"  # what native libraries are unpacked to is left there by a JVM that is killed
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        flags = (*flags, f"-Dlog4j2.configurationFile={log4j2}", f"-Djava.io.tmpdir={temporary}")
        return self.installation.command("kafka.Kafka", str(server), flags=flags)

    def probe(self, timeout_s: float) -> None:
        """Make sure that our broker, and no other, answers. Blocks up to `timeout_s`: call it from a thread.

        Raises:
            BrokerUnavailable: nothing answers (yet).
            PortTaken: another cluster answers on our port.
        """
        from infra.kafka import probe

        if probe.cluster_id(self.bootstrap_servers, timeout_s=timeout_s) != self.cluster_id:
            raise PortTaken(self.port, wanted_for="the embedded broker; another Kafka answers there")

    async def is_ready(self) -> bool:
        """`probe` for a supervisor that asks again and again: False while nothing answers.

        Raises:
            PortTaken: another cluster answers on our port.
        """
        if not accepts(self.port):  # at once, and without a client's threads
            return False
        try:
            await asyncio.to_thread(self.probe, _PROBE_TIMEOUT_S)
        except BrokerUnavailable:
            return False
        return True

    def warm_up(self, timeout_s: float = 30.0) -> None:
        """Let one consumer group join and go, so that the first real one does not wait for it (see infra.kafka.probe).

        Blocks: call it from a thread. Raises BrokerUnavailable.
        """
        from infra.kafka import probe

        probe.warm_up(self.bootstrap_servers, timeout_s=timeout_s)

    def warm_up_transactions(self, timeout_s: float = 30.0) -> None:
        """The same for transactions; it takes a second, so do it when the fabric is up already.

        Blocks: call it from a thread. Raises BrokerUnavailable.
        """
        from infra.kafka import probe

        probe.warm_up_transactions(self.bootstrap_servers, timeout_s=timeout_s)

    def _format(self, log_dir: Path) -> str:
        """Format a new log folder; returns the cluster id. What StorageTool does in 2.6 s is two small files."""
        meta = log_dir / "meta.properties"
        if meta.exists():
            cluster_id = properties.parse_meta(meta.read_text()).get("cluster.id", "")
            if not cluster_id:
                raise ConfigError(f"{meta} names no cluster: restore it, or move {self.data_dir} away")
            return cluster_id
        if log_dir.exists() and any(entry.name != _METADATA_LOG for entry in log_dir.iterdir()):
            raise ConfigError(f"{log_dir} holds files but no meta.properties: restore it, or move {self.data_dir} away")
        (log_dir / _METADATA_LOG).mkdir(parents=True, exist_ok=True)
        # Without this file a new cluster has no features, so no consumer protocol (KIP-848).
        shutil.copyfile(self.installation.checkpoint, log_dir / _METADATA_LOG / _CHECKPOINT)
        cluster_id = properties.new_id()
        # Last, and whole: with it the folder counts as formatted.
        _write(meta, properties.render_meta(cluster_id=cluster_id, directory_id=properties.new_id()))
        return cluster_id

    def _choose_ports(self) -> tuple[int, int]:
        note = self.data_dir / "ports.json"
        last: dict[str, int] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(note.read_text())
            last = {"port": int(noted["port"]), "controller_port": int(noted["controller_port"])}
        port = choose_port(asked=self._asked_port, last=last.get("port"), wanted_for="the embedded broker")
        controller_port = choose_port(
            asked=None, last=last.get("controller_port"), wanted_for="the embedded broker's controller", avoid=(port,)
        )
        _write(note, json.dumps({"port": port, "controller_port": controller_port}))
        return port, controller_port


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class RunningBroker:
    """A broker and its process, as `running_broker` gives it."""

    def __init__(self, broker: Broker, process: Foreground) -> None:
        self.broker, self.process = broker, process

    @property
    def bootstrap_servers(self) -> str:
        return self.broker.bootstrap_servers

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()


def _start(broker: Broker, flags: tuple[str, ...] | None) -> RunningBroker:
    return RunningBroker(broker, Foreground(broker.prepare(flags=flags), broker.data_dir / "broker.log"))


def _await_ready(running: RunningBroker, *, warm: bool) -> None:
    broker = running.broker

    def is_ready(left_s: float) -> None:
        if not accepts(broker.port):
            raise BrokerUnavailable("not listening yet")
        broker.probe(min(left_s, _PROBE_TIMEOUT_S))

    running.process.wait_ready(is_ready, timeout_s=_READY_TIMEOUT_S, failure=BrokerUnavailable)
    if warm:
        broker.warm_up()


@contextmanager
def serving_broker(
    data_dir: Path,
    *,
    port: int | None = None,
    warm: bool = True,
    flags: tuple[str, ...] | None = None,
    installation: Installation | None = None,
    stop_timeout_s: float = _STOP_TIMEOUT_S,
) -> Iterator[RunningBroker]:
    """A broker that runs as long as the block, or as the calling thread: use it from the main thread.

    Raises:
        BrokerUnavailable: it did not come up; the message has the end of its log.
        PortTaken: the asked port has a listener.
    """
    broker = Broker(data_dir, installation, port=port)
    running = _start(broker, flags)
    try:
        _await_ready(running, warm=warm)
        yield running
    finally:
        running.process.stop(stop_timeout_s)


@asynccontextmanager
async def running_broker(
    data_dir: Path, *, port: int | None = None, warm: bool = True, installation: Installation | None = None
) -> AsyncIterator[RunningBroker]:
    """`serving_broker` for a running event loop, whose thread must be the main one; the waits don't block it."""
    broker = Broker(data_dir, installation, port=port)
    running = _start(broker, None)
    try:
        await asyncio.to_thread(_await_ready, running, warm=warm)
        yield running
    finally:
        await asyncio.to_thread(running.process.stop, _STOP_TIMEOUT_S)
