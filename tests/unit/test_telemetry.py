"""Log lines are JSON without secrets; metrics come from the table only."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from infra.metrics import API_CALLS, API_SECONDS, METRICS, Metric, MetricKind, MetricRegistry
from infra.telemetry import configure, get_logger
from schemas.errors import ConfigError


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_json_object_that_names_process_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure("gateway-1", level="info")
    log = get_logger("ingest.lanes")
    log.debug("not shown")
    log.info("partition\nassigned", topic="orders", partition=3)
    (line,) = lines(capsys)
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "process": "gateway-1",
        "logger": "ingest.lanes",
        "event": "partition\nassigned",
        "topic": "orders",
        "partition": 3,
    }


def test_no_secret_reaches_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("gateway-1")
    log = get_logger("x")
    header = "TC3-HMAC-SHA256 Credential=AKIDhush/2026-01-01/scf/tc3_request, SignedHeaders=host, Signature=hush"
    log.info("call", secret_key="hush", headers={"Authorization": header, "X-TC-Token": "hush", "Host": "h"})
    log.info("call", sent=[header], error=ValueError(header), deep={"a": [{"password": "hush"}]})
    try:
        raise ValueError(f"refused {header}")
    except ValueError:
        log.exception("failed")
    logging.getLogger("vendor").warning("sent %s", header)
    found = lines(capsys)
    assert len(found) == 4
    assert "hush" not in json.dumps(found)
    assert found[0]["headers"]["Host"] == "h"


def test_a_library_line_goes_the_same_way_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure("agent-1")
    logging.getLogger("vendor.lib").info("chatter")
    logging.getLogger("vendor.lib").warning("odd %d", 7)
    (line,) = lines(capsys)
    assert (line["logger"], line["level"], line["event"]) == ("vendor.lib", "warning", "odd 7")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="PENSTOCK_LOG_LEVEL"):
        configure("x", level="chatty")


def test_a_metric_is_counted_and_rendered() -> None:
    registry = MetricRegistry()
    registry.counter(API_CALLS).labels("Invoke", "").inc()
    assert registry.counter(API_CALLS) is registry.counter(API_CALLS)
    registry.histogram(API_SECONDS).labels("Invoke").observe(0.003)
    body, kind = registry.render()
    assert b'penstock_ingest_api_calls_total{action="Invoke",code=""} 1.0' in body
    assert kind.startswith("text/plain")


def test_only_rows_of_the_table_can_be_had() -> None:
    registry = MetricRegistry()
    with pytest.raises(TypeError):
        registry.gauge(API_CALLS)
    with pytest.raises(TypeError):
        registry.counter(Metric("penstock_stray_total", MetricKind.COUNTER, (), ""))


def test_the_table_follows_its_own_rules_and_is_the_page_in_the_docs() -> None:
    packages = {"ingest", "streams", "router", "sandbox", "proxy", "infra"}
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for metric in METRICS:
        assert metric.name.split("_")[1] in packages, metric.name
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER), metric.name
        assert (metric.buckets != ()) == (metric.kind is MetricKind.HISTOGRAM), metric.name
        labels = ", ".join(metric.labels) or "–"
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |" in page
    assert page.count("| `penstock_") == len(METRICS)
