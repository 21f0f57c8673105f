"""One gateway's connection: what it declared, what it sent, what it gets back."""

from __future__ import annotations

from typing import Any, Final, Protocol

from infra.clock import mono_s
from infra.telemetry import get_logger
from infra.wire import FrameConnection
from sandbox.agent.calls import Call, FlowEntry
from sandbox.agent.fences import Fences
from sandbox.agent.functionpool import FunctionPool
from sandbox.agent.host import Host
from schemas.errors import WireError
from schemas.frames import Kind, Result, Spec, decode_invoke, encode_result, frame, parse_json
from schemas.runerror import error_body
from schemas.runstatus import RunStatus

log = get_logger("sandbox.gatewaylink")

_INVOKE: Final = int(Kind.INVOKE)
_U32: Final = 0xFFFFFFFF
_PONG: Final = frame(Kind.PONG, b"")


class LinkOwner(Protocol):
    """What a link needs of the agent."""

    host: Host
    fences: Fences

    def closed(self, link: GatewayLink) -> None:
        """The connection is gone."""


class SpecEntry:
    """A function version that the connection declared, and its pool."""

    __slots__ = ("pool", "spec")

    def __init__(self, spec: Spec, pool: FunctionPool) -> None:
        self.spec, self.pool = spec, pool


class GatewayLink:
    """The agent's side of one connection. All methods run on the loop."""

    def __init__(self, owner: LinkOwner, peer: dict[str, Any]) -> None:
        self.peer = peer
        self.gone = False
        """Nobody waits for the results any more."""
        self.calls: dict[int, Call] = {}
        """Not answered yet, by the gateway's number."""
        self._owner = owner
        self._host, self._fences = owner.host, owner.fences
        self._specs: dict[int, SpecEntry] = {}
        self._flows: dict[int, FlowEntry] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self._connection: FrameConnection | None = None

    def frames(self, connection: FrameConnection, frames: list[tuple[int, bytes]]) -> None:
        """Frames of one read. A WireError closes the connection."""
        self._connection = connection
        now = mono_s()
        try:
            for kind, payload in frames:
                if kind == _INVOKE:
                    self._invoke(payload, now)
                else:
                    self._control(kind, payload, now)
        finally:
            self._host.flush()

    def answer(  # noqa: PLR0917 - once per invocation
        self, call: Call, status: int, duration_us: int, began: float, peak_kib: int, tail: bytes, body: bytes
    ) -> None:
        """Send an invocation's result; `began` is the monotonic second at which its handler began."""
        if call.flow is not None:
            self._fences.left(call)
        if self.calls.pop(call.corr, None) is None or self._connection is None:
            return
        wait_us = min(max(int((began - call.arrived) * 1e6), 0), _U32)
        result = Result(call.corr, status, call.cold, 0, min(duration_us, _U32), wait_us, peak_kib, tail, body)
        self._connection.send(encode_result(result))

    def refuse(self, call: Call, status: RunStatus, message: str, now: float) -> None:
        """Answer a call that went nowhere."""
        self.answer(call, int(status), 0, now, 0, b"", error_body(status, message, call.request_id))

    def lost(self, _connection: FrameConnection, error: BaseException | None) -> None:
        """The connection is gone: what has not begun is dropped, what runs goes on and its result is thrown away."""
        if error is not None:
            log.info("a gateway's connection broke", peer=self.peer.get("id"), reason=str(error))
        self._connection, self.gone = None, True
        calls, self.calls = self.calls, {}
        waiting = {call for call in calls.values() if call.worker is None}
        self._fences.drop_held(waiting)
        now = mono_s()
        for call in waiting:
            call.pool.end(call, RunStatus.CANCELLED, "the gateway's connection is gone", now)
        self._host.flush()
        self._owner.closed(self)

    def _invoke(self, payload: bytes, now: float) -> None:
        corr, number, flow_number, _, flags, request_id, event = decode_invoke(payload)
        entry = self._specs.get(number)
        if entry is None:
            raise WireError(f"INVOKE names function version {number}, which was not declared")
        pool = entry.pool
        if pool.closed:
            pool = entry.pool = self._host.pool_for(entry.spec)
        flow = self._flows.get(flow_number)
        call = self.calls[corr] = Call(self, pool, corr, request_id, event, flow, flags, now)
        if self._host.draining:
            self.refuse(call, RunStatus.INTERNAL, "the host agent is stopping", now)
        elif flow is None:
            if flow_number:
                self.refuse(call, RunStatus.CANCELLED, "the flow was declared again under another number", now)
            else:
                pool.submit(call, now)
        elif self._fences.admit(call, now):
            pool.submit(call, now)

    def _control(self, kind: int, payload: bytes, now: float) -> None:
        if kind == Kind.SPEC:
            number, value = parse_json(payload)
            spec = _spec(value)
            self._specs[number] = SpecEntry(spec, self._host.pool_for(spec))
        elif kind == Kind.FLOW:
            self._declare(*parse_json(payload), now)
        elif kind == Kind.CANCEL:
            number, _ = parse_json(payload)
            call = self.calls.get(number)
            if call is not None:
                self._cancel(call, now)
        elif kind == Kind.PING and self._connection is not None:
            self._connection.send(_PONG)
        elif kind not in (Kind.PING, Kind.PONG, Kind.STATS):
            raise WireError(f"unexpected frame of kind {kind}")

    def _declare(self, number: int, value: Any, now: float) -> None:
        try:
            trigger, partition, epoch = str(value["trigger"]), int(value["partition"]), int(value["epoch"])
        except (TypeError, KeyError, ValueError) as exc:
            raise WireError(f"bad FLOW frame: {exc!r}") from exc
        older = self._numbers.get((trigger, partition))
        if older is not None:
            self._flows.pop(older, None)
        self._numbers[trigger, partition] = number
        self._flows[number] = self._fences.declare(trigger, partition, epoch, now)

    def _cancel(self, call: Call, now: float) -> None:
        message = "the invocation was cancelled"
        flow = call.flow
        if flow is not None and call in flow.ownership.held:
            flow.ownership.held.remove(call)
            self.refuse(call, RunStatus.CANCELLED, message, now)
        else:
            call.pool.end(call, RunStatus.CANCELLED, message, now)


def _spec(value: Any) -> Spec:
    try:
        return Spec(**{**value, "layers": tuple(map(str, value.get("layers", ())))})
    except (TypeError, AttributeError) as exc:
        raise WireError(f"bad SPEC frame: {exc}") from exc
