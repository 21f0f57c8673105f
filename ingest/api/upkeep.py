"""Limits end with what they are for: a reservation with its function, a total with its namespace, kept workers with their version.

Functions and limits are decided in different places (one keyed by function, the other by tenant), so a gateway that sees the one go tells the
other. Each says which change of the row it means, so that a new function of the same name keeps what was put for it; every gateway says it,
and once is as good as often. What a crash left undone is found by `sweep`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from ingest.api.ports import Background, Clock, Commands, View
from ingest.api.services import new_command_id
from schemas.concurrency import TOTAL, LimitRecord, ProvisionRecord, limit_key
from schemas.ids import DEFAULT_NAMESPACE
from schemas.records import FunctionRecord, VersionRecord
from schemas.tenants import NamespaceRecord, TenantCommand


@dataclass(frozen=True, slots=True)
class LimitUpkeep:
    """Watches the registry; begins when it is made."""

    functions: View[FunctionRecord]
    versions: View[VersionRecord]
    namespaces: View[NamespaceRecord]
    limits: View[LimitRecord]
    provisions: View[ProvisionRecord]
    commands: Commands
    background: Background
    clock: Clock
    _found: set[tuple[str, int]] = field(default_factory=set)
    """What the last sweep found without what it is for: the key, and which change of the row."""

    def __post_init__(self) -> None:
        self.functions.subscribe(self._function_changed)
        self.versions.subscribe(self._version_changed)
        self.namespaces.subscribe(self._namespace_changed)

    def sweep(self) -> None:
        """End all limits whose function, version or namespace is not there now and was not at the last sweep: topics are read side by side, and
        a new function may be seen after what was put for it. A scan of the limits.
        """
        found = {(key, row.applied): row for key, row in self._left_over()}
        for row in (row for at, row in found.items() if at in self._found):
            self._end(row)
        self._found.clear()
        self._found.update(found)

    def _left_over(self) -> Iterator[tuple[str, LimitRecord | ProvisionRecord]]:
        holding = {key.rpartition("/")[0] for key in self.functions.items()}
        for key, limit in self.limits.items().items():
            scope = f"{limit.appid}/{limit.namespace}"
            if limit.function != TOTAL:
                is_needed = self.functions.get(key) is not None
            else:
                is_needed = limit.namespace == DEFAULT_NAMESPACE or scope in holding
                is_needed = is_needed or self.namespaces.get(scope) is not None
            if not is_needed:
                yield key, limit
        for key, provision in self.provisions.items().items():
            if self.versions.get(key) is None:
                yield key, provision

    def _function_changed(self, key: str, record: FunctionRecord | None) -> None:
        if record is None:
            self._end(self.limits.get(key))

    def _version_changed(self, key: str, record: VersionRecord | None) -> None:
        if record is None:
            self._end(self.provisions.get(key))

    def _namespace_changed(self, key: str, record: NamespaceRecord | None) -> None:
        appid, _, namespace = key.partition("/")
        if record is None and namespace != DEFAULT_NAMESPACE:
            self._end(self.limits.get(limit_key(appid, namespace, TOTAL)))

    def _end(self, row: LimitRecord | ProvisionRecord | None) -> None:
        if row is None:
            return
        kind = "delete-limit" if isinstance(row, LimitRecord) else "delete-provision"
        command = TenantCommand(
            new_command_id(), kind, self.clock.unix_ms(), row.appid, row.uin,
            limit=row if isinstance(row, LimitRecord) else None,
            provision=row if isinstance(row, ProvisionRecord) else None,
        )  # fmt: skip
        self.background.later(f"{kind} of {row.namespace}/{row.function}", partial(self._send, command))

    async def _send(self, command: TenantCommand) -> bool:
        await self.commands.send(command.appid, command)
        return True
