"""What a function version runs: its package and its layers, held in this host's code cache together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from sandbox.agent.codecache import CodeCache, CodeLease
from schemas.errors import BadPackage, ObjectNotFound, PackageCorrupt
from schemas.limits import PACKAGE_UNPACKED_BYTES
from schemas.records import FunctionConfig, StatusReason

BAD_ZIP: Final = "InvalidParameterValue.ZipFile"
NO_PACKAGE: Final = "ResourceNotFound.Code"
BAD_LAYER: Final = "InvalidParameterValue.Layers"
NO_LAYER: Final = "ResourceNotFound.LayerVersion"


class Bundle:
    """Packages by their hashes; they stay on this host's disk until `release`, which must be called, also after a failure."""

    def __init__(self, cache: CodeCache) -> None:
        self._cache = cache
        self._leases: dict[str, CodeLease] = {}

    @property
    def fetched(self) -> bool:
        """True when any of them was not here before."""
        return any(lease.fetched for lease in self._leases.values())

    @property
    def unpacked_bytes(self) -> int:
        """Sum over the files of all packages, equal ones once."""
        return sum(lease.unpacked_bytes for lease in self._leases.values())

    def path(self, sha256: str) -> Path:
        """Folder of a package that was added."""
        return self._leases[sha256].path

    async def add(self, *packages: str) -> None:
        """Hold these too, fetched side by side; raises as CodeCache.hold does, for the first of them that fails."""
        wanted = [sha256 for sha256 in dict.fromkeys(packages) if sha256 not in self._leases]
        if len(wanted) == 1:
            await self._hold(wanted[0])
            return
        for failure in await asyncio.gather(*map(self._hold, wanted), return_exceptions=True):
            if failure is not None:
                raise failure

    async def _hold(self, sha256: str) -> None:
        self._leases[sha256] = await self._cache.hold(sha256)

    def release(self) -> None:
        """Give them back; a second call does nothing."""
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            lease.release()


async def take_in(bundle: Bundle, config: FunctionConfig) -> StatusReason | None:
    """Hold the package and the layers of a configuration: why they can't be run, or None.

    Raises:
        StoreUnavailable, PlatformError: try again later.
    """
    named = [(config.code_sha256, "the package", BAD_ZIP, NO_PACKAGE)]
    named += [
        (ref.sha256, f"version {ref.version} of layer {ref.name!r}", BAD_LAYER, NO_LAYER) for ref in config.layers
    ]
    for sha256, name, bad, missing in named:
        try:
            await bundle.add(sha256)
        except (BadPackage, PackageCorrupt) as exc:
            return StatusReason(bad, f"{name} is refused: {exc}")
        except ObjectNotFound:
            again = "upload it again" if missing == NO_PACKAGE else "publish it again and bind the new version"
            return StatusReason(missing, f"{name} is not in the object store: {again}")
        if bundle.unpacked_bytes > PACKAGE_UNPACKED_BYTES:  # before the next one takes room on the disk
            return StatusReason(
                BAD_LAYER,
                f"with {name} the package and its layers unpack to {bundle.unpacked_bytes:,} bytes; the limit over all of"
                f" them is {PACKAGE_UNPACKED_BYTES:,}: bind fewer layers or make them smaller",
            )
    return None
