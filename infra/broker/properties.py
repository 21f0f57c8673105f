"""The files that one KRaft broker reads, as text. Pure: nothing is written here."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

from schemas.errors import ConfigError

NODE_ID = 1

# Kafka's defaults are for clusters of machines; these are for one process that has to be small, quick to start, quick
# to notice a dead client, and never to forget a paused trigger's offsets.
_SERVER: dict[str, str] = {
    "process.roles": "broker,controller",
    "node.id": str(NODE_ID),
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # One replica of everything.
    "num.partitions": "1",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # A misspelt topic is an error, not a new topic.
    "auto.create.topics.enable": "false",
    # Groups: no waiting for more members; sessions as short as a static member may ask for; in the consumer protocol
    # (KIP-848) the broker sets them, and its defaults leave a dead member's partitions alone for 45 s.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.session.timeout.ms": "10000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "1000",
    # A trigger may stay paused, and a laptop shut, for longer than Kafka's week: ten years, in minutes.
    "offsets.retention.minutes": "5256000",
    # Small: threads, buffers, files.
    "num.network.threads": "2",
    "num.io.threads": "2",
    "num.replica.fetchers": "1",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": "8388608",
    "log.cleaner.backoff.ms": "2000",
    "log.segment.bytes": "16777216",
    # The controller takes a broker back only when it knows that its former life ended: at once after an orderly
    # shutdown, else when the former session ran out. With Kafka's 9 s every restart after a crash took 10.7 s.
    "controlled.shutdown.enable": "true",
    "broker.session.timeout.ms": "1400",
    "broker.heartbeat.interval.ms": "250",
}

# Warnings and errors go to stdout, where the supervisor picks them up; but for one that comes at every start.
LOG4J2 = """\
status = error
name = penstock
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_OUT
appender.console.filter.usual.type = RegexFilter
appender.console.filter.usual.regex = .*Performing controller activation.*
appender.console.filter.usual.onMatch = DENY
appender.console.filter.usual.onMismatch = NEUTRAL
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


def escape(value: str) -> str:
    """A value for a Java properties file: backslashes doubled, other characters than ASCII as UTF-16 escapes."""
    units = value.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join("\\\\" if c == 0x5C else chr(c) if 0x20 <= c < 0x7F else f"\\u{c:04x}" for c in codes)


def render_server(*, log_dir: Path, port: int, controller_port: int) -> str:
    """server.properties of a broker that listens on loopback only.

    Raises:
        ConfigError: the folder's name has a comma, which separates folders in Kafka's `log.dirs`.
    """
    if "," in str(log_dir):
        raise ConfigError(f"the data folder {log_dir} has a comma in its name, which Kafka can't have: choose another")
    lines = dict(_SERVER)
    lines["controller.quorum.voters"] = f"{NODE_ID}@127.0.0.1:{controller_port}"
    lines["listeners"] = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}"
    lines["advertised.listeners"] = f"PLAINTEXT://127.0.0.1:{port}"
    lines["log.dirs"] = str(log_dir)
    return "".join(f"{key}={escape(value)}\n" for key, value in lines.items())


def new_id() -> str:
    """A new cluster or directory id: 16 random bytes in url-safe base64, 22 characters, not starting with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not text.startswith("-"):
            return text


def render_meta(*, cluster_id: str, directory_id: str) -> str:
    """meta.properties, what StorageTool writes when it formats a log folder (version 1)."""
    return f"version=1\nnode.id={NODE_ID}\ncluster.id={cluster_id}\ndirectory.id={directory_id}\n"


def parse_meta(text: str) -> dict[str, str]:
    """The keys of a meta.properties. Kafka writes it again itself, with comments and in another order."""
    pairs = (line.partition("=") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}
