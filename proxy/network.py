"""The network module: connects a function to its tenant's VPC. A consumer of its own step topic, idempotent.

There are no VPC proxies yet, and no function can ask for a VPC (the API refuses VpcConfig), so there is nothing to connect.
"""

from __future__ import annotations

from schemas.records import StatusReason, StepCommand

_OPERATIONS = ("attach", "detach")


class NetworkModule:
    """Answers steps of module `network`."""

    async def handle(self, step: StepCommand) -> tuple[StatusReason, ...]:
        """`attach` and `detach` of a function without a VPC: done."""
        if step.operation not in _OPERATIONS:
            return (StatusReason("InvalidParameter", f"module network can't do {step.operation!r}"),)
        return ()
