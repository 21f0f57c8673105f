"""The one table of metric names, and a typed way to them over prometheus_client. docs/metrics.md shows the table.

Names are `penstock_<package>_<what>_<unit>`. Labels take values from small sets only: a tenant's functions and keys are not
among them (with a million functions no scrape would end); `penstock top` and the telemetry topics have the view by function.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram


class MetricKind(StrEnum):
    """What Prometheus calls the type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `buckets` are a histogram's upper bounds."""

    name: str
    kind: MetricKind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

API_CALLS: Final = Metric(
    "penstock_ingest_api_calls_total", _C, ("action", "code"), "Cloud API calls; code is empty when answered well"
)
API_SECONDS: Final = Metric("penstock_ingest_api_seconds", _H, ("action",), "Time to answer a cloud API call", _SECONDS)
LANE_RECORDS: Final = Metric(
    "penstock_ingest_records_total", _C, ("outcome",), "Records that left their lane: done, retried, dead"
)
LANE_IN_FLIGHT: Final = Metric("penstock_ingest_in_flight_records", _G, (), "Records now in an invocation")
LANE_QUEUED: Final = Metric("penstock_ingest_queued_records", _G, (), "Records that wait in lanes")
EVENTS: Final = Metric(
    "penstock_ingest_events_total",
    _C,
    ("outcome",),
    "Asynchronous events: finished, failed, aborted, later (tried again)",
)
EVENTS_HELD: Final = Metric(
    "penstock_ingest_held_events", _G, ("state",), "Asynchronous events in hand: running, waiting"
)
INVOCATIONS: Final = Metric(
    "penstock_router_invocations_total", _C, ("status",), "Invocations that ended, by run status"
)
INVOCATION_SECONDS: Final = Metric("penstock_router_handler_seconds", _H, (), "Time in the handler", _SECONDS)
WAIT_SECONDS: Final = Metric(
    "penstock_router_wait_seconds", _H, (), "Time from dispatch to the handler's start", _SECONDS
)
COLD_STARTS: Final = Metric(
    "penstock_router_starts_total", _C, ("level",), "Invocations by the start that they met, L0 (warm) to L5"
)
IN_FLIGHT: Final = Metric(
    "penstock_router_in_flight_invocations", _G, (), "Invocations sent to agents and not answered"
)
AGENTS: Final = Metric("penstock_router_connected_agents", _G, (), "Host agents with an open connection")

METRICS: Final[tuple[Metric, ...]] = (
    API_CALLS,
    API_SECONDS,
    LANE_RECORDS,
    LANE_IN_FLIGHT,
    LANE_QUEUED,
    EVENTS,
    EVENTS_HELD,
    INVOCATIONS,
    INVOCATION_SECONDS,
    WAIT_SECONDS,
    COLD_STARTS,
    IN_FLIGHT,
    AGENTS,
)


class MetricRegistry:
    """The metrics of one process; each is made when first asked for. Only rows of the table can be had."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
        from prometheus_client.metrics import disable_created_metrics

        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._made: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, metric: Metric) -> Counter:
        """The counter of this row; with labels, call `.labels(…)` on it once and keep the result."""
        from prometheus_client import Counter

        _check(metric, MetricKind.COUNTER)
        made = self._made.get(metric.name)
        if made is None:
            made = self._made[metric.name] = Counter(metric.name, metric.help, metric.labels, registry=self._registry)
        assert isinstance(made, Counter)
        return made

    def gauge(self, metric: Metric) -> Gauge:
        """The gauge of this row."""
        from prometheus_client import Gauge

        _check(metric, MetricKind.GAUGE)
        made = self._made.get(metric.name)
        if made is None:
            made = self._made[metric.name] = Gauge(metric.name, metric.help, metric.labels, registry=self._registry)
        assert isinstance(made, Gauge)
        return made

    def histogram(self, metric: Metric) -> Histogram:
        """The histogram of this row."""
        from prometheus_client import Histogram

        _check(metric, MetricKind.HISTOGRAM)
        made = self._made.get(metric.name)
        if made is None:
            made = Histogram(metric.name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets)
            self._made[metric.name] = made
        assert isinstance(made, Histogram)
        return made

    def render(self) -> tuple[bytes, str]:
        """Body and Content-Type of an answer to a Prometheus scrape."""
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4


def _check(metric: Metric, kind: MetricKind) -> None:
    if metric.kind is not kind or metric not in METRICS:
        raise TypeError(f"{metric.name} is no {kind} of the table infra.metrics.METRICS")
