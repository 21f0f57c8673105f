"""A package that is too large for a request goes through the store, and does not stay there."""

from __future__ import annotations

import asyncio
import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from infra.app.state import FabricFolder, FabricState, Phase, ProcessState, process_mark, write_state
from infra.app.upload import uploaded
from infra.objectstore.rclone import RunningStore
from infra.objectstore.store import ObjectStore
from schemas.errors import ApiUnavailable, ConfigError

pytestmark = [pytest.mark.store]


def settle(folder: Path, endpoint: str) -> FabricFolder:
    me = ProcessState("up", os.getpid(), "ready", 0, "", process_mark(os.getpid()))
    write_state(FabricFolder(folder), FabricState(str(folder), Phase.READY, me, {"s3": endpoint}))
    return FabricFolder(folder)


def test_an_upload_is_there_while_it_is_needed_and_gone_after(store: RunningStore, tmp_path: Path) -> None:
    keys = {"access_key": store.store.access_key, "secret_key": store.store.secret_key}
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "keys.json").write_text(json.dumps(keys))
    package = os.urandom(9 * 1024 * 1024)

    async def look(bucket: str, name: str) -> bool:
        client = ObjectStore(store.endpoint, keys["access_key"], keys["secret_key"])
        try:
            if not await client.exists(bucket, name):
                return False
            return await client.get(bucket, name, sha256(package).hexdigest()) == package
        finally:
            await client.close()

    with uploaded(settle(tmp_path, store.endpoint), package) as code:
        where = (code["CosBucketName"], code["CosObjectName"])
        assert asyncio.run(look(*where))
    assert not asyncio.run(look(*where))


def test_without_the_stores_keys_it_says_what_to_set(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="PENSTOCK_S3_ACCESS_KEY"),
        uploaded(settle(tmp_path, "http://s3.example"), b"x"),
    ):
        pass


def test_without_a_fabric_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ApiUnavailable, match="penstock up"), uploaded(FabricFolder(tmp_path), b"x"):
        pass
