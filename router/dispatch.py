"""The data path's one door: count → resolve → place → dispatch, by local views and open connections.

`submit` is written for tens of thousands of calls a second: callbacks, no task or future per call.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import partial

from infra.clock import mono_s
from router.agents import WINDOW, AgentLink, AgentPool, Call, Done, failure
from router.aliases import Split
from router.counts import Counts, FunctionCount
from router.functions import Resolver
from router.placement import HostView, place
from router.waiting import WAIT_S, Waiter, WaitingRoom
from schemas.concurrency import LimitRecord
from schemas.frames import Flow, Result, Spec
from schemas.ids import FunctionKey
from schemas.runstatus import RunStatus

HOLD_S = 3.0
"""How long a call waits for an agent when none is connected (an agent's restart takes about a second)."""
HOLD_LIMIT = 1_000
WARM_S = 60.0


class RequestIds:
    """Random UUIDs (version 4) as 16 bytes; entropy is fetched for many at once, since a system call each was 15 % of a gateway's work."""

    def __init__(self, *, ahead: int = 256) -> None:
        self._ahead = ahead
        self._ready: list[bytes] = []

    def next(self) -> bytes:
        """A new one."""
        if not self._ready:
            raw = bytearray(os.urandom(16 * self._ahead))
            for at in range(0, len(raw), 16):
                raw[at + 6] = raw[at + 6] & 0x0F | 0x40
                raw[at + 8] = raw[at + 8] & 0x3F | 0x80
            self._ready = [bytes(raw[at : at + 16]) for at in range(0, len(raw), 16)]
        return self._ready.pop()


class Dispatcher:
    """Sends invocations to agents and brings their results back."""

    def __init__(self, resolver: Resolver, counts: Counts, agents: AgentPool) -> None:
        self._resolver, self._counts, self._agents = resolver, counts, agents
        self._request_ids = RequestIds()
        self._waiting = WaitingRoom(counts)
        self._held: deque[tuple[float, Call]] = deque()
        """Calls without a host, each with the monotonic second at which it is given up; oldest first."""

    def submit(
        self,
        function: FunctionKey,
        qualifier: str,
        event: bytes,
        *,
        flow: Flow | None,
        attempt: int,
        flags: int,
        done: Done,
        request_id: bytes | None = None,
        waits: bool = False,
    ) -> None:
        """Run one event; `done` is called exactly once, on the loop, possibly before this returns.

        Never raises: a refusal is a Result too (435 no such function, 438 not active, 432 at the limit, 449 no host). At the limit a call with a
        flow, or one that `waits`, does so up to `WAIT_S` before that.
        """
        request_id = request_id or self._request_ids.next()
        spec = self._resolver.resolve(function, qualifier)
        if isinstance(spec, tuple):
            done(failure(*spec, request_id))
            return
        memory_mib = spec.memory_mib
        count = self._counts.arrive(function)
        call = Call(spec, flow, request_id, event, attempt, flags, self._counted(count, memory_mib, done))
        waits = waits or flow is not None
        stands_behind = waits and self._waiting.has(function, count)
        if not stands_behind and self._counts.take(count, memory_mib):
            self._send(call)
        else:
            self._wait_or_refuse(function, count, call, done, waits=waits)

    def split(self, function: FunctionKey, qualifier: str) -> Split | None:
        """How calls by this qualifier divide between versions now; None when all of them go to one."""
        return self._resolver.split(function, qualifier)

    def cancel(self, request_id: bytes) -> bool:
        """End a request's run, wherever it is; True when there was one. Its `done` is called as ever. For rare calls."""
        self._waiting.drop(request_id)
        held = [(until, call) for until, call in self._held if call.request_id == request_id]
        for one in held:
            self._held.remove(one)
            one[1].done(failure(RunStatus.CANCELLED, "the run was cancelled before it began", request_id))
        return any(link.cancel_request(request_id) for link in self._agents.links) or bool(held)

    def agents_changed(self) -> None:
        """An agent came or went: send what was held."""
        while self._held and (link := self._choose(self._held[0][1].spec)) is not None:
            link.invoke(self._held.popleft()[1])

    def tick(self) -> None:
        """Called a few times a second: send held calls when there is room again, answer those that waited too long."""
        self.agents_changed()
        now = mono_s()
        if self._waiting:
            self._waiting.tick(now)
        while self._held and self._held[0][0] <= now:
            _, call = self._held.popleft()
            call.done(failure(RunStatus.NO_RESOURCES, "no host agent is connected", call.request_id))

    def limit_changed(self, key: str, row: LimitRecord | None) -> None:
        """Feed of the limits' table."""
        self._counts.limit_changed(key, row)
        if self._waiting:
            self._waiting.regroup()
            self._waiting.tick(mono_s())

    def _counted(self, count: FunctionCount, memory_mib: int, done: Done) -> Callable[[Result], None]:
        def finish(result: Result) -> None:
            self._counts.leave(count, memory_mib, result)
            done(result)
            if self._waiting:
                self._waiting.freed(count.budgets[-1])

        return finish

    def _wait_or_refuse(
        self, function: FunctionKey, count: FunctionCount, call: Call, done: Done, *, waits: bool
    ) -> None:
        """At a limit: what nobody waits for waits a little, any other call is answered at once."""
        memory_mib = call.spec.memory_mib

        def refuse() -> None:
            count.throttled += 1
            count.touched = True
            done(failure(RunStatus.CONCURRENCY, self._counts.why(count, memory_mib), call.request_id))

        until = mono_s() + WAIT_S
        waiter = Waiter(until, call.request_id, function, count, memory_mib, partial(self._send, call), refuse)
        if not waits or not self._waiting.add(waiter):
            refuse()

    def _send(self, call: Call) -> None:
        link = self._choose(call.spec)
        if link is not None:
            link.invoke(call)
        elif len(self._held) < HOLD_LIMIT:
            self._held.append((mono_s() + HOLD_S, call))
        else:
            call.done(failure(RunStatus.NO_RESOURCES, "no host agent has room", call.request_id))

    def _choose(self, spec: Spec) -> AgentLink | None:
        links = self._agents.links
        if len(links) == 1 and len(links[0].pending) < WINDOW:
            return links[0]
        now = mono_s()
        index = place(
            [
                HostView(i, len(link.pending), WINDOW, now - link.last_used.get(spec, -WARM_S) < WARM_S)
                for i, link in enumerate(links)
            ]
        )
        return None if index is None else links[index]
