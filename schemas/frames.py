"""Frames between gateway and agent, and between agent and worker: pure codec, no I/O.

Every frame is `u32 length | u8 kind | payload`, big endian; `length` counts kind and payload. Payloads are a fixed struct, then bytes:
small enough to build with one `pack`, so that a hot path spends microseconds on it. sandbox/runner repeats the worker's half with the
standard library alone; tests/unit/test_frames.py compares the two.

Gateway → agent: SPEC declares a function version under a small number, FLOW a (trigger, partition, epoch); INVOKE refers to both.
Agent → gateway: RESULT per INVOKE, in any order; STATS now and then.
Agent → worker: LOAD once, then RUN after RUN (a worker runs them in that order). Worker → agent: READY, LOG, DONE, and
LEAVING when it ends between two events: what it was given and did not answer has not begun.
The DONE of a RUN is sent before the next event is begun, so when a worker dies the first unanswered RUN is the one that ran. RUN_BATCHED allows the
worker to keep its DONE back while the next frames are at hand and quick: a third of the CPU, but after a death any of several may have run.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

from schemas.errors import WireError
from schemas.ids import CUSTOM_RUNTIME
from schemas.limits import FRAME_BYTES


class Kind(IntEnum):
    """First byte of a frame."""

    SPEC = 1
    FLOW = 2
    INVOKE = 3
    RESULT = 4
    CANCEL = 5
    PING = 6
    PONG = 7
    STATS = 8
    LOAD = 16
    READY = 17
    RUN = 18
    DONE = 19
    LOG = 20
    RUN_BATCHED = 21
    LEAVING = 22


HEADER: Final = struct.Struct("!IB")
_INVOKE: Final = struct.Struct("!IBIIIHB16s")
_RESULT: Final = struct.Struct("!IBIHBBIIII")
_RUN: Final = struct.Struct("!IBI16s")
_DONE: Final = struct.Struct("!IBIBI")
_U32: Final = struct.Struct("!I")
INVOKE_FIXED: Final = _INVOKE.size - HEADER.size
RESULT_FIXED: Final = _RESULT.size - HEADER.size
RUN_FIXED: Final = _RUN.size - HEADER.size
DONE_FIXED: Final = _DONE.size - HEADER.size
_INVOKE_BODY: Final = struct.Struct("!IIIHB16s")
_RESULT_BODY: Final = struct.Struct("!IHBBIIII")
_RUN_BODY: Final = struct.Struct("!I16s")
_DONE_BODY: Final = struct.Struct("!IBI")

WANT_LOG_TAIL: Final = 1
"""INVOKE flag: send the last 4 KB of this invocation's log with the result."""


class Invoke(NamedTuple):
    """One invocation. `flow` 0 means that it belongs to no partition; `request_id` is a UUID's 16 bytes."""

    corr: int
    spec: int
    flow: int
    attempt: int
    flags: int
    request_id: bytes
    event: bytes


class Result(NamedTuple):
    """How an invocation ended.

    `status` is a RunStatus; `level` the cold-start level 0..5 it met; `duration_us` in the handler, `wait_us` before it; `memory_kib`
    the peak. `body` is the handler's JSON for 200, else the error JSON of SCF.md 4.4. `tail` is the log tail, when asked for.
    """

    corr: int
    status: int
    level: int
    flags: int
    duration_us: int
    wait_us: int
    memory_kib: int
    tail: bytes
    body: bytes


class DoneOutcome(IntEnum):
    """What a worker says of one RUN."""

    OK = 0
    USER_EXCEPTION = 1
    BAD_EVENT = 2
    REPLY_TOO_LARGE = 3
    BAD_REPLY = 4


class Done(NamedTuple):
    """A worker's answer to RUN; `peak_kib` is its peak resident set."""

    corr: int
    outcome: int
    peak_kib: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Spec:
    """A function version as an agent needs it. `environment` holds the user's variables only.

    `layers` are the hashes of its layers' packages; of them the later ones win.
    """

    appid: str
    uin: str
    namespace: str
    function: str
    version: str
    code_sha256: str
    handler: str
    runtime: str
    memory_mib: int
    timeout_s: int
    init_timeout_s: int
    region: str
    environment: dict[str, str]
    layers: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((self.function, self.version, self.code_sha256))  # the dict has no hash; equality still sees it

    @property
    def is_custom(self) -> bool:
        """True when its package brings its own runtime, the file `bootstrap`."""
        return self.runtime == CUSTOM_RUNTIME

    @property
    def key(self) -> str:
        """`appid/namespace/function`, as in Kafka keys."""
        return f"{self.appid}/{self.namespace}/{self.function}"


