"""All function pools of one host: who may start a worker, who has to make room, what runs over its time.

A host agent alone decides over its workers. Memory is counted by what functions may use, not by what they use.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from infra.clock import mono_s
from infra.telemetry import get_logger
from sandbox.agent.functionpool import FunctionPool
from sandbox.agent.logs import FunctionLog, LogShipper
from sandbox.agent.nodes import Nodes
from sandbox.agent.starting import Starter, StartFailed
from sandbox.agent.worker import WorkerLink
from sandbox.pool import IdleWorker, PoolLimits, evictions, starts_wanted
from schemas.frames import Spec
from schemas.runstatus import RunStatus

log = get_logger("sandbox.host")

TICK_S: Final = 0.02
HOUSEKEEPING_S: Final = 1.0
DEATH_S: Final = 5.0
"""How long the end of killed workers is waited for at the stop."""


def default_budget_mib() -> int:
    """80 % of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 8 // 10 // (1 << 20)


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Bounds of one host.

    `budget_mib` is shared out to workers by their memory limit. `keep_alive_s` is how long a worker without calls stays, `superseded_s` one of an
    older configuration. `forks_per_node` and `forks` bound starts at a time; `queue_wait_s` how long a call waits for a worker.
    """

    budget_mib: int = field(default_factory=default_budget_mib)
    keep_alive_s: float = 60.0
    superseded_s: float = 10.0
    forks_per_node: int = 4
    forks: int = 16
    queue_wait_s: float = 25.0
    pool: PoolLimits = field(default_factory=lambda: PoolLimits(cores=os.cpu_count() or 1))

    @property
    def kept_mib(self) -> int:
        """What workers that are kept ready may take, so that other functions find room."""
        return self.budget_mib * 3 // 4


class Host:
    """The pools, and what they share."""

    def __init__(self, limits: HostLimits, nodes: Nodes, starter: Starter, shipper: LogShipper) -> None:
        self.limits, self.nodes = limits, nodes
        self.pools: dict[bytes, FunctionPool] = {}
        self.draining = False
        self._starter, self._shipper = starter, shipper
        self._latest: dict[tuple[str, str], FunctionPool] = {}
        self._unflushed: list[WorkerLink] = []
        self._active: dict[FunctionPool, None] = {}
        self._waiting: dict[FunctionPool, None] = {}
        self._kept: dict[FunctionPool, None] = {}
        """Pools with workers that are to be ready."""
        self._forking: dict[str, int] = {}
        self._forks = 0
        self._used_mib = 0
        self._leaving_mib = 0
        self._full = False
        """No start was possible a moment ago; looked at again at the next tick or end."""
        self._starts: set[asyncio.Task[None]] = set()
        self._watches: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._keeping: asyncio.TimerHandle | None = None

    # Pools

    def pool_for(self, spec: Spec) -> FunctionPool:
        """The pool of a function version; an older configuration of the same version is left to run dry."""
        identity = identity_of(spec)
        pool = self.pools.get(identity)
        if pool is None:
            function_log = FunctionLog(self._shipper, spec.key, spec.version, spec.memory_mib)
            pool = FunctionPool(self, spec, identity, function_log, self.limits.pool)
            pool.last_used = mono_s()
            self.pools[identity] = pool
            older = self._latest.get((spec.key, spec.version))
            if older is not None:
                older.superseded = True
            self._latest[spec.key, spec.version] = pool
        return pool

    def keep(self, spec: Spec, number: int) -> FunctionPool:
        """Have so many (at least one) workers of a function version ready from now on, called or not.

        All that are kept take at most `limits.kept_mib` of this host; the pool's `kept` says how many it got of `number`.
        """
        pool = self.pool_for(spec)
        taken_mib = sum(p.kept * p.spec.memory_mib for p in self._kept if p is not pool)
        pool.kept = max(0, min(number, (self.limits.kept_mib - taken_mib) // spec.memory_mib))
        if pool.kept:
            pool.superseded = False
            self._kept[pool] = None
            self._start_kept()
        else:
            self._kept.pop(pool, None)
        return pool

    def let_go(self, pool: FunctionPool) -> None:
        """Its workers go like any others from now on."""
        pool.kept = 0
        self._kept.pop(pool, None)

    def release(self, function: str) -> None:
        """A function (`appid/namespace/name`) is gone: its idle workers end now, the others soon after what they run."""
        for pool in self.pools.values():
            if pool.spec.key == function:
                pool.superseded = True
                self.let_go(pool)
                for worker in list(pool.idle):
                    self._retire(worker)

    def facts(self) -> dict[str, int]:
        """For people: what the host holds now."""
        return {
            "functions": len(self.pools),
            "nodes": len(self.nodes),
            "workers": sum(len(p.all) for p in self.pools.values()),
            "idle": sum(len(p.idle) for p in self.pools.values()),
            "queued": sum(len(p.queue) for p in self.pools.values()),
            "used_mib": self._used_mib,
            "budget_mib": self.limits.budget_mib,
        }

    # What pools call

    def unflushed(self, worker: WorkerLink) -> None:
        """See PoolHost."""
        self._unflushed.append(worker)

    def flush(self) -> None:
        """See PoolHost."""
        if self._unflushed:
            workers, self._unflushed = self._unflushed, []
            for worker in workers:
                worker.flush()

    def busy(self, pool: FunctionPool) -> None:
        """See PoolHost."""
        self._active[pool] = None
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def want_workers(self, pool: FunctionPool) -> None:
        """See PoolHost."""
        self.busy(pool)
        self._waiting[pool] = None
        if not self._full and pool.starting < len(pool.queue):
            self._start_some(pool)

    def ended(self, pool: FunctionPool, worker: WorkerLink) -> None:
        """See PoolHost."""
        self._used_mib -= worker.memory_mib
        if worker.leaving:
            self._leaving_mib -= worker.memory_mib
        self._serve_waiting()

    # Starts

    def _serve_waiting(self) -> None:
        self._full = False
        for pool in list(self._waiting):
            del self._waiting[pool]  # to the end of the line, when it still waits
            if pool.queue:
                self._waiting[pool] = None
                self._start_some(pool)
        self._start_kept()

    def _start_kept(self) -> None:
        """Start workers that are to be ready and are not, after those that calls wait for."""
        if not self._kept:
            return
        now = mono_s()
        for pool in self._kept:
            if pool.missing(now):
                self._start_some(pool)
                if self._full:
                    self._full = False  # calls need not wait for it
                    return

    def _start_some(self, pool: FunctionPool) -> None:
        """Start as many workers for a pool as it wants and may have now."""
        now = mono_s()
        if self.draining or (pool.failure is not None and now < pool.failure.until):
            return
        tenant, need_mib = pool.spec.appid, pool.spec.memory_mib
        wanted = starts_wanted(
            queued=len(pool.queue),
            waited_us=int((now - pool.queue[0].arrived) * 1e6) if pool.queue else 0,
            running_us=int(pool.running_s(now) * 1e6),
            ready=pool.ready,
            starting=pool.starting,
            times=pool.times,
            limits=pool.limits,
        )
        for _ in range(max(wanted, pool.missing(now))):
            at_once = self._forking.get(tenant, 0)
            if at_once >= self.limits.forks_per_node or self._forks >= self.limits.forks:
                self._full = True
                return
            if not self._make_room(need_mib):
                self._full = True
                return
            self._used_mib += need_mib
            self._forking[tenant] = at_once + 1
            self._forks += 1
            pool.starting += 1
            self._spawn(self._start(pool), self._starts)

    def _make_room(self, need_mib: int) -> bool:
        """True when that much memory is free; else idle workers may have been told to go, and the caller waits for their end."""
        free_mib = self.limits.budget_mib - self._used_mib
        if free_mib >= need_mib:
            return True
        if not self._used_mib:
            return True  # one worker larger than the budget may still run alone
        free_mib += self._leaving_mib
        if free_mib >= need_mib:
            return False
        idle = [worker for pool in self.pools.values() for worker in pool.idle[: pool.spare]]
        rows = [IdleWorker(i, w.memory_mib, int(w.last_used * 1e6)) for i, w in enumerate(idle)]
        for index in evictions(rows, need_mib=need_mib, free_mib=free_mib) or ():
            self._retire(idle[index])
        return False

    async def _start(self, pool: FunctionPool) -> None:
        worker: WorkerLink | None = None

        def adopt(made: WorkerLink) -> None:
            nonlocal worker
            worker = made
            pool.all.add(made)
            self._forked(pool.spec.appid)
            self._spawn(made.watch(), self._watches)
            self._serve_waiting()

        try:
            ready = await self._starter.start(pool, adopt)
        except StartFailed as exc:
            now = mono_s()
            log.info("a worker did not start", function=pool.spec.key, status=int(exc.status), reason=exc.message)
            pool.start_failed(exc.failure(now), exc.early, now)
        else:
            if ready.usable:
                pool.worker_ready(ready, mono_s())
        finally:
            pool.starting -= 1
            if worker is None:  # else its end gives the memory back
                self._forked(pool.spec.appid)
                self._used_mib -= pool.spec.memory_mib
            self._serve_waiting()
            self.flush()

    def _forked(self, tenant: str) -> None:
        """A fork is over, well or not."""
        self._forks -= 1
        self._forking[tenant] -= 1
        if not self._forking[tenant]:
            del self._forking[tenant]

    def _spawn(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._look_at)

    @staticmethod
    def _look_at(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a worker's task failed", exc_info=exc)

    def _retire(self, worker: WorkerLink) -> None:
        """End an idle worker."""
        if not worker.leaving:
            worker.leaving = True
            self._leaving_mib += worker.memory_mib
        worker.kill()

    # Time

    def start(self) -> None:
        """Begin housekeeping."""
        self._keeping = asyncio.get_running_loop().call_later(HOUSEKEEPING_S, self._keep_house)

    def _tick(self) -> None:
        self._ticking = None
        now = mono_s()
        for pool in list(self._active):
            if not pool.tick(now):
                del self._active[pool]
        self._serve_waiting()
        for pool in list(self._waiting):
            pool.give_up_waiting(now, self.limits.queue_wait_s)
        self.flush()
        if self._active and self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _keep_house(self) -> None:
        now = mono_s()
        for pool in list(self.pools.values()):
            keep_s = self.limits.superseded_s if pool.superseded else self.limits.keep_alive_s
            for worker in pool.idle[: pool.spare]:  # least recently used first
                if now - worker.last_used <= keep_s:
                    break
                self._retire(worker)
            if not (pool.all or pool.queue or pool.starting or pool.kept) and now - pool.last_used > keep_s:
                self._forget(pool)
        self._start_kept()
        self.nodes.close_unused(now)
        self._keeping = asyncio.get_running_loop().call_later(HOUSEKEEPING_S, self._keep_house)

    def _forget(self, pool: FunctionPool) -> None:
        pool.closed = True
        del self.pools[pool.identity]
        self._active.pop(pool, None)
        self._waiting.pop(pool, None)
        name = (pool.spec.key, pool.spec.version)
        if self._latest.get(name) is pool:
            del self._latest[name]

    # The end

    async def close(self, deadline_s: float) -> None:
        """Answer what waits, let what runs finish until the deadline, then end all workers and nodes."""
        self.draining = True
        until = mono_s() + deadline_s
        for pool in self.pools.values():
            for call in list(pool.queue):
                pool.end(call, RunStatus.INTERNAL, "the host agent is stopping", mono_s())
        for task in list(self._starts):
            task.cancel()
        while any(p.busy for p in self.pools.values()) and mono_s() < until:  # noqa: ASYNC110 - an event costs every call
            await asyncio.sleep(TICK_S)
        for pool in self.pools.values():
            pool.end_all(RunStatus.INTERNAL, "the host agent stopped before the function ended")
        for handle in (self._ticking, self._keeping):
            if handle is not None:
                handle.cancel()
        if tasks := self._starts | self._watches:
            await asyncio.wait(tasks, timeout=DEATH_S)
        await self.nodes.close()


def identity_of(spec: Spec) -> bytes:
    """What tells one function version and configuration from another."""
    fields = {name: getattr(spec, name) for name in Spec.__dataclass_fields__}
    return sha256(json.dumps(fields, sort_keys=True).encode()).digest()
