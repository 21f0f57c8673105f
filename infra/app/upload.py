"""The way of a package that is too large for a request: through the fabric's object store, for the time of one deploy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256

from infra.app.state import FabricFolder, running_state
from infra.credentials import StoreKeys, store_keys
from infra.objectstore.store import ObjectStore
from infra.settings import load
from schemas.errors import ApiUnavailable, ConfigError, PenstockError


@contextmanager
def uploaded(folder: FabricFolder, package: bytes) -> Iterator[dict[str, str]]:
    """The fields of structure Code that name the package in the store; it is removed at the end.

    Raises:
        ApiUnavailable: no fabric runs in the folder.
        ConfigError: the store's keys are not known here.
        StoreUnavailable: the store does not answer.
    """
    settings = load(folder.path)
    state = running_state(folder)
    endpoint = state.endpoints.get("s3") if state is not None else None
    if not endpoint:
        raise ApiUnavailable(f"no fabric runs in {folder.path}: start it with `penstock up`")
    keys = _keys(folder, endpoint, settings.s3_access_key, settings.s3_secret_key)
    digest = sha256(package).hexdigest()
    bucket, name = f"{settings.s3_bucket}-uploads", f"{digest}.zip"

    async def put() -> None:
        await store.ensure_bucket(bucket)
        await store.put(bucket, name, package, digest)

    async def remove() -> None:
        with suppress(PenstockError):  # it lies there under its hash, and the next deploy of it replaces it
            await store.delete(bucket, name)
        await store.close()

    store = ObjectStore(endpoint, keys.access_key, keys.secret_key, region=settings.s3_region, timeout_s=60.0)
    asyncio.run(put())
    try:
        yield {"CosBucketName": bucket, "CosObjectName": name}
    finally:
        asyncio.run(remove())


def _keys(folder: FabricFolder, endpoint: str, access: object, secret: object) -> StoreKeys:
    from pydantic import SecretStr

    if isinstance(access, SecretStr) and isinstance(secret, SecretStr):
        return StoreKeys(access.get_secret_value(), secret.get_secret_value())
    if endpoint.startswith("http://127.0.0.1:"):
        return store_keys(folder.path)
    raise ConfigError(
        f"the package is too large for a request, and the keys of the store at {endpoint} are not known here:"
        " set PENSTOCK_S3_ACCESS_KEY and PENSTOCK_S3_SECRET_KEY as for `penstock up`"
    )
