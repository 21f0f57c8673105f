"""The route module: can a function be reached by calls? A consumer of its own step topic, idempotent.

What is routed stands in the registry's topics, which every gateway follows by itself. This says that there is a way to a host before a function
becomes Active, and drops what this gateway remembers of one that goes.
"""

from __future__ import annotations

from collections.abc import Callable

from router.functions import Resolver
from schemas.errors import AgentUnavailable
from schemas.ids import FunctionKey
from schemas.records import StatusReason, StepCommand


class RouteModule:
    """Answers steps of module `route`. `hosts` counts the host agents that this gateway is connected to."""

    def __init__(self, resolver: Resolver, hosts: Callable[[], int]) -> None:
        self._resolver, self._hosts = resolver, hosts

    async def handle(self, step: StepCommand) -> tuple[StatusReason, ...]:
        """`publish` and `withdraw` a function.

        Raises:
            AgentUnavailable: no host can be reached: try again later.
        """
        if step.operation == "publish":
            if not self._hosts():
                raise AgentUnavailable("no host agent is connected, so the function could not be called")
            return ()
        if step.operation == "withdraw":
            self._resolver.forget(FunctionKey.parse(step.key))
            return ()
        return (StatusReason("InvalidParameter", f"module route can't do {step.operation!r}"),)