@dataclass(frozen=True, slots=True)
class Flow:
    """One ownership of a source partition. A newer `epoch` of the same (trigger, partition) ends the older ones."""

    trigger: str
    partition: int
    epoch: int


def frame(kind: int, payload: bytes) -> bytes:
    """Any frame from its payload."""
    return HEADER.pack(len(payload) + 1, kind) + payload


def json_frame(kind: int, number: int, value: Any) -> bytes:
    """SPEC, FLOW, STATS, READY, LOAD: a u32 number, then JSON."""
    return frame(kind, _U32.pack(number) + json.dumps(value, separators=(",", ":")).encode())


def parse_json(payload: bytes) -> tuple[int, Any]:
    """Inverse of `json_frame`'s payload; raises WireError."""
    try:
        return _U32.unpack_from(payload)[0], json.loads(payload[4:])
    except (struct.error, ValueError) as exc:
        raise WireError(f"bad JSON frame: {exc}") from exc


def encode_invoke(call: Invoke) -> bytes:
    """INVOKE, whole frame."""
    head = _INVOKE.pack(INVOKE_FIXED + 1 + len(call.event), Kind.INVOKE, *call[:6])
    return head + call.event


def decode_invoke(payload: bytes) -> Invoke:
    """INVOKE from its payload; raises WireError."""
    try:
        fields: tuple[int, int, int, int, int, bytes] = _INVOKE_BODY.unpack_from(payload)
        return Invoke(*fields, payload[INVOKE_FIXED:])
    except struct.error as exc:
        raise WireError(f"bad INVOKE frame: {exc}") from exc


def encode_result(result: Result) -> bytes:
    """RESULT, whole frame."""
    tail, body = result.tail, result.body
    head = _RESULT.pack(RESULT_FIXED + 1 + len(tail) + len(body), Kind.RESULT, *result[:7], len(tail))
    return head + tail + body


def decode_result(payload: bytes) -> Result:
    """RESULT from its payload; raises WireError."""
    try:
        *fields, tail_len = _RESULT_BODY.unpack_from(payload)
    except struct.error as exc:
        raise WireError(f"bad RESULT frame: {exc}") from exc
    cut = RESULT_FIXED + tail_len
    if cut > len(payload):
        raise WireError("bad RESULT frame: the log tail is longer than the frame")
    corr, status, level, flags, duration_us, wait_us, memory_kib = fields
    return Result(
        corr, status, level, flags, duration_us, wait_us, memory_kib, payload[RESULT_FIXED:cut], payload[cut:]
    )


def encode_run(corr: int, request_id: bytes, event: bytes, kind: Kind = Kind.RUN) -> bytes:
    """RUN or RUN_BATCHED (agent → worker), whole frame."""
    return _RUN.pack(RUN_FIXED + 1 + len(event), kind, corr, request_id) + event


def decode_run(payload: bytes) -> tuple[int, bytes, bytes]:
    """RUN from its payload: corr, request id, event."""
    try:
        corr, request_id = _RUN_BODY.unpack_from(payload)
    except struct.error as exc:
        raise WireError(f"bad RUN frame: {exc}") from exc
    return corr, request_id, payload[RUN_FIXED:]


def encode_done(done: Done) -> bytes:
    """DONE (worker → agent), whole frame."""
    return _DONE.pack(DONE_FIXED + 1 + len(done.body), Kind.DONE, *done[:3]) + done.body


def decode_done(payload: bytes) -> Done:
    """DONE from its payload; raises WireError (a worker is not trusted)."""
    try:
        corr, outcome, peak_kib = _DONE_BODY.unpack_from(payload)
        return Done(corr, outcome, peak_kib, payload[DONE_FIXED:])
    except struct.error as exc:
        raise WireError(f"bad DONE frame: {exc}") from exc


class Splitter:
    """Cuts a byte stream into frames. Feed it what arrives; it keeps the incomplete rest (at most one frame)."""

    __slots__ = ("_have", "_limit", "_need", "_parts")

    def __init__(self, limit: int = FRAME_BYTES) -> None:
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 5
        """Bytes without which no further frame is complete: a large frame is joined once, not at every read."""
        self._limit = limit

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """All complete (kind, payload) pairs, in order; raises WireError for an oversize or empty frame."""
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        frames: list[tuple[int, bytes]] = []
        at, end = 0, len(data)
        self._need = 5
        unpack = HEADER.unpack_from
        while end - at >= 5:
            length, kind = unpack(data, at)
            if not 0 < length <= self._limit:
                raise WireError(f"frame of {length} bytes; the limit is {self._limit}")
            nxt = at + 4 + length
            if nxt > end:
                self._need = 4 + length
                break
            frames.append((kind, data[at + 5 : nxt]))
            at = nxt
        if at < end:
            self._parts.append(data[at:])
            self._have = end - at
        return frames
