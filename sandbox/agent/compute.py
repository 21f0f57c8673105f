"""The compute module: is a host ready to run a function, and is it done with one that is gone? A consumer of its own step topic, idempotent."""

from __future__ import annotations

from sandbox.agent.bundle import Bundle, take_in
from sandbox.agent.codecache import CodeCache
from sandbox.agent.host import Host
from sandbox.agent.nodes import Nodes
from schemas.ids import FunctionKey
from schemas.records import StatusReason, StepCommand


class ComputeModule:
    """Answers steps of module `compute`."""

    def __init__(self, host: Host, nodes: Nodes, cache: CodeCache) -> None:
        self._host, self._nodes, self._cache = host, nodes, cache

    async def handle(self, step: StepCommand) -> tuple[StatusReason, ...]:
        """`prepare`: the package and its layers are unpacked here and the tenant has a node. `release`: the function's workers here end, idle ones at once.

        Returns:
            Why the step failed, nothing when it is done.

        Raises:
            StoreUnavailable, WorkerStartFailed: try again later.
        """
        if step.operation == "release":
            self._host.release(step.key)
            return ()
        if step.operation != "prepare" or step.config is None:
            return (StatusReason("InvalidParameter", f"module compute can't do {step.operation!r} on this"),)
        bundle = Bundle(self._cache)
        try:
            reason = await take_in(bundle, step.config)
            if reason is not None:
                return (reason,)
            node = await self._nodes.hold(FunctionKey.parse(step.key).appid)
            node.release()
        finally:
            bundle.release()
        return ()
