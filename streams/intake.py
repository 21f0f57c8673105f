"""Records from Faust to the lanes, each once and none left out, and back to Faust when all that follows from them is safe.

Faust drops records around a rebalance and does not always read them again, and lets later ones be committed over them. So every partition
has a `Delivery`: a record that is not the next one makes it read again from where it should be, and so does standing still before the
partition's end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol

from infra import clock, telemetry
from streams.delivery import Delivery, Verdict
from streams.lanes import KeyLanes
from streams.processors import Input

_log = telemetry.get_logger("streams.intake")
REWIND_S: Final = 1.0
REWINDS: Final = 3


class Place(NamedTuple):
    """A partition of a source topic."""

    topic: str
    partition: int


class Reader(Protocol):
    """What reads the source topics."""

    def end(self, place: Place) -> int | None:
        """Offset that the next record of a partition will get, as far as known; None also while partitions change hands."""
        ...

    async def rewind(self, place: Place, offset: int) -> None:
        """Deliver again from `offset`. Does nothing when the partition is no longer ours."""
        ...

    def accept_hole(self, place: Place, offset: int) -> None:
        """Take it that there are no records before `offset` which are not let go."""
        ...


@dataclass(slots=True)
class _Source:
    delivery: Delivery[Callable[[], object]]
    rewound_mono_s: float = -REWIND_S
    rewinds: int = 0
    stood_at: int = -1


class Intake:
    """All partitions that this worker reads."""

    def __init__(self, reader: Reader, lanes: KeyLanes) -> None:
        self._reader, self._lanes = reader, lanes
        self._sources: dict[Place, _Source] = {}

    def begin(self, starts: Mapping[Place, int]) -> None:
        """Records of these partitions are read from these offsets on; called before any of them comes."""
        for place, offset in starts.items():
            self._sources[place] = _Source(Delivery(offset))

    def clear(self) -> None:
        """Partitions change hands: what comes before the next `begin` is not taken."""
        self._sources.clear()

    async def take(
        self,
        place: Place,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        *,
        let_go: Callable[[], object],
        handle: Callable[[Input], Awaitable[None]],
    ) -> None:
        """One record was delivered. `handle` gets it in its key's lane; `let_go` is called when it and all before it are done."""
        source = self._sources.get(place)
        if source is None:
            return
        verdict = source.delivery.take(offset, let_go)
        if verdict is Verdict.MISSING and await self._read_again(place, source, offset):
            verdict = source.delivery.take(offset, let_go)
        if verdict is Verdict.TAKE:
            source.rewinds = 0
            done = partial(_finish, source.delivery, offset)
            await self._lanes.put(
                key or b"", partial(handle, Input(place.topic, place.partition, offset, key, value, done))
            )
        elif verdict is Verdict.LET_GO:
            let_go()

    async def watch(self) -> None:
        """Call it now and then: a partition that stands still before its end is read again."""
        for place, source in list(self._sources.items()):
            delivery, end = source.delivery, self._reader.end(place)
            stands = end is not None and end > delivery.next_offset and delivery.is_idle
            if stands and source.stood_at == delivery.next_offset and source.rewinds < REWINDS:
                await self._rewind(place, source)
            source.stood_at = delivery.next_offset if stands else -1

    async def _read_again(self, place: Place, source: _Source, offset: int) -> bool:
        """True when the missing records are found not to exist: transactions leave such holes."""
        if clock.mono_s() - source.rewound_mono_s < REWIND_S:
            return False  # delivered before the last rewind
        if source.rewinds >= REWINDS:
            _log.error(
                "records are missing for good", **place._asdict(), first=source.delivery.next_offset, next=offset
            )
            source.delivery.skip_to(offset)
            self._reader.accept_hole(place, offset)
            return True
        await self._rewind(place, source)
        return False

    async def _rewind(self, place: Place, source: _Source) -> None:
        _log.warning("records were left out; reading again", **place._asdict(), offset=source.delivery.next_offset)
        source.rewound_mono_s = clock.mono_s()
        source.rewinds += 1
        await self._reader.rewind(place, source.delivery.next_offset)


def _finish(delivery: Delivery[Callable[[], object]], offset: int) -> None:
    for let_go in delivery.finish(offset):
        let_go()
