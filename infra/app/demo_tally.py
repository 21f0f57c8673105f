"""What the demo shows, from nothing but the function's log lines: a pure fold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(slots=True)
class CustomerRow:
    """One key: orders priced, the newest order's number, money, and how often an order came before an earlier one."""

    priced: int = 0
    last: int = -1
    total: float = 0.0
    out_of_order: int = 0


@dataclass(slots=True)
class Tally:
    """Everything seen so far. `starts` counts invocations, `seen` the orders priced at least once."""

    customers: dict[str, CustomerRow] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    starts: int = 0
    again: int = 0
    seen: set[tuple[str, int]] = field(default_factory=set)

    def take(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Fold in log lines (`stream`, `line`), in arrival order."""
        for entry in lines:
            text = str(entry["line"])
            if entry["stream"] == "platform" and text.startswith("START "):
                self.starts += 1
            elif entry["stream"] == "stdout" and text.startswith("{"):
                self._priced(json.loads(text))

    def _priced(self, order: Mapping[str, Any]) -> None:
        mark = (str(order["customer"]), int(order["number"]))
        if mark in self.seen:
            self.again += 1
            return
        self.seen.add(mark)
        row = self.customers.setdefault(mark[0], CustomerRow())
        row.out_of_order += mark[1] < row.last
        row.last = max(row.last, mark[1])
        row.priced += 1
        row.total += float(order["total"])
        self.latencies_ms.append(float(order["latency_ms"]))

    @property
    def priced(self) -> int:
        """Distinct orders priced."""
        return len(self.seen)

    @property
    def out_of_order(self) -> int:
        """Orders that came before an earlier one of the same customer; 0 is the promise."""
        return sum(row.out_of_order for row in self.customers.values())

    def latency_ms(self, share: float) -> float:
        """A quantile of produce-to-handler latency; 0 when nothing was seen."""
        if not self.latencies_ms:
            return 0.0
        if share == 0.5:
            return median(self.latencies_ms)
        return sorted(self.latencies_ms)[min(len(self.latencies_ms) - 1, int(len(self.latencies_ms) * share))]
