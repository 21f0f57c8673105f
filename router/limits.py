"""What may run at once, in MB: budgets that invocations take from and give back. Pure.

A function with a reservation has a budget of its own. All others take from two: what their namespace shares (its total less all that is
reserved in it) and what the tenant shares (the quota less all that is reserved). A budget that was made smaller than what runs lets nothing in
until enough has ended.
"""

from __future__ import annotations

from schemas.concurrency import TOTAL, LimitRecord
from schemas.ids import FunctionKey
from schemas.limits import TENANT_CONCURRENCY_MIB


class Budget:
    """Memory that may be in use at once. Plain attributes: the hot path adds to them."""

    __slots__ = ("limit_mib", "used_mib", "what")

    def __init__(self, what: str, limit_mib: int) -> None:
        self.what, self.limit_mib, self.used_mib = what, limit_mib, 0


class Limits:
    """The budgets of all tenants, kept up to date by the rows of their limits."""

    def __init__(self, *, quota_mib: int = TENANT_CONCURRENCY_MIB) -> None:
        self._quota_mib = quota_mib
        self._rows: dict[str, dict[tuple[str, str], int]] = {}
        """Per tenant, MB by namespace and function (or `TOTAL`)."""
        self._reserved: dict[FunctionKey, Budget] = {}
        self._namespaces: dict[tuple[str, str], Budget] = {}
        self._tenants: dict[str, Budget] = {}

    def put(self, key: str, row: LimitRecord | None) -> FunctionKey | None:
        """Take in what a row says now, None when it is gone. The function whose budgets are others from now on, if there is one."""
        at = FunctionKey.parse(key)
        rows = self._rows.setdefault(at.appid, {})
        if row is None:
            rows.pop((at.namespace, at.name), None)
        else:
            rows[at.namespace, at.name] = row.memory_mib
        changed = self._reserve(at, row) if at.name != TOTAL else None
        self._share_out(at.appid)
        if not rows:
            del self._rows[at.appid]
        return changed

    def of(self, key: FunctionKey) -> tuple[Budget, ...]:
        """The budgets that this function's invocations take from."""
        own = self._reserved.get(key)
        if own is not None:
            return (own,)
        where = (key.appid, key.namespace)
        namespace, tenant = self._namespaces.get(where), self._tenants.get(key.appid)
        if namespace is None or tenant is None:
            namespace = self._namespaces.setdefault(where, Budget(f"what namespace {key.namespace} shares", 0))
            tenant = self._tenants.setdefault(key.appid, Budget("what the account shares", 0))
            self._share_out(key.appid)
        return (namespace, tenant)

    def _reserve(self, at: FunctionKey, row: LimitRecord | None) -> FunctionKey | None:
        budget = self._reserved.get(at)
        if row is None:
            return at if self._reserved.pop(at, None) is not None else None
        if budget is not None:
            budget.limit_mib = row.memory_mib
            return None
        self._reserved[at] = Budget("what is reserved for the function", row.memory_mib)
        return at

    def _share_out(self, appid: str) -> None:
        """Set what the tenant and its namespaces share. A scan: for changes, and the first call in a namespace."""
        rows = self._rows.get(appid, {})
        reserved: dict[str, int] = {}
        for (namespace, function), memory_mib in rows.items():
            if function != TOTAL:
                reserved[namespace] = reserved.get(namespace, 0) + memory_mib
        for (owner, namespace), budget in self._namespaces.items():
            if owner == appid:
                total_mib = rows.get((namespace, TOTAL), self._quota_mib)
                budget.limit_mib = total_mib - reserved.get(namespace, 0)
        if (tenant := self._tenants.get(appid)) is not None:
            tenant.limit_mib = self._quota_mib - sum(reserved.values())
