"""How Penstock's Kafka clients are configured: one place for what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from schemas.errors import BrokerUnavailable

CALL_TIMEOUT_S = 10.0

# librdkafka's own codes; confluent-kafka publishes them under names with an underscore.
TIMED_OUT: int = KafkaError._TIMED_OUT  # noqa: SLF001
PARTITION_EOF: int = KafkaError._PARTITION_EOF  # noqa: SLF001
FATAL: int = KafkaError._FATAL  # noqa: SLF001
UNKNOWN_TOPIC: int = KafkaError._UNKNOWN_TOPIC  # noqa: SLF001


def _ignore(_error: KafkaError) -> None:
    return


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Kafka cluster. `options` are extra librdkafka settings (security), name and value."""

    bootstrap_servers: str
    options: tuple[tuple[str, str], ...] = ()

    def config(self, **settings: Any) -> dict[str, Any]:
        """librdkafka configuration; keyword `a_b` means setting `a.b`."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
            "retry.backoff.ms": 20,
            "retry.backoff.max.ms": 500,
            # librdkafka's complaints about a broker that is away stay off stderr: every call's own result says what matters.
            "log_level": 0,
            "error_cb": _ignore,
            **dict(self.options),
        }
        config |= {name.replace("_", "."): value for name, value in settings.items()}
        return config


def unavailable(what: str, exc: BaseException) -> BrokerUnavailable:
    """A vendor exception as ours; chain it with `from`."""
    return BrokerUnavailable(f"Kafka: {what}: {reason(exc)}")


def reason(exc: BaseException) -> str:
    """What a vendor exception says, short."""
    if isinstance(exc, KafkaException) and exc.args and isinstance(exc.args[0], KafkaError):
        error = exc.args[0]
        return f"{error.name()}: {error.str()}"
    return str(exc) or type(exc).__name__
