"""The decisions about a tenant's concurrency: totals of namespaces, what is reserved for functions, workers that are kept ready.

Pure: no Faust, no clock, no I/O. They stand in the tenant's own entry, for every rule is about a sum over its rows. In MB:

    taken of a namespace    all that is reserved in it, and the provisioned workers of its functions without a reservation
    taken + 12,800          is at most the namespace's total; over all namespaces, at most the tenant's quota
    a function's workers    stay 100 workers below what it may use: its reservation, else what its namespace shares

Of the quota itself there is no row. What this core can't see: whether a function or version is there, and how much memory it has; the gateway
says it in the command.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from schemas.limits import PROVISION_GAP, TENANT_CONCURRENCY_MIB, UNRESERVED_MIB
from streams.layers import Refusal


@dataclass(frozen=True, slots=True)
class Grant:
    """A function's reservation, or (without a function) a namespace's total. `applied` as in its row."""

    namespace: str
    function: str
    memory_mib: int
    applied: int


@dataclass(frozen=True, slots=True)
class Provision:
    """Workers kept ready for one version: `number` of `memory_mib` each."""

    namespace: str
    function: str
    version: str
    number: int
    memory_mib: int
    applied: int

    @property
    def all_mib(self) -> int:
        """Memory of all of them."""
        return self.number * self.memory_mib


@dataclass(frozen=True, slots=True)
class Allotment:
    """All limits of one tenant."""

    totals: tuple[Grant, ...] = ()
    reserved: tuple[Grant, ...] = ()
    provisions: tuple[Provision, ...] = ()


NONE = Allotment()


def total_mib(allotment: Allotment, namespace: str) -> int:
    """What a namespace may use in all."""
    return next((t.memory_mib for t in allotment.totals if t.namespace == namespace), TENANT_CONCURRENCY_MIB)


def reserved_mib(allotment: Allotment, namespace: str, function: str) -> int | None:
    """A function's reservation, None when it has none."""
    found = (r.memory_mib for r in allotment.reserved if r.namespace == namespace and r.function == function)
    return next(found, None)


def taken_mib(allotment: Allotment, namespace: str | None = None) -> int:
    """What is reserved, or provisioned without a reservation, in a namespace or in all of them."""
    own = {(r.namespace, r.function) for r in allotment.reserved}
    reserved = sum(r.memory_mib for r in allotment.reserved if namespace in (None, r.namespace))
    loose = (p for p in allotment.provisions if (p.namespace, p.function) not in own)
    return reserved + sum(p.all_mib for p in loose if namespace in (None, p.namespace))


def put_reserved(allotment: Allotment, wanted: Grant) -> Allotment | Refusal:
    """Reserve memory for a function, or change how much."""
    others = _without(allotment.reserved, wanted)
    then = replace(allotment, reserved=(*others, wanted))
    if (too_little := _too_little(then, wanted.namespace, wanted.function)) is not None:
        return too_little
    return _whole(then, wanted.namespace, "FailedOperation.ReservedExceedTotal")


def put_total(allotment: Allotment, wanted: Grant) -> Allotment | Refusal:
    """Set what a namespace may use in all."""
    if wanted.memory_mib > TENANT_CONCURRENCY_MIB:
        return Refusal(
            "LimitExceeded.TotalConcurrencyMemory",
            f"a namespace has at most the tenant's quota of {TENANT_CONCURRENCY_MIB} MB",
        )
    then = replace(allotment, totals=(*_without(allotment.totals, wanted), wanted))
    return _whole(then, wanted.namespace, "FailedOperation.ReservedExceedTotal")


def delete_grant(allotment: Allotment, gone: Grant) -> Allotment:
    """Without a reservation or total; the same when it is not there, or was changed after `gone.applied` (which is then 0 or more).

    Never too much: what is freed is shared, and a function's workers are less than what was reserved for it.
    """
    if gone.function:
        return replace(allotment, reserved=_without(allotment.reserved, gone, changed_too=False))
    return replace(allotment, totals=_without(allotment.totals, gone, changed_too=False))


def put_provision(allotment: Allotment, wanted: Provision) -> Allotment | Refusal:
    """Keep workers of a version ready, or change how many."""
    others = tuple(p for p in allotment.provisions if not _is_same(p, wanted))
    then = replace(allotment, provisions=(*others, wanted))
    if (too_little := _too_little(then, wanted.namespace, wanted.function)) is not None:
        return too_little
    return _whole(then, wanted.namespace, "FailedOperation.ProvisionedExceedAvailable")


def delete_provision(allotment: Allotment, gone: Provision) -> Allotment:
    """Without the workers of a version; the same when there are none, or they were changed after `gone.applied` (when 0 or more)."""
    left = tuple(p for p in allotment.provisions if not (_is_same(p, gone) and gone.applied in (-1, p.applied)))
    return replace(allotment, provisions=left)


def _is_same(a: Provision, b: Provision) -> bool:
    return (a.namespace, a.function, a.version) == (b.namespace, b.function, b.version)


def _without(grants: Iterable[Grant], gone: Grant, *, changed_too: bool = True) -> tuple[Grant, ...]:
    return tuple(
        s
        for s in grants
        if (s.namespace, s.function) != (gone.namespace, gone.function)
        or not (changed_too or gone.applied in (-1, s.applied))
    )


def _too_little(then: Allotment, namespace: str, function: str) -> Refusal | None:
    """A refusal when a function's workers don't stay `PROVISION_GAP` below what it may use."""
    own = [p for p in then.provisions if (p.namespace, p.function) == (namespace, function)]
    if not own:
        return None
    needed_mib = sum(p.all_mib for p in own) + PROVISION_GAP * max(p.memory_mib for p in own)
    reserved = reserved_mib(then, namespace, function)
    if reserved is not None:
        has_mib, code, whose = reserved, "FailedOperation.ProvisionedExceedReserved", "is reserved for it"
    else:
        in_all = sum(r.memory_mib for r in then.reserved if r.namespace == namespace)
        has_mib = total_mib(then, namespace) - in_all
        code, whose = "FailedOperation.ProvisionedExceedAvailable", "its namespace shares"
    if needed_mib <= has_mib:
        return None
    return Refusal(
        code,
        f"the provisioned workers of function {function!r} have to stay {PROVISION_GAP} below its concurrency: with that they take"
        f" {needed_mib} MB, and {has_mib} MB {whose}",
    )


def _whole(then: Allotment, namespace: str, code: str) -> Allotment | Refusal:
    """The allotment when its sums hold, else why not."""
    bounds = ((f"of namespace {namespace!r}", namespace, total_mib(then, namespace)),)
    for whose, scope, bound_mib in (*bounds, ("of the tenant", None, TENANT_CONCURRENCY_MIB)):
        taken = taken_mib(then, scope)
        if taken + UNRESERVED_MIB > bound_mib:
            return Refusal(
                code,
                f"{taken} MB would be reserved or provisioned, and {UNRESERVED_MIB} MB must be left to share: together at most the"
                f" {bound_mib} MB {whose}",
            )
    return then
