"""How a worker comes up: node, code, fork, LOAD, READY; and what its failure means for the calls that wait."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from sandbox.agent.bundle import Bundle
from sandbox.agent.codecache import CodeCache
from sandbox.agent.functionpool import Failure, FunctionPool
from sandbox.agent.nodes import NodeLease, Nodes
from sandbox.agent.worker import WorkerLink
from sandbox.runner.rootfs import PYTHON_HOME
from schemas.errors import BadPackage, PackageCorrupt, PenstockError
from schemas.frames import Kind, Spec, json_frame
from schemas.runstatus import RunStatus

CODE_DIR: Final = "/var/user"
"""Where a worker finds the code (SCF.md 4.5: USER_CODE_ROOT)."""
LAYERS_DIR: Final = "/opt"
"""Where it finds what its layers hold, the later ones over the earlier."""
FORK_TIMEOUT_S: Final = 30.0
USER_FAILURE_S: Final = 1.0
"""How long a failed start of the user's code answers further calls, before it is tried again."""
PLATFORM_FAILURE_S: Final = 0.5
_INIT_STATUSES: Final = {RunStatus.NO_HANDLER, RunStatus.USER_CODE, RunStatus.INIT_FAILED, RunStatus.BAD_PARAMETER}


class StartFailed(Exception):  # a value between this module and its caller, never seen outside
    """A worker did not come up; `early` is what it printed."""

    def __init__(self, status: RunStatus, message: str, early: list[tuple[int, bytes]] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.early = status, message, early or []

    def failure(self, now: float) -> Failure:
        """As the pool remembers it."""
        lasts = PLATFORM_FAILURE_S if self.status == RunStatus.INTERNAL else USER_FAILURE_S
        return Failure(self.status, self.message, now + lasts)


class Starter:
    """Starts workers."""

    def __init__(self, nodes: Nodes, cache: CodeCache) -> None:
        self._nodes, self._cache = nodes, cache

    async def start(self, pool: FunctionPool, adopt: Any) -> WorkerLink:
        """A worker that is ready for calls.

        Args:
            pool: whose worker it is to be.
            adopt: called with the WorkerLink as soon as there is a process; from then on its end is watched by the caller.

        Raises:
            StartFailed: what the waiting calls are answered with. Nothing is left of the attempt.
        """
        spec = pool.spec
        try:
            node = await self._nodes.hold(spec.appid)
            code = Bundle(self._cache)
            try:
                await code.add(spec.code_sha256, *spec.layers)
            except BaseException:
                code.release()
                node.release()
                raise
        except (BadPackage, PackageCorrupt) as exc:
            raise StartFailed(RunStatus.USER_CODE, f"the code package or a layer can't be used: {exc}") from exc
        except (PenstockError, OSError) as exc:  # TimeoutError is an OSError
            raise StartFailed(RunStatus.INTERNAL, f"no worker can be started: {_words(exc)}") from exc
        worker = await self._fork(pool, node, code)
        adopt(worker)
        await self._load(worker, spec)
        return worker

    async def _fork(self, pool: FunctionPool, node: NodeLease, code: Bundle) -> WorkerLink:
        spec = pool.spec

        def release() -> None:
            node.release()
            code.release()

        try:
            async with asyncio.timeout(FORK_TIMEOUT_S):
                started = await node.node.start_worker(
                    spec,
                    code.path(spec.code_sha256),
                    [code.path(sha256) for sha256 in spec.layers],
                    environment=environment_of(spec),
                )
        except (PenstockError, OSError) as exc:
            release()
            raise StartFailed(RunStatus.INTERNAL, f"no worker can be started: {_words(exc)}") from exc
        except BaseException:
            release()
            raise
        level = 5 if node.made else 2 if code.fetched else 1
        return WorkerLink(pool, started, level=level, memory_mib=spec.memory_mib, release=release)

    async def _load(self, worker: WorkerLink, spec: Spec) -> None:
        worker.send(json_frame(Kind.LOAD, 0, load_request(spec)))
        worker.flush()
        try:
            async with asyncio.timeout(spec.init_timeout_s):
                ok, said = await worker.ready()
        except TimeoutError:
            worker.kill()
            await worker.driver.exited()
            raise StartFailed(
                RunStatus.INIT_TIMEOUT, f"{_not_yet(spec)} within {spec.init_timeout_s} s", worker.early_lines()
            ) from None
        except ConnectionError:
            raise _died(worker, spec) from None
        except asyncio.CancelledError:
            worker.kill()
            raise
        if not ok:
            worker.kill()
            raise _refused(worker, said)


def _not_yet(spec: Spec) -> str:
    return "bootstrap asked for no event and did not say ready" if spec.is_custom else "the code was not loaded"


def _words(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _died(worker: WorkerLink, spec: Spec) -> StartFailed:
    ended, early = worker.ended, worker.early_lines()
    if ended is not None and ended.reason == "oom":
        what = f"the function used more memory than its {spec.memory_mib} MB while it was loaded"
        return StartFailed(RunStatus.MEMORY, what, early)
    code = 0 if ended is None else ended.code
    if spec.is_custom:
        what = f"bootstrap exited with code {code} before it was ready for events"
        return StartFailed(RunStatus.CONTAINER_EXIT, what, early)
    how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
    return StartFailed(RunStatus.PROCESS_EXIT, f"the function's process {how} while it was loaded", early)


def _refused(worker: WorkerLink, said: dict[str, Any]) -> StartFailed:
    """READY with ok false: a status of those that user code may cause, a message, and perhaps a traceback for the log."""
    status = RunStatus.INIT_FAILED
    if said.get("status") in set(_INIT_STATUSES):
        status = RunStatus(said["status"])
    early = worker.early_lines()
    if trace := str(said.get("trace") or ""):
        early.append((2, trace.encode(errors="replace")))
    return StartFailed(status, str(said.get("message") or "the code could not be loaded")[:4096], early)


def environment_of(spec: Spec) -> dict[str, str]:
    """What user code sees in os.environ: the user's variables and SCF's own (SCF.md 4.5), which win."""
    return {
        "PATH": f"{PYTHON_HOME}/bin:/usr/local/bin:/usr/bin:/bin:{LAYERS_DIR}/bin",
        "HOME": "/tmp",  # noqa: S108 - inside the worker
        "LANG": "C.UTF-8",
        **spec.environment,
        "PWD": CODE_DIR,
        "PYTHONPATH": f"{CODE_DIR}:{LAYERS_DIR}:{LAYERS_DIR}/python" if spec.layers else CODE_DIR,
        "USER_CODE_ROOT": f"{CODE_DIR}/",
        "TENCENTCLOUD_RUNENV": "SCF",
        "TENCENTCLOUD_REGION": spec.region,
        "TENCENTCLOUD_APPID": spec.appid,
        "SCF_RUNTIME": spec.runtime,
        "SCF_FUNCTIONNAME": spec.function,
        "SCF_FUNCTIONVERSION": spec.version,
        "SCF_NAMESPACE": spec.namespace,
    }


def context_of(spec: Spec) -> dict[str, Any]:
    """SCF's context (SCF.md 4.5) but for `request_id`, which each invocation adds."""
    variables = {"SCF_NAMESPACE": spec.namespace, **spec.environment}
    return {
        "memory_limit_in_mb": spec.memory_mib,
        "time_limit_in_ms": spec.timeout_s * 1000,
        "function_name": spec.function,
        "function_version": spec.version,
        "namespace": spec.namespace,
        "tencentcloud_region": spec.region,
        "tencentcloud_appid": spec.appid,
        "tencentcloud_uin": spec.uin,
        "environment": json.dumps(variables, separators=(",", ":"), ensure_ascii=False),
        "environ": ";".join(f"{name}={value}" for name, value in variables.items()),
    }


def load_request(spec: Spec) -> dict[str, Any]:
    """LOAD's content."""
    return {
        "handler": spec.handler,
        "code_dir": CODE_DIR,
        "environment": environment_of(spec),
        "context": context_of(spec),
    }
