"""The code module: is a package fit to run? A consumer of its own step topic (DESIGN.md section 3), idempotent.

User code is read here, never run: the source is parsed by a jailed worker.
"""

from __future__ import annotations

from sandbox.agent.bundle import Bundle, take_in
from sandbox.agent.codecache import CodeCache
from sandbox.agent.nodes import Nodes
from schemas.ids import FunctionKey
from schemas.records import StatusReason, StepCommand
from schemas.specs import spec_of_config


class CodeModule:
    """Answers steps of module `code`."""

    def __init__(self, nodes: Nodes, cache: CodeCache) -> None:
        self._nodes, self._cache = nodes, cache

    async def handle(self, step: StepCommand) -> tuple[StatusReason, ...]:
        """`store`: the package and its layers are in the store, whole, and can be unpacked. `check`: their code has the handler.

        Returns:
            Why it can't run, nothing when it can. All packages are then in this host's cache, and the tenant has a node here.

        Raises:
            StoreUnavailable, WorkerStartFailed: try again later.
        """
        if step.config is None:
            return (StatusReason("InvalidParameter", f"step {step.operation} of module code names no configuration"),)
        bundle = Bundle(self._cache)
        try:
            reason = await take_in(bundle, step.config)
            if reason is not None:
                return (reason,)
            if step.operation == "store":
                return ()
            key = FunctionKey.parse(step.key)
            spec = spec_of_config(
                step.config, appid=key.appid, uin="", namespace=key.namespace, function=key.name, region=""
            )
            node = await self._nodes.hold(spec.appid)
            try:
                layers = [bundle.path(sha256) for sha256 in spec.layers]
                return await node.node.check_code(spec, bundle.path(spec.code_sha256), layers)
            finally:
                node.release()
        finally:
            bundle.release()
