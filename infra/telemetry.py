"""Logs and metrics of a process: JSON lines on stderr, without secrets; metric names from one table (`infra.metrics`).

    configure("gateway-1")                       # once, in a process's entry point
    log = get_logger("ingest.lanes")             # at the top of a module
    log.info("partition assigned", topic=topic, partition=partition)

A line: `{"at": "2026-01-31T12:00:00.123Z", "level": "info", "process": "gateway-1", "logger": "ingest.lanes", "event": "…", …}`.
Libraries that use `logging` go the same way, from warnings on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import structlog
from structlog.typing import FilteringBoundLogger

from schemas.errors import ConfigError

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
MASK: Final = "***"
_SECRET_NAME: Final = re.compile(
    r"secret_?key|secret$|token|authorization|passw|credential|private_?key|signature", re.I
)
_SECRET_TEXT: Final = re.compile(r"(Signature=|TC3-HMAC-SHA256 Credential=|Bearer )[^\s,;\"']+")
_DEPTH: Final = 6


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger that says `name` in each line; usable before `configure`, which it then follows."""
    return cast(FilteringBoundLogger, structlog.get_logger(_logger=name))


def configure(process: str, *, level: str | None = None) -> None:
    """Send all logs of this process to stderr, one JSON object a line.

    Args:
        process: e.g. `gateway-1`; stands in every line.
        level: DEBUG, INFO, WARNING or ERROR; by default what `PENSTOCK_LOG_LEVEL` says, else INFO.

    Raises:
        ConfigError: no such level.
    """
    name = (level or os.environ.get("PENSTOCK_LOG_LEVEL") or "INFO").upper()
    if name not in LEVELS:
        raise ConfigError(f"log level {name!r} is none of {', '.join(LEVELS)}: set PENSTOCK_LOG_LEVEL to one of them")
    number = logging.getLevelNamesMapping()[name]

    def stamp(_logger: Any, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"at": now, "level": method, "process": process, "logger": event.pop("_logger", "")}
        return {**head, "event": event.pop("event", ""), **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            stamp,
            structlog.processors.format_exc_info,
            mask_secrets,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Bridge()]
    root.setLevel(max(number, logging.WARNING))


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: values of secret names (at any depth), and signatures inside texts, become `***`."""
    return {name: MASK if _is_secret(name) else _masked(value, _DEPTH) for name, value in event.items()}


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and _SECRET_NAME.search(name) is not None


def _masked(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _SECRET_TEXT.sub(rf"\1{MASK}", value)
    if depth == 0:
        return value if isinstance(value, int | float | None) else "…"
    if isinstance(value, Mapping):
        return {k: MASK if _is_secret(k) else _masked(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(v, depth - 1) for v in value]
    return value


def _to_json(event: Any, **_more: Any) -> str:
    return json.dumps(event, default=_plain, ensure_ascii=False, separators=(", ", ": "))


def _plain(value: Any) -> str:
    # Text of any other object goes through the mask too: an exception or a dataclass may quote a header.
    return str(_masked(repr(value) if isinstance(value, bytes) else str(value), 1))


class _Bridge(logging.Handler):
    """Hands lines of `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - logging must never end its caller
            self.handleError(record)
