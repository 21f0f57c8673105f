"""Connections to host agents: found by the membership topic, kept open, watched.

One `AgentLink` per agent address and term. What a link has sent and not yet got back is in `pending`; when the connection breaks every
pending call is answered with status 500, so that its caller decides (lanes try again, an API caller is told).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from infra.clock import mono_s, unix_ms
from infra.wire import FrameConnection, connect
from schemas.errors import PenstockError
from schemas.frames import Flow, Invoke, Kind, Result, Spec, decode_result, encode_invoke, frame, json_frame
from schemas.records import Member
from schemas.runerror import error_body
from schemas.runstatus import RunStatus

PING_S = 2.0
SILENT_S = 10.0
MEMBER_STALE_S = 15.0
WINDOW = 4096
GRACE_S = 30.0
"""How much longer than its own limits an invocation may take before the gateway gives it up."""

Done = Callable[[Result], None]


class Call(NamedTuple):
    """One invocation on its way to an agent. `done` gets exactly one Result, on the loop."""

    spec: Spec
    flow: Flow | None
    request_id: bytes
    event: bytes
    attempt: int
    flags: int
    done: Done


@dataclasses.dataclass(slots=True)
class Pending:
    """One call that an agent has not answered."""

    done: Done
    request_id: bytes
    deadline_mono_s: float


class AgentLink:
    """One authenticated connection to an agent, with what was declared on it."""

    def __init__(self, member: Member, on_closed: Callable[[AgentLink], None]) -> None:
        self.member = member
        self.pending: dict[int, Pending] = {}
        self.last_used: dict[Spec, float] = {}
        self._specs: dict[Spec, int] = {}
        self._flows: dict[Flow, int] = {}
        self._corr = 0
        self._heard_mono_s = mono_s()
        self._connection: FrameConnection | None = None
        self._on_closed = on_closed

    async def open(self, key: bytes, identity: Mapping[str, Any]) -> None:
        """Connect and authenticate; raises AgentUnavailable or WireError."""
        self._connection = await connect(self.member.address, key, dict(identity), self._frames, self._closed)

    @property
    def up(self) -> bool:
        """True while calls can be sent."""
        return self._connection is not None and not self._connection.closed

    def declare(self, flow: Flow) -> int:
        """The flow's number on this connection; the agent ends older epochs of its partition when it hears of it."""
        number = self._flows.get(flow)
        if number is None:
            for old in [f for f in self._flows if f.trigger == flow.trigger and f.partition == flow.partition]:
                del self._flows[old]
            self._corr += 1
            number = self._flows[flow] = self._corr
            self._send(json_frame(Kind.FLOW, number, dataclasses.asdict(flow)))
        return number

    def invoke(self, call: Call) -> None:
        """Send one invocation; its `done` gets exactly one result."""
        spec, flow, request_id, event, attempt, flags, done = call
        number = self._specs.get(spec)
        if number is None:
            self._corr += 1
            number = self._specs[spec] = self._corr
            self._send(json_frame(Kind.SPEC, number, dataclasses.asdict(spec)))
        flow_number = 0 if flow is None else self.declare(flow)
        self._corr = corr = (self._corr + 1) & 0xFFFFFFFF
        now = mono_s()
        self.pending[corr] = Pending(done, request_id, now + spec.timeout_s + spec.init_timeout_s + GRACE_S)
        self.last_used[spec] = now
        self._send(encode_invoke(Invoke(corr, number, flow_number, attempt, flags, request_id, event)))

    def cancel(self, corr: int) -> None:
        """Ask the agent to end one invocation; its result still comes."""
        self._send(json_frame(Kind.CANCEL, corr, None))

    def cancel_request(self, request_id: bytes) -> bool:
        """Ask for the end of a request's run, if it is out here; its result still comes. Looks at all that is out: for rare calls."""
        found = [corr for corr, call in self.pending.items() if call.request_id == request_id]
        for corr in found:
            self.cancel(corr)
        return bool(found)

    def tick(self, now_mono_s: float) -> None:
        """Called every PING_S: ping, close when silent, give up what is far past its limits."""
        if not self.up:
            return
        if now_mono_s - self._heard_mono_s > SILENT_S:
            self.close()
            return
        self._send(frame(Kind.PING, b""))
        for corr, call in list(self.pending.items()):
            if call.deadline_mono_s < now_mono_s:
                self.cancel(corr)
                self._answer(self.pending.pop(corr), RunStatus.INTERNAL, "the host agent did not answer in time")

    def close(self) -> None:
        """Close the connection; pending calls are answered with status 500."""
        if self._connection is not None:
            self._connection.close()

    def _send(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.send(data)

    def _frames(self, _connection: FrameConnection, frames: list[tuple[int, bytes]]) -> None:
        self._heard_mono_s = mono_s()
        pending = self.pending
        for kind, payload in frames:
            if kind == Kind.RESULT:
                result = decode_result(payload)
                call = pending.pop(result.corr, None)
                if call is not None:
                    call.done(result)

    def _closed(self, _connection: FrameConnection, _error: BaseException | None) -> None:
        self._connection = None
        calls, self.pending = list(self.pending.values()), {}
        self._on_closed(self)
        for call in calls:
            self._answer(call, RunStatus.INTERNAL, "the connection to the host agent broke while the function ran")

    @staticmethod
    def _answer(call: Pending, status: RunStatus, message: str) -> None:
        call.done(failure(status, message, call.request_id))


def failure(status: RunStatus, message: str, request_id: bytes) -> Result:
    """A Result that the gateway makes itself, with the error JSON of SCF.md 4.4."""
    return Result(0, int(status), 0, 0, 0, 0, 0, b"", error_body(status, message, request_id))


class AgentPool:
    """Keeps one link to every live agent of the membership topic."""

    def __init__(self, key: bytes, identity: Mapping[str, Any], on_change: Callable[[], None]) -> None:
        self._key, self._identity, self._on_change = key, identity, on_change
        self._members: dict[str, Member] = {}
        self._links: dict[str, AgentLink] = {}
        self._wake = asyncio.Event()

    @property
    def links(self) -> list[AgentLink]:
        """Links that can take calls."""
        return [link for link in self._links.values() if link.up]

    def member_changed(self, key: str, member: Member | None) -> None:
        """Feed of the membership table; other kinds than agent are ignored."""
        if not key.startswith("agent/"):
            return
        if member is None:
            self._members.pop(key, None)
        else:
            self._members[key] = member
        if member is None or key not in self._links or self._links[key].member.term != member.term:
            self._wake.set()

    async def run(self) -> None:
        """Connect to what appears, drop what is gone, ping; until cancelled."""
        next_tick = 0.0
        while True:
            self._wake.clear()
            await self._converge()
            now = mono_s()
            if now >= next_tick:
                next_tick = now + PING_S
                for link in list(self._links.values()):
                    link.tick(now)
            retry = any(key not in self._links for key in self._members)
            try:
                async with asyncio.timeout(0.1 if retry else PING_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def close(self) -> None:
        """Close all links."""
        for link in list(self._links.values()):
            link.close()

    async def _converge(self) -> None:
        for key, link in list(self._links.items()):
            member = self._members.get(key)
            if not link.up or member is None or member.term != link.member.term:
                del self._links[key]
                link.close()
        for key, member in list(self._members.items()):
            if key in self._links or unix_ms() - member.unix_ms > MEMBER_STALE_S * 1000:
                continue
            link = AgentLink(member, self._link_closed)
            try:
                await link.open(self._key, self._identity)
            except PenstockError:
                continue  # it may be starting or dead; its next heartbeat or the retry brings it back
            self._links[key] = link
            self._on_change()

    def _link_closed(self, _link: AgentLink) -> None:
        self._wake.set()
        self._on_change()
