"""One invocation inside the agent, and who owns the partition that it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.agent.functionpool import FunctionPool
    from sandbox.agent.gatewaylink import GatewayLink
    from sandbox.agent.logs import CallLog
    from sandbox.agent.worker import WorkerLink
    from schemas.runstatus import RunStatus


class Ownership:
    """What the agent knows of one (trigger, partition): its newest epoch and the calls that are not answered.

    While calls of older epochs are left (`older`; they are being ended), those of the newest wait in `held`.
    """

    __slots__ = ("calls", "epoch", "held", "older")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.calls: set[Call] = set()
        self.older: set[Call] = set()
        self.held: list[Call] = []


class FlowEntry:
    """A FLOW that a connection declared."""

    __slots__ = ("epoch", "ownership")

    def __init__(self, ownership: Ownership, epoch: int) -> None:
        self.ownership, self.epoch = ownership, epoch


class Call:
    """One INVOKE on its way.

    `worker` is who has it, None while it is queued; `sequence` its number there. `arrived` is monotonic seconds. `cold` is the level of the
    start that it met. `batched` means it was sent as RUN_BATCHED. `doom` is what it is answered with when its worker is dead. The event is
    kept until the end, because a call behind one that killed its worker runs again elsewhere.
    """

    __slots__ = (
        "arrived",
        "batched",
        "cold",
        "corr",
        "doom",
        "event",
        "flags",
        "flow",
        "link",
        "log",
        "pool",
        "request_id",
        "sequence",
        "worker",
    )

    def __init__(  # noqa: PLR0917 - made once per invocation: keywords would cost a tenth of a microsecond each
        self,
        link: GatewayLink,
        pool: FunctionPool,
        corr: int,
        request_id: bytes,
        event: bytes,
        flow: FlowEntry | None,
        flags: int,
        arrived: float,
    ) -> None:
        self.link = link
        self.pool = pool
        self.corr = corr
        self.request_id = request_id
        self.event = event
        self.flow = flow
        self.flags = flags
        self.arrived = arrived
        self.cold = 0
        self.batched = False
        self.doom: tuple[RunStatus, str] | None = None
        self.sequence = 0
        self.worker: WorkerLink | None = None
        self.log: CallLog | None = None
