"""The collector of packages over the real embedded store."""

from __future__ import annotations

import hashlib
import uuid

import pytest

from infra.objectstore.rclone import RunningStore
from infra.objectstore.store import ObjectStore
from ingest.api.collection import PackageCollector
from schemas.package import package_object
from schemas.records import FunctionRecord, VersionRecord
from tests.api_fakes import FakeClock, FakeView
from tests.unit.test_collection import function, version

pytestmark = [pytest.mark.store, pytest.mark.timeout(60)]


async def test_packages_that_nothing_needs_leave_the_store_and_a_versions_package_stays(store: RunningStore) -> None:
    door = ObjectStore(store.endpoint, store.store.access_key, store.store.secret_key)
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    await door.ensure_bucket(bucket)
    needed, published, left = (package_object(letter * 64) for letter in "abc")
    for name in (needed, published, left, "notes.txt"):
        await door.put(bucket, name, b"zip", hashlib.sha256(b"zip").hexdigest())
    functions: FakeView[FunctionRecord] = FakeView()
    functions.put("f", function("a"))
    versions: FakeView[VersionRecord] = FakeView()
    versions.put("f/1", version("b"))
    collector = PackageCollector(
        door, bucket, functions=functions, versions=versions, layers=FakeView(), is_whole=lambda: True, clock=FakeClock(), keep_s=0.0
    )  # fmt: skip
    assert await collector.once() == 1
    assert {entry.key for entry in await door.list(bucket)} == {needed, published, "notes.txt"}
    await door.close()
