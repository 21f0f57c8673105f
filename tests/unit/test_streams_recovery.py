"""A recovery that waits for records which Faust has dropped (streams.embedding.RecoveryWatch); Faust's parts are stand-ins."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from schemas.errors import BrokerUnavailable
from streams.embedding import STANDS_FOR_GOOD, RecoveryWatch

ONE, TWO = TP("changelog", 1), TP("changelog", 2)


class App:
    """As much of a Faust app as is looked at. `offsets`: last record read back; `ends`: last record there is."""

    def __init__(self, offsets: dict[TP, int], ends: dict[TP, int]) -> None:
        self.sought: list[dict[TP, int]] = []
        self.consumer = SimpleNamespace(flow_active=True, seek_wait=self._seek)
        at = Counter(offsets)
        self.recovery = SimpleNamespace(
            in_recovery=True,
            active_offsets=at,
            active_remaining=lambda: Counter({tp: end - at[tp] for tp, end in ends.items()}),
        )
        self.tables = SimpleNamespace(recovery=self.recovery)

    async def _seek(self, places: dict[TP, int]) -> None:
        self.sought.append(places)


async def look(app: App, times: int) -> None:
    watch = RecoveryWatch(app)
    for _ in range(times):
        await watch.look()


async def test_changelogs_that_stand_still_are_read_again_from_where_they_stand() -> None:
    app = App({ONE: 7, TWO: 3}, {ONE: 20, TWO: 3})
    await look(app, 2)
    assert app.sought == [{ONE: 7}]


async def test_a_changelog_of_which_nothing_was_read_is_read_from_its_start() -> None:
    app = App({ONE: -1}, {ONE: 20})
    await look(app, 2)
    assert app.sought == [{ONE: 0}]


async def test_a_recovery_that_moves_is_left_alone() -> None:
    app = App({ONE: 0}, {ONE: 20})
    watch = RecoveryWatch(app)
    for offset in range(15):
        app.recovery.active_offsets[ONE] = offset
        await watch.look()
    assert app.sought == []


def _ended(app: App) -> None:
    app.recovery.in_recovery = False


def _held(app: App) -> None:
    app.consumer.flow_active = False


@pytest.mark.parametrize("state", [_ended, _held])
async def test_nothing_is_sought_while_no_records_are_waited_for(state: Any) -> None:
    app = App({ONE: 7}, {ONE: 20})
    state(app)
    await look(app, 5)
    assert app.sought == []


async def test_a_recovery_that_nothing_helps_ends_the_worker() -> None:
    app = App({ONE: 7}, {ONE: 20})
    with pytest.raises(BrokerUnavailable, match="1 partitions could not be read back"):
        await look(app, STANDS_FOR_GOOD + 2)
    assert len(app.sought) == STANDS_FOR_GOOD
