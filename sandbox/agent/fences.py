"""Who owns a source partition: before a newer epoch of it runs here, what is left of older ones is ended.

DESIGN.md section 8, "Ownership": an orphan (work of a gateway that lost the partition, or died) never runs beside its successor.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from infra.clock import mono_s
from sandbox.agent.calls import Call, FlowEntry, Ownership
from schemas.runstatus import RunStatus

REMEMBERED: Final = 100_000
_OVERTAKEN: Final = "a newer owner of the partition has taken over"


class Fences:
    """Newest epoch of every (trigger, partition) that this agent has met."""

    def __init__(self) -> None:
        self._owners: OrderedDict[tuple[str, int], Ownership] = OrderedDict()

    def declare(self, trigger: str, partition: int, epoch: int, now: float) -> FlowEntry:
        """A connection says that it acts for this epoch.

        What is left of older epochs is ended, and what is left of this one from a connection that broke (its gateway runs those records
        again); calls of this connection wait until they are gone.
        """
        key = (trigger, partition)
        owner = self._owners.get(key)
        if owner is None:
            owner = self._owners[key] = Ownership(epoch)
            self._forget_some()
        self._owners.move_to_end(key)
        if epoch > owner.epoch:
            owner.epoch = epoch
            overtaken, owner.held = owner.held, []
            for call in overtaken:
                self._refuse(call, now)
            self._end(owner, set(owner.calls), now)
        elif epoch == owner.epoch:
            self._end(owner, {call for call in owner.calls if call.link.gone}, now)
        return FlowEntry(owner, epoch)

    @staticmethod
    def _end(owner: Ownership, calls: set[Call], now: float) -> None:
        owner.older |= calls
        for call in calls:
            call.pool.end(call, RunStatus.CANCELLED, _OVERTAKEN, now)

    def admit(self, call: Call, now: float) -> bool:
        """True when the call may go to its pool now; else it is held, or was answered because its owner has been overtaken."""
        flow = call.flow
        if flow is None:
            return True
        owner = flow.ownership
        if flow.epoch < owner.epoch:
            self._refuse(call, now)
            return False
        if owner.older:
            owner.held.append(call)
            return False
        owner.calls.add(call)
        return True

    def left(self, call: Call) -> None:
        """A call was answered. When it was the last of the older epochs, what was held goes to its pools."""
        if call.flow is None:
            return
        owner = call.flow.ownership
        owner.calls.discard(call)
        if owner.older:
            owner.older.discard(call)
            if not owner.older and owner.held:  # not now: we are in the middle of some pool's doings
                asyncio.get_running_loop().call_soon(self._release, owner)

    def _release(self, owner: Ownership) -> None:
        held, owner.held = owner.held, []
        now = mono_s()
        for call in held:
            if self.admit(call, now):
                call.pool.submit(call, now)
        for pool in {call.pool for call in held}:
            pool.settle()

    def drop_held(self, calls: set[Call]) -> None:
        """These calls' connection is gone."""
        for flow in {call.flow for call in calls if call.flow is not None}:
            flow.ownership.held = [c for c in flow.ownership.held if c not in calls]

    def _refuse(self, call: Call, now: float) -> None:
        call.link.refuse(call, RunStatus.CANCELLED, _OVERTAKEN, now)

    def _forget_some(self) -> None:
        if len(self._owners) > REMEMBERED:
            for key, owner in self._owners.items():
                if not owner.calls and not owner.held:
                    del self._owners[key]
                    return
