"""Events that may run now, function by function: a bounded number of each at once, and in turns, so that none starves another. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from schemas.events import AsyncEvent
from schemas.ids import FunctionKey

AT_ONCE: Final = 2_000
AT_ONCE_OF_FUNCTION: Final = 64
WAITING_OF_FUNCTION: Final = 64


@dataclass(slots=True, eq=False)
class Item:
    """One event in hand. `finished` is told once, when it need not be read again; `dropped`: its partition is another's now."""

    event: AsyncEvent
    finished: Callable[[], None]
    started: bool = False
    dropped: bool = False


@dataclass(slots=True)
class _Of:
    waiting: deque[Item]
    running: int = 0


class Queues:
    """A queue for each function that has events in hand.

    Args:
        at_once: runs in all.
        of_function: runs of one function.
        waiting: events of one function that wait here; beyond that it is crowded.
    """

    def __init__(
        self,
        *,
        at_once: int = AT_ONCE,
        of_function: int = AT_ONCE_OF_FUNCTION,
        waiting: int = WAITING_OF_FUNCTION,
    ) -> None:
        self._at_once, self._of_function, self._limit = at_once, of_function, waiting
        self._functions: dict[FunctionKey, _Of] = {}
        self._ready: OrderedDict[FunctionKey, None] = OrderedDict()
        """Functions of which one more could start, in their turn."""
        self.running = 0

    @property
    def waiting(self) -> int:
        """Events that wait for their turn."""
        return sum(len(of.waiting) for of in self._functions.values())

    def is_crowded(self, key: FunctionKey) -> bool:
        """True when no more events of the function are wanted here now."""
        of = self._functions.get(key)
        return of is not None and len(of.waiting) >= self._limit

    def put(self, item: Item) -> None:
        """Wait for its turn; not for a function that is crowded."""
        key = item.event.key
        of = self._functions.get(key)
        if of is None:
            of = self._functions[key] = _Of(deque())
        of.waiting.append(item)
        self._look(key, of)

    def take(self) -> list[Item]:
        """What starts now; call `done` for each when it is over. Dropped items are forgotten."""
        taken: list[Item] = []
        while self._ready and self.running < self._at_once:
            key, _ = self._ready.popitem(last=False)
            of = self._functions[key]
            item = of.waiting.popleft()
            if not item.dropped:
                item.started = True
                of.running += 1
                self.running += 1
                taken.append(item)
            self._look(key, of)
        return taken

    def done(self, item: Item) -> None:
        """A started item is over."""
        key = item.event.key
        of = self._functions[key]
        of.running -= 1
        self.running -= 1
        self._look(key, of)

    def _look(self, key: FunctionKey, of: _Of) -> None:
        """The function's state has changed: is it its turn some time, is there anything left of it?"""
        if of.waiting and of.running < self._of_function:
            self._ready.setdefault(key)
        elif not of.waiting and not of.running:
            del self._functions[key]
