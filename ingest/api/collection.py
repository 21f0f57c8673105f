"""Code packages that nothing needs any more: which may go, and the loop that lets them go.

A package is named by its hash and belongs to every function and version whose configuration names it, and to every layer version. It is deleted when for a whole hour no look
found it needed. A command that streams has not worked off yet may name a package that no record shows: while streams is away the hour does not begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from infra.objectstore.store import StoredObject
from infra.telemetry import get_logger
from ingest.api.ports import Clock, View
from schemas.errors import PenstockError
from schemas.package import package_object
from schemas.records import FunctionRecord, VersionRecord
from schemas.tenants import LayerRecord

KEEP_S: Final = 3_600.0
LOOK_EVERY_S: Final = 300.0
DELETIONS_AT_ONCE: Final = 100
PREFIX: Final = package_object("").partition("/")[0] + "/"
"""Nothing else in the bucket is looked at."""

log = get_logger("ingest.api.collection")


@dataclass(frozen=True, slots=True)
class Watch:
    """Since when (seconds of a clock that only goes forward) each object is known to be unneeded, by its name and time of writing."""

    since_s: Mapping[tuple[str, int], float] = field(default_factory=dict)


def look(
    watch: Watch, objects: Iterable[StoredObject], needed: frozenset[str], now_s: float, *, keep_s: float = KEEP_S
) -> tuple[Watch, list[StoredObject]]:
    """One look at the store: what is watched from now on, and what may be deleted now. An object that is written again begins anew."""
    since_s = {
        (entry.key, entry.modified_unix_ms): watch.since_s.get((entry.key, entry.modified_unix_ms), now_s)
        for entry in objects
        if entry.key not in needed
    }
    due = [StoredObject(key, 0, written_ms) for (key, written_ms), at_s in since_s.items() if now_s - at_s >= keep_s]
    return Watch(since_s), due


def needed_objects(
    functions: Iterable[FunctionRecord], versions: Iterable[VersionRecord], layers: Iterable[LayerRecord]
) -> frozenset[str]:
    """Names of all objects that some function or version runs, or is to run, and of all layers, bound or not."""
    configs = [config for record in functions for config in (record.serving, record.proposed) if config is not None]
    configs += [version.config for version in versions]
    hashes = {config.code_sha256 for config in configs}
    hashes |= {ref.sha256 for config in configs for ref in config.layers} | {layer.content_sha256 for layer in layers}
    return frozenset(map(package_object, hashes))


class Store(Protocol):
    """infra.objectstore.store.ObjectStore, as far as it is needed."""

    async def list(self, bucket: str, prefix: str = "") -> Sequence[StoredObject]:
        """All objects whose name begins so."""
        ...

    async def delete(self, bucket: str, key: str) -> None:
        """Delete one; one that is not there is fine."""
        ...


class PackageCollector:
    """Deletes packages that nothing needs.

    Args:
        store, bucket: where packages are; no other fabric may have its packages in this bucket.
        functions, versions, layers: the registry's views.
        is_whole: True while the views follow what callers have asked for, which takes streams.
        clock: `mono_s` of it.
    """

    def __init__(
        self,
        store: Store,
        bucket: str,
        *,
        functions: View[FunctionRecord],
        versions: View[VersionRecord],
        layers: View[LayerRecord],
        is_whole: Callable[[], bool],
        clock: Clock,
        keep_s: float = KEEP_S,
    ) -> None:
        self._store, self._bucket = store, bucket
        self._functions, self._versions, self._layers = functions, versions, layers
        self._is_whole, self._clock, self._keep_s = is_whole, clock, keep_s
        self._watch = Watch()

    async def run(self) -> None:
        """Look again and again, until cancelled. A store that does not answer is asked again at the next look."""
        while True:
            try:
                await self.once()
            except PenstockError as exc:
                log.warning("packages not looked through", error=str(exc))
            await asyncio.sleep(LOOK_EVERY_S)

    async def once(self) -> int:
        """One look; how many packages were deleted."""
        if not self._is_whole():
            self._watch = Watch()
            return 0
        objects = await self._store.list(self._bucket, PREFIX)
        self._watch, due = look(self._watch, objects, self._needed(), self._clock.mono_s(), keep_s=self._keep_s)
        deleted = 0
        for entry in due[:DELETIONS_AT_ONCE]:
            # Right before: it may have been written again, or be needed again, since the store was listed.
            now = await self._store.list(self._bucket, entry.key)
            written_ms = {found.key: found.modified_unix_ms for found in now}.get(entry.key)
            if written_ms == entry.modified_unix_ms and entry.key not in self._needed():
                await self._store.delete(self._bucket, entry.key)
                deleted += 1
        if deleted:
            log.info("packages deleted that nothing needs", count=deleted)
        return deleted

    def _needed(self) -> frozenset[str]:
        views = self._functions, self._versions, self._layers
        return needed_objects(views[0].items().values(), views[1].items().values(), views[2].items().values())
