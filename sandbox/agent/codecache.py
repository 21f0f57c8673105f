"""Code packages on this host's disk, unpacked once, by the hash of their zip.

    <folder>/<sha256>/          the unpacked code, read-only, bound into nodes
    <folder>/<sha256>.json      written last: the entry is whole; its sizes, and the boot it was written in

After a power cut a folder may hold what never reached the disk, so entries of an earlier boot are thrown away at the start.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections import Counter, OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from infra.telemetry import get_logger
from sandbox.packages import unpack
from schemas.errors import PackageCorrupt, PlatformError
from schemas.package import CODE_BUCKET, PackageFacts, package_object

log = get_logger("sandbox.codecache")

DEFAULT_BYTES: Final = 2 * 1024 * 1024 * 1024
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BLOCK: Final = 4096


class PackageSource(Protocol):
    """Where packages come from; infra.objectstore.store.ObjectStore is one."""

    async def get(self, bucket: str, key: str, expect_sha256: str | None = None) -> bytes:
        """Bytes of an object; raises ObjectNotFound, PackageCorrupt or StoreUnavailable."""


@dataclass(slots=True)
class _Entry:
    path: Path
    disk_bytes: int
    unpacked_bytes: int
    holders: int = 0


class CodeLease:
    """The right to use an unpacked package; it stays on disk until `release`.

    `fetched` tells that it was not here before; `unpacked_bytes` is the sum over its files.
    """

    __slots__ = ("_cache", "_sha256", "fetched", "path", "unpacked_bytes")

    def __init__(self, cache: CodeCache, sha256: str, entry: _Entry, *, fetched: bool) -> None:
        self._cache: CodeCache | None = cache
        self._sha256 = sha256
        self.path, self.unpacked_bytes = entry.path, entry.unpacked_bytes
        self.fetched = fetched

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.released(self._sha256)


class CodeCache:
    """Holds unpacked packages up to a number of bytes; the least recently used that nobody holds go first."""

    def __init__(
        self, folder: Path, source: PackageSource, *, bucket: str = CODE_BUCKET, limit_bytes: int = DEFAULT_BYTES
    ) -> None:
        self._folder, self._source, self._bucket, self._limit = folder, source, bucket, limit_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._wanted: Counter[str] = Counter()
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._renames = asyncio.Lock()
        """Held while an entry appears or disappears, so that a fetch never meets the removal of the same entry."""
        self._evicting = asyncio.Lock()
        """One eviction at a time: what another is removing is not counted as room twice."""
        self._evictor: asyncio.Task[None] | None = None
        self._boot = ""
        self._trash = 0

    @property
    def disk_bytes(self) -> int:
        """What the entries take on disk."""
        return sum(e.disk_bytes for e in self._entries.values())

    @property
    def leases(self) -> int:
        """How many were not given back yet."""
        return sum(e.holders for e in self._entries.values())

    async def start(self) -> None:
        """Take over what an earlier agent of this boot left; remove what is not whole."""
        self._boot = await asyncio.to_thread(_BOOT_ID.read_text)
        found = await asyncio.to_thread(self._scan)
        self._entries.update(found)
        await self._evict()

    async def close(self) -> None:
        """Stop fetching; the entries stay for the next agent."""
        tasks = [*self._fetching.values(), *([self._evictor] if self._evictor is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def hold(self, sha256: str) -> CodeLease:
        """The unpacked package, fetched when it is not here; callers at a time share one fetch.

        Raises:
            BadPackage: the zip may not be unpacked.
            PackageCorrupt: the store's bytes do not have this hash.
            ObjectNotFound, StoreUnavailable: from the store.
            PlatformError: the disk does not take it.
        """
        fetched = False
        self._wanted[sha256] += 1  # else it could be evicted before we are back
        try:
            while (entry := self._entries.get(sha256)) is None:
                fetched = True
                await self._fetched(sha256)
            entry.holders += 1
        finally:
            self._wanted[sha256] -= 1
            if not self._wanted[sha256]:
                del self._wanted[sha256]
        self._entries.move_to_end(sha256)
        return CodeLease(self, sha256, entry, fetched=fetched)

    def released(self, sha256: str) -> None:
        """Called by a lease."""
        entry = self._entries.get(sha256)
        if entry is not None:
            entry.holders -= 1
            self._evict_later()

    async def _fetched(self, sha256: str) -> None:
        task = self._fetching.get(sha256)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(sha256))
            self._fetching[sha256] = task
            task.add_done_callback(lambda done: self._fetch_ended(sha256, done))
        # A caller that is cancelled must not take the fetch away from the others.
        await asyncio.shield(task)

    async def _fetch(self, sha256: str) -> None:
        data = await self._download(sha256)
        try:
            facts = await asyncio.to_thread(self._unpack, sha256, data)
            async with self._renames:
                entry = await asyncio.to_thread(self._publish, sha256, facts)
        except OSError as exc:
            raise PlatformError(f"the code cache can't hold package {sha256[:12]}: {exc.strerror or exc}") from exc
        self._entries[sha256] = entry
        await self._evict()

    def _fetch_ended(self, sha256: str, task: asyncio.Task[None]) -> None:
        self._fetching.pop(sha256, None)
        if not task.cancelled():
            task.exception()  # seen, also when every caller was cancelled

    async def _download(self, sha256: str) -> bytes:
        key = package_object(sha256)
        try:
            return await self._source.get(self._bucket, key, sha256)
        except PackageCorrupt:  # once more: it may have been damaged on the way
            return await self._source.get(self._bucket, key, sha256)

    def _unpack(self, sha256: str, data: bytes) -> PackageFacts:
        partial = self._folder / f".partial-{sha256}"
        shutil.rmtree(partial, ignore_errors=True)
        return unpack(data, partial)

    def _publish(self, sha256: str, facts: PackageFacts) -> _Entry:
        target = self._folder / sha256
        entry = _Entry(target, facts.unpacked_bytes + _BLOCK * len(facts.entries), facts.unpacked_bytes)
        (self._folder / f".partial-{sha256}").rename(target)
        marker = self._folder / f".{sha256}.json"
        said = {"disk_bytes": entry.disk_bytes, "unpacked_bytes": entry.unpacked_bytes, "boot": self._boot}
        marker.write_text(json.dumps(said))
        marker.rename(self._folder / f"{sha256}.json")
        return entry

    def _evict_later(self) -> None:
        """For what could not go while it was held."""
        if self.disk_bytes > self._limit and (self._evictor is None or self._evictor.done()):
            self._evictor = asyncio.get_running_loop().create_task(self._evict())

    async def _evict(self) -> None:
        async with self._evicting:
            while (sha256 := self._victim()) is not None:
                async with self._renames:
                    trash = await asyncio.to_thread(self._withdraw, sha256)
                await asyncio.to_thread(shutil.rmtree, trash, ignore_errors=True)

    def _victim(self) -> str | None:
        """Takes out the least recently used entry that nobody holds or waits for, while there is too much; the newest one stays."""
        if self.disk_bytes <= self._limit:
            return None
        *older, _ = self._entries
        victim = next((key for key in older if not self._entries[key].holders and key not in self._wanted), None)
        if victim is not None:
            del self._entries[victim]
        return victim

    def _withdraw(self, sha256: str) -> Path:
        (self._folder / f"{sha256}.json").unlink(missing_ok=True)
        self._trash += 1
        trash = self._folder / f".trash-{os.getpid()}-{self._trash}"
        with suppress(FileNotFoundError):
            (self._folder / sha256).rename(trash)
        return trash

    def _scan(self) -> list[tuple[str, _Entry]]:
        """Whole entries of this boot, least recently written first; everything else in the folder is removed."""
        self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        found: list[tuple[float, str, _Entry]] = []
        for path in list(self._folder.iterdir()):
            if path.suffix == ".json" and not path.name.startswith("."):
                entry = self._read(path)
                if entry is not None:
                    found.append((path.stat().st_mtime, path.stem, entry))
        whole = {sha256 for _, sha256, _ in found}
        for path in list(self._folder.iterdir()):
            if path.name.removesuffix(".json") not in whole:
                log.info("removed from the code cache: not whole", entry=path.name)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return [(sha256, entry) for _, sha256, entry in sorted(found, key=lambda f: f[0])]

    def _read(self, marker: Path) -> _Entry | None:
        try:
            facts = json.loads(marker.read_text())
            folder = self._folder / marker.stem
            if facts["boot"] == self._boot and folder.is_dir():
                return _Entry(folder, int(facts["disk_bytes"]), int(facts["unpacked_bytes"]))
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("the code cache has an unreadable entry", entry=marker.name)
        return None
