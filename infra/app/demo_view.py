"""How the demo shows itself: a live table on a terminal, a line a second elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from infra.app.console import say
from infra.clock import mono_s

if TYPE_CHECKING:
    from rich.table import Table

    from infra.app.demo import Progress

_LINE_S = 1.0


class View(Protocol):
    """Shows progress; called a few times a second."""

    def show(self, progress: Progress) -> None:
        """Show it now."""
        ...


class _Quiet:
    def show(self, progress: Progress) -> None:
        """Nothing."""


class _Lines:
    def __init__(self) -> None:
        self._next_mono_s = 0.0

    def show(self, progress: Progress) -> None:
        """A line, at most each second."""
        if mono_s() >= self._next_mono_s:
            self._next_mono_s = mono_s() + _LINE_S
            say(headline(progress))
            sys.stdout.flush()


@contextmanager
def open_view(*, quiet: bool) -> Iterator[View]:
    """The view that fits stdout."""
    if quiet:
        yield _Quiet()
    elif sys.stdout.isatty():
        from rich.live import Live

        with Live(refresh_per_second=8) as live:

            class Tables:
                def show(self, progress: Progress) -> None:
                    """The table."""
                    live.update(table(progress))

            yield Tables()
    else:
        yield _Lines()


def headline(progress: Progress) -> str:
    """One line of figures."""
    tally = progress.tally
    return (
        f"produced {progress.produced:5}   priced {tally.priced:5}   tries again {progress.retries:4}"
        f"   dead letters {progress.dead:3}   lag {max(0, progress.lag):5}   out of order {tally.out_of_order}"
        f"   p50 {tally.latency_ms(0.5):6.1f} ms   p99 {tally.latency_ms(0.99):7.1f} ms"
    )


def table(progress: Progress) -> Table:
    """Customers with their counts."""
    from rich.table import Table

    shown = Table(title=headline(progress), title_justify="left", title_style="bold")
    for name in ("customer (key)", "priced", "newest order", "total", "order"):
        shown.add_column(name, justify="left" if name.startswith(("customer", "order")) else "right")
    for name, row in sorted(progress.tally.customers.items()):
        kept = "kept" if row.out_of_order == 0 else f"broken × {row.out_of_order}"
        shown.add_row(name, str(row.priced), f"#{row.last}", f"{row.total:,.2f}", kept)
    return shown
