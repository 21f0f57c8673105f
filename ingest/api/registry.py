"""What is registered, as this gateway may show it: the table reader's view, with the effect of its own commands laid over it.

A command is acknowledged before its effect comes back by the registry topic. In between this gateway shows the state that the
command will lead to ("read your writes"). The overlay of a key goes away when the view has taken in that command or a later one, when
or some time after its outcome was heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from ingest.api.ports import View
from schemas.records import Outcome

SETTLED_S: Final = 10.0
"""An accepted command's overlay ends at the latest so long after its outcome: by then the view must show it."""
REFUSED_S: Final = 1.0
"""The same for an outcome with an error. It is not nothing: an update that failed in the end says so too, and its outcome may come
before its record; without the pause the state from before the update would show in between."""


class _State(Protocol):
    @property
    def applied(self) -> int: ...
    @property
    def command_id(self) -> str: ...


S = TypeVar("S", bound=_State)


@dataclass(slots=True)
class _Overlay(Generic[S]):
    command_id: str
    state: S | None
    ends: bool
    offset: int | None = None
    ends_mono_s: float | None = None

    def is_shown_by(self, record: S) -> bool:
        """True when the record comes from this command or a later one of its key."""
        return record.command_id == self.command_id or (self.offset is not None and record.applied >= self.offset)


class Registry(Generic[S]):
    """States by key, and by scope (the key without its last part), so that a listing costs what it lists."""

    def __init__(self, view: View[S], mono_s: Callable[[], float]) -> None:
        self._view = view
        self._mono_s = mono_s
        self._scopes: dict[str, dict[str, S]] = {}
        self._overlays: dict[str, _Overlay[S]] = {}
        self._by_command: dict[str, str] = {}
        self._watchers: dict[str, list[Callable[[S | None], None]]] = {}
        for key, record in view.items().items():
            self._index(key, record)
        view.subscribe(self._changed)

    def get(self, key: str) -> S | None:
        """The state to show, or None."""
        if self._overlays and (overlay := self._live(key)) is not None:
            return overlay.state
        return self._view.get(key)

    def within(self, scope: str) -> list[S]:
        """All states whose key is `scope/NAME`, in order of the names."""
        states: dict[str, S] = dict(self._scopes.get(scope, ()))
        for key in [k for k in self._overlays if _scope(k) == scope]:
            if (overlay := self._live(key)) is None:
                continue
            if overlay.state is None:
                states.pop(key, None)
            else:
                states[key] = overlay.state
        return [states[key] for key in sorted(states)]

    def scopes(self, under: str) -> list[str]:
        """All scopes that hold something and begin with `under`, in order. Costs a scan: for rare calls."""
        found = {scope for scope in self._scopes if scope.startswith(under)}
        found |= {
            _scope(key)
            for key, overlay in self._overlays.items()
            if overlay.state is not None and key.startswith(under)
        }
        return sorted(scope for scope in found if self.within(scope))

    def watch(self, key: str, seen: Callable[[S | None], None]) -> Callable[[], None]:
        """Have `seen` called with what the view shows of the key, now and at each change; returns what ends it."""
        watchers = self._watchers.setdefault(key, [])
        watchers.append(seen)
        seen(self._view.get(key))

        def end() -> None:
            watchers.remove(seen)
            if not watchers and self._watchers.get(key) is watchers:
                del self._watchers[key]

        return end

    def propose(self, key: str, command_id: str, state: S | None, *, ends: bool = False) -> None:
        """Show `state` (None: gone) for the key from now on; call before the command is sent. `ends`: the command deletes the key."""
        self._drop(key)
        self._overlays[key] = _Overlay(command_id, state, ends)
        self._by_command[command_id] = key

    def sent(self, key: str, command_id: str, offset: int) -> None:
        """The broker has the command, at `offset`."""
        overlay = self._overlays.get(key)
        if overlay is None or overlay.command_id != command_id:
            return
        overlay.offset = offset
        record = self._view.get(key)
        if record is not None and overlay.is_shown_by(record):
            self._drop(key)

    def withdraw(self, key: str, command_id: str) -> None:
        """The command was not sent: show what was before."""
        overlay = self._overlays.get(key)
        if overlay is not None and overlay.command_id == command_id:
            self._drop(key)

    def settled(self, outcome: Outcome) -> None:
        """An outcome came: the command's overlay has `SETTLED_S` left, or `REFUSED_S`."""
        key = self._by_command.get(outcome.command_id)
        if key is not None:
            self._overlays[key].ends_mono_s = self._mono_s() + (REFUSED_S if outcome.code else SETTLED_S)

    def _changed(self, key: str, record: S | None) -> None:
        for seen in self._watchers.get(key, ()):
            seen(record)
        overlay = self._overlays.get(key)
        if record is None:
            self._forget(key)
            # A tombstone ends the overlay of a delete; under that of a create it is the older delete, arriving late.
            if overlay is not None and overlay.ends:
                self._drop(key)
            return
        self._index(key, record)
        if overlay is not None and overlay.is_shown_by(record):
            self._drop(key)

    def _live(self, key: str) -> _Overlay[S] | None:
        overlay = self._overlays.get(key)
        if overlay is None:
            return None
        if overlay.ends_mono_s is not None and self._mono_s() > overlay.ends_mono_s:
            self._drop(key)
            return None
        return overlay

    def _drop(self, key: str) -> None:
        overlay = self._overlays.pop(key, None)
        if overlay is not None:
            del self._by_command[overlay.command_id]

    def _index(self, key: str, record: S) -> None:
        self._scopes.setdefault(_scope(key), {})[key] = record

    def _forget(self, key: str) -> None:
        scope = _scope(key)
        states = self._scopes.get(scope)
        if states is not None and states.pop(key, None) is not None and not states:
            del self._scopes[scope]


def _scope(key: str) -> str:
    return key.rpartition("/")[0]
