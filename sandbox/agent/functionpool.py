"""The workers of one function version, and the calls that wait for them. Decisions are in sandbox.pool; here they are carried out.

Everything runs on the event loop, in callbacks; `Host` (sandbox.agent.host) gives a pool its workers and its clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from sandbox.agent.calls import Call
from sandbox.agent.worker import WorkerLink
from sandbox.driver import WorkerExit
from sandbox.pool import PoolLimits, RunTimes, Step, choose
from schemas.errors import WireError
from schemas.frames import WANT_LOG_TAIL, DoneOutcome, Spec, decode_done
from schemas.limits import REPLY_BYTES
from schemas.runerror import error_body
from schemas.runstatus import RunStatus, blames_platform

if TYPE_CHECKING:
    from sandbox.agent.logs import FunctionLog

_OK: Final = int(DoneOutcome.OK)
_LAST: Final = max(DoneOutcome)
_STATUS: Final = {
    DoneOutcome.OK: RunStatus.OK,
    DoneOutcome.USER_EXCEPTION: RunStatus.USER_EXCEPTION,
    DoneOutcome.BAD_EVENT: RunStatus.BAD_EVENT,
    DoneOutcome.REPLY_TOO_LARGE: RunStatus.REPLY_TOO_LARGE,
    DoneOutcome.BAD_REPLY: RunStatus.USER_EXCEPTION,
}
KEPT_WAIT_FIRST_S: Final = 1.0
KEPT_WAIT_LIMIT_S: Final = 30.0
"""Pauses between starts ahead that fail: doubled each time."""
START_SEEN_S: Final = 0.05
"""A call that runs longer has its START line written before its end."""
TROUBLE_RUNS: Final = 5_000
"""After a slow run or a death, as many runs are answered one by one: what may be kept back is lost or late when the next one hangs."""


class PoolHost(Protocol):
    """What a pool needs of its host."""

    def unflushed(self, worker: WorkerLink) -> None:
        """This worker has frames to be written at the end of the batch."""

    def flush(self) -> None:
        """End of a batch."""

    def busy(self, pool: FunctionPool) -> None:
        """This pool has work: keep an eye on its time limits."""

    def want_workers(self, pool: FunctionPool) -> None:
        """Calls wait in this pool."""

    def ended(self, pool: FunctionPool, worker: WorkerLink) -> None:
        """A worker is dead; what it held is free."""


class Run(NamedTuple):
    """When a call ran (monotonic seconds), for how long, and the peak of its worker."""

    began: float
    ended: float
    duration_us: int
    peak_kib: int


class Failure:
    """Why no worker of this version comes up; answers calls until `until` (monotonic seconds)."""

    __slots__ = ("message", "status", "until")

    def __init__(self, status: RunStatus, message: str, until: float) -> None:
        self.status, self.message, self.until = status, message, until


class FunctionPool:
    """One function version on this host."""

    def __init__(self, host: PoolHost, spec: Spec, identity: bytes, log: FunctionLog, limits: PoolLimits) -> None:
        self.host, self.spec, self.identity, self.log, self.limits = host, spec, identity, log, limits
        self.queue: deque[Call] = deque()
        self.idle: list[WorkerLink] = []
        """Workers without a call; the last is the most recently used."""
        self.busy: dict[WorkerLink, None] = {}
        self.all: set[WorkerLink] = set()
        """Every live worker, those that start or end included."""
        self.starting = 0
        self.times = RunTimes()
        self.failure: Failure | None = None
        self.superseded = False
        self.closed = False
        self.kept = 0
        """So many workers are to be ready, whether called or not."""
        self.kept_from = 0.0
        """Monotonic seconds before which no more of them is tried, because the last start failed."""
        self.kept_wait_s = 0.0
        self.kept_why = ""
        """Why the last of them did not come up, or ended by itself; empty after a good start."""
        self.last_used = 0.0
        self._careful_runs = 0
        self._timeout_s = float(spec.timeout_s)
        self._stuck_s = limits.stuck_us / 1e6

    @property
    def ready(self) -> int:
        """Workers that can be given calls."""
        return len(self.idle) + len(self.busy)

    @property
    def spare(self) -> int:
        """Idle workers that may go: the first so many of `idle`."""
        return min(len(self.idle), max(0, self.ready - self.kept))

    def missing(self, now: float) -> int:
        """Workers to start for those that are to be ready."""
        return max(0, self.kept - self.ready - self.starting) if now >= self.kept_from else 0

    def running_s(self, now: float) -> float:
        """How long the call that runs longest has run."""
        return now - min((w.head_at for w in self.busy), default=now)

    # Calls in

    def submit(self, call: Call, now: float) -> None:
        """Take one call: run it, queue it or refuse it."""
        if self.failure is not None and not self.ready:
            if now < self.failure.until:
                self._fail(call, self.failure.status, self.failure.message, now)
                return
            self.failure = None
        if not self.queue:
            worker = self._worker_for(call, now, queued=0)
            if worker is not None:
                self._give(worker, call, now)
                return
        if len(self.queue) >= self.limits.queue_calls:
            status = RunStatus.START_RATE if self.starting else RunStatus.NO_RESOURCES
            self._fail(call, status, f"{len(self.queue)} invocations of this function wait already on this host", now)
            return
        self.queue.append(call)
        self.host.want_workers(self)

    def pump(self, now: float) -> None:
        """Give queued calls to workers as far as they take them."""
        queue = self.queue
        while queue:
            worker = self._worker_for(queue[0], now, queued=len(queue))
            if worker is None:
                break
            self._give(worker, queue.popleft(), now)
        if queue:
            self.host.want_workers(self)

    def end(self, call: Call, status: RunStatus, message: str, now: float) -> None:
        """Answer a call early: one that waits at once, one that runs when its worker is dead, one behind it in its turn."""
        worker = call.worker
        if worker is None:
            try:
                self.queue.remove(call)
            except ValueError:
                return  # it has been answered
            self._fail(call, status, message, now)
        elif worker.calls and worker.calls[0] is call:
            worker.kill(call, status, message)
        elif call.doom is None:
            call.doom = (status, message)
            if worker.unsure:  # it may be the one that runs
                worker.kill()

    def _worker_for(self, call: Call, now: float, *, queued: int) -> WorkerLink | None:
        behind = self._least_busy(call, now) if self.times.is_quick(self.limits) else None
        step = choose(
            idle=len(self.idle),
            busy=len(self.busy),
            depth=0 if behind is None else len(behind.calls),
            times=self.times,
            queued=queued,
            limits=self.limits,
        )
        if step == Step.IDLE:
            return self.idle.pop()
        return behind if step == Step.PIPELINE else None

    def _least_busy(self, call: Call, now: float) -> WorkerLink | None:
        """The busy worker with the fewest calls behind which this one may be put."""
        found, fewest = None, self.limits.depth
        for worker in self.busy:
            depth = len(worker.calls)
            if depth >= fewest or now - worker.head_at > self._stuck_s or not worker.room:
                continue
            if worker.loose and call.flow is None:  # an API call must not run twice, so who ran must be known
                continue
            found, fewest = worker, depth
            if depth == 1:
                break
        return found

    def _give(self, worker: WorkerLink, call: Call, now: float) -> None:
        if not worker.calls:
            self.busy[worker] = None
            self.host.busy(self)
        batched = call.flow is not None and not self._careful_runs
        if worker.run(call, now, batched=batched):
            self.host.unflushed(worker)

    # Results

    def finished(self, worker: WorkerLink, done: list[bytes], now: float) -> None:
        """DONE frames of one read, in order. Their time since the head began is shared out evenly: the agent sees only the last one's end."""
        calls, at, runs = worker.calls, worker.head_at, len(done)
        each_s = (now - at) / runs
        each_us = int(each_s * 1e6)
        self.times.observe(each_us, runs)
        if each_us > self.limits.stuck_us:
            self._careful_runs = TROUBLE_RUNS
        elif self._careful_runs:
            self._careful_runs = max(0, self._careful_runs - runs)
        for payload in done:
            sequence, outcome, peak_kib, body = decode_done(payload)
            if not calls or calls[0].sequence != sequence or outcome > _LAST:
                raise WireError(f"DONE of {sequence} with outcome {outcome}, which was not expected")
            call = calls.popleft()
            if call.batched:
                worker.loose -= 1
            end = at + each_s
            if outcome == _OK and call.log is None and not call.flags & WANT_LOG_TAIL and len(body) <= REPLY_BYTES:
                self.log.whole(call.request_id, at, end, each_us, peak_kib)
                call.link.answer(call, 200, each_us, at, peak_kib, b"", body)
            else:
                self._finish(call, outcome, body, Run(at, end, each_us, peak_kib))
            at = end
        worker.last_used = now
        self._next(worker, now)

    def _next(self, worker: WorkerLink, now: float) -> None:
        """After the end of calls: go on with the rest, or take from the queue."""
        worker.head_at = now
        if worker.calls:
            if (doom := worker.calls[0].doom) is not None:
                worker.kill(worker.calls[0], *doom)
        elif worker in self.busy:
            del self.busy[worker]
            self.idle.append(worker)
            self.last_used = now
        if self.queue:
            self.pump(now)

    def _finish(self, call: Call, outcome: int, body: bytes, run: Run) -> None:
        """The less common ends of a call that its worker answered."""
        status = _STATUS[DoneOutcome(outcome)]
        if status == RunStatus.OK and len(body) > REPLY_BYTES:
            status = RunStatus.REPLY_TOO_LARGE
            body = error_body(status, "the reply is larger than 6 MB", call.request_id)
        elif outcome not in (DoneOutcome.OK, DoneOutcome.USER_EXCEPTION):
            body = error_body(status, body[:4096].decode(errors="replace"), call.request_id)
        self._answer(call, status, body, run)

    def _fail(self, call: Call, status: RunStatus, message: str, now: float, run: Run | None = None) -> None:
        """Answer a call that no worker answered; `run` is None when it never ran."""
        body = error_body(status, message, call.request_id)
        if call.log is None and run is None and blames_platform(status):  # nothing that belongs into the function's log
            call.link.answer(call, int(status), 0, now, 0, b"", body)
        else:
            self._answer(call, status, body, run or Run(now, now, 0, 0))

    def _answer(self, call: Call, status: RunStatus, body: bytes, run: Run) -> None:
        if call.log is None:
            call.log = self.log.begin(call.request_id, run.began, want_tail=bool(call.flags & WANT_LOG_TAIL))
        error = "" if status == RunStatus.OK else f"Result: {body[:8192].decode(errors='replace')}"
        tail = self.log.end(call.log, run.ended, duration_us=run.duration_us, peak_kib=run.peak_kib, error=error)
        call.link.answer(call, int(status), run.duration_us, run.began, run.peak_kib, tail, body)

    # Workers in and out

    def settle(self) -> None:
        """End of a batch of a worker's frames."""
        self.host.flush()

    def worker_ready(self, worker: WorkerLink, now: float) -> None:
        """A started worker may be used."""
        self.failure = None
        self.kept_why = ""
        if self.kept and not self.queue:
            worker.level = 0  # nobody waited for it
        self.idle.append(worker)
        self.last_used = now
        self.pump(now)

    def start_failed(self, failure: Failure, early: list[tuple[int, bytes]], now: float) -> None:
        """No worker came up: without any other, what waits is answered with the reason, the first also with what was printed."""
        self.failure = failure
        self._kept_later(failure.message, now)
        if self.ready:
            return
        waiting, self.queue = self.queue, deque()
        for call in waiting:
            if early and call.log is None:
                call.log = self.log.begin(call.request_id, now, want_tail=bool(call.flags & WANT_LOG_TAIL))
                for stream, text in early:
                    self.log.lines(call.log, stream, text, now)
                early = []
            self._fail(call, failure.status, failure.message, now)

    def unusable(self, worker: WorkerLink) -> None:
        """It takes no more calls."""
        self.busy.pop(worker, None)
        if worker in self.idle:
            self.idle.remove(worker)

    def gone(self, worker: WorkerLink, ended: WorkerExit, now: float) -> None:
        """It is dead. The call that ran is answered with the reason; those behind it run again, first in the queue."""
        self.unusable(worker)
        self.all.discard(worker)
        unsure = worker.unsure  # several may have run, and only the last of them did not end
        calls, worker.calls = worker.calls, deque()
        if worker.between and self.spec.is_custom:  # said by our own process, not by the function's
            pass  # nothing of what is left has begun
        elif calls and not unsure and (calls[0].doom is not None or not worker.killed):
            head = calls.popleft()
            status, message = head.doom or self._reason(ended)
            run = Run(worker.head_at, now, int((now - worker.head_at) * 1e6), ended.peak_kib)
            self._fail(head, status, message, now, run)
        elif calls and worker.killed and calls[0].flow is None:
            # What it was killed for ended in time, and this one may have begun: an API call must not run twice.
            self._fail(calls.popleft(), RunStatus.INTERNAL, "its worker was ended because of another call", now)
        if not worker.killed:
            self._kept_later(self._reason(ended)[1], now)
        if unsure or not worker.killed:
            self._careful_runs = TROUBLE_RUNS
        for call in reversed(calls):
            call.worker = None
            call.batched = False
            if call.link.gone and call.doom is None:
                call.doom = (RunStatus.CANCELLED, "the gateway's connection is gone")
            if call.doom is None:
                self.queue.appendleft(call)
            else:
                self._fail(call, *call.doom, now)
        worker.release()
        self.host.ended(self, worker)
        self.pump(now)

    def _kept_later(self, why: str, now: float) -> None:
        """Try no start ahead for a while, longer each time that comes soon after the one before."""
        is_new = now - self.kept_from > 2 * KEPT_WAIT_LIMIT_S
        self.kept_wait_s = KEPT_WAIT_FIRST_S if is_new else min(2 * self.kept_wait_s, KEPT_WAIT_LIMIT_S)
        self.kept_from, self.kept_why = now + self.kept_wait_s, why

    def _reason(self, ended: WorkerExit) -> tuple[RunStatus, str]:
        if ended.reason == "oom":
            return RunStatus.MEMORY, f"the function used more memory than its {self.spec.memory_mib} MB"
        if ended.code < 0:
            return RunStatus.PROCESS_EXIT, f"the function's process was ended by signal {-ended.code}"
        return RunStatus.PROCESS_EXIT, f"the function's process exited with code {ended.code}"

    def end_all(self, status: RunStatus, message: str) -> None:
        """Kill every worker; what they run is answered with `status`."""
        for worker in list(self.all):
            for call in worker.calls:
                call.doom = (status, message)
            worker.kill()

    # Time

    def tick(self, now: float) -> bool:
        """End what is over its time; False when there is nothing to watch any more."""
        for worker in list(self.busy):
            running_s = now - worker.head_at
            if running_s < START_SEEN_S:
                continue
            head = worker.calls[0]
            if running_s > self._timeout_s:
                self._time_out(worker, head)
            elif head.log is None and not worker.unsure:
                head.log = self.log.begin(head.request_id, worker.head_at, want_tail=bool(head.flags & WANT_LOG_TAIL))
        return bool(self.busy or self.queue or self.starting)

    def _time_out(self, worker: WorkerLink, head: Call) -> None:
        if worker.unsure:
            worker.kill()  # one of them hangs; which one is seen when they run again, answered one by one
        else:
            worker.kill(
                head, RunStatus.TIMEOUT, f"the function ran longer than its time limit of {self.spec.timeout_s} s"
            )

    def give_up_waiting(self, now: float, limit_s: float) -> None:
        """Answer calls that wait longer than `limit_s` for a worker."""
        while self.queue and now - self.queue[0].arrived > limit_s:
            call = self.queue.popleft()
            self._fail(call, RunStatus.NO_RESOURCES, f"no worker became free within {limit_s:g} s", now)
