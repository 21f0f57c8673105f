"""The door to the object store, and the embedded store behind it: the real rclone."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from infra.objectstore.rclone import EmbeddedStore, RunningStore, running_store, serving_store
from infra.objectstore.store import ObjectStore
from ingest.api.adapters import StoredCode
from schemas.errors import ConfigError, ObjectNotFound, PackageCorrupt, PortTaken, StoreUnavailable

pytestmark = [pytest.mark.store, pytest.mark.timeout(60)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def door_to(running: RunningStore, **wishes: float) -> ObjectStore:
    keys = (running.store.access_key, running.store.secret_key)
    return ObjectStore(running.endpoint, *keys, timeout_s=wishes.get("timeout_s", 10.0))


@pytest.fixture
async def door(store: RunningStore) -> AsyncIterator[ObjectStore]:
    opened = door_to(store)
    yield opened
    await opened.close()


@pytest.fixture
async def bucket(door: ObjectStore) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    await door.ensure_bucket(name)
    return name


@pytest.mark.parametrize("size", [0, 1, 50_000, 9_000_000])
async def test_what_was_put_is_got_whole(door: ObjectStore, bucket: str, size: int) -> None:
    data = os.urandom(size)
    await door.put(bucket, sha256(data), data, sha256(data))
    assert await door.get(bucket, sha256(data), sha256(data)) == data
    assert await door.get(bucket, sha256(data)) == data


async def fetched(url: str) -> tuple[int, bytes]:
    """A plain GET, by nobody in particular."""
    async with aiohttp.ClientSession(trust_env=False) as session, session.get(url) as answer:
        return answer.status, await answer.read()


async def test_a_package_is_downloaded_by_its_url_without_keys_and_only_while_that_is_good(
    door: ObjectStore, bucket: str
) -> None:
    package = os.urandom(300_000)
    code = StoredCode(door, bucket=bucket)
    await code.put_package(sha256(package), package)
    url = await code.package_url(sha256(package), valid_s=600)
    status, data = await fetched(url)
    assert (status, sha256(data)) == (200, sha256(package))
    plain, _, signature = url.partition("?")
    assert "X-Amz-Expires=600" in signature
    assert (await fetched(plain))[0] in (400, 403)
    other = sha256(b"other")
    await code.put_package(other, b"other")
    assert (await fetched(url.replace(sha256(package), other)))[0] == 403
    brief = await code.package_url(sha256(package), valid_s=1)
    deadline = time.monotonic() + 10
    while (await fetched(brief))[0] == 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def test_an_object_exists_until_it_is_deleted(door: ObjectStore, bucket: str) -> None:
    assert not await door.exists(bucket, "a/key")
    await door.put(bucket, "a/key", b"x", sha256(b"x"))
    assert await door.exists(bucket, "a/key")
    await door.delete(bucket, "a/key")
    assert not await door.exists(bucket, "a/key")
    await door.delete(bucket, "a/key")


async def test_a_put_replaces_and_the_bucket_stays_when_its_last_object_goes(door: ObjectStore, bucket: str) -> None:
    await door.put(bucket, "k", b"one", sha256(b"one"))
    await door.put(bucket, "k", b"twelve", sha256(b"twelve"))
    assert await door.get(bucket, "k") == b"twelve"
    await door.delete(bucket, "k")
    assert await door.list(bucket) == []
    await door.put(bucket, "k", b"again", sha256(b"again"))


async def test_a_missing_object_and_a_missing_bucket_are_not_found(door: ObjectStore, bucket: str) -> None:
    with pytest.raises(ObjectNotFound, match=f"{bucket}/absent"):
        await door.get(bucket, "absent")
    with pytest.raises(ObjectNotFound):
        await door.get("no-such-bucket", "absent")
    with pytest.raises(ObjectNotFound):
        await door.put("no-such-bucket", "k", b"", sha256(b""))
    with pytest.raises(ObjectNotFound):
        await door.list("no-such-bucket")


async def test_bytes_changed_on_the_disk_are_detected(door: ObjectStore, bucket: str, store: RunningStore) -> None:
    data = b"some code " * 1_000
    await door.put(bucket, "code", data, sha256(data))
    on_disk = store.store.data_dir / "objects" / bucket / "code"
    assert on_disk.read_bytes() == data
    on_disk.write_bytes(b"Some" + data[4:])
    with pytest.raises(PackageCorrupt, match=f"{bucket}/code"):
        await door.get(bucket, "code", sha256(data))


async def test_bytes_that_do_not_have_their_hash_are_not_stored(door: ObjectStore, bucket: str) -> None:
    with pytest.raises(PackageCorrupt):
        await door.put(bucket, "k", b"these", sha256(b"those"))
    assert not await door.exists(bucket, "k")


async def test_a_listing_has_every_key_of_the_prefix_with_size_and_time(door: ObjectStore, bucket: str) -> None:
    keys = [f"packages/{i:04}" for i in range(30)]
    async with asyncio.TaskGroup() as group:
        for key in [*keys, "other/1"]:
            group.create_task(door.put(bucket, key, b"xyz", sha256(b"xyz")))
    found = await door.list(bucket, "packages/")
    assert [entry.key for entry in found] == keys
    assert {entry.size_bytes for entry in found} == {3}
    now_ms = (store_time := time.time_ns()) // 1_000_000
    assert all(now_ms - 60_000 < entry.modified_unix_ms < now_ms + 60_000 for entry in found), store_time


async def test_buckets_may_be_ensured_by_many_at_once(door: ObjectStore) -> None:
    name = f"b-{uuid.uuid4().hex[:12]}"
    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(door.ensure_bucket(name))
    assert await door.list(name) == []


async def test_a_wrong_secret_and_an_unknown_key_are_refused(store: RunningStore) -> None:
    for access, secret in ((store.store.access_key, "x" * 40), ("PENSTOCKNOTHISONE", store.store.secret_key)):
        stranger = ObjectStore(store.endpoint, access, secret, timeout_s=10)
        with pytest.raises(ConfigError, match="refuses our key") as caught:
            await stranger.ensure_bucket("bucket")
        assert secret not in str(caught.value)
        await stranger.close()


async def test_a_store_that_is_down_is_unavailable_within_the_time_limit(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        assert await running.store.is_ready()
        opened = door_to(running, timeout_s=4.0)
        await opened.ensure_bucket("bucket")
    assert not await running.store.is_ready()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await opened.get("bucket", "k")
    assert time.monotonic() - started < 6
    await opened.close()


async def test_a_store_that_never_answers_is_unavailable_within_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        opened = ObjectStore(f"http://127.0.0.1:{silent.getsockname()[1]}", "A" * 20, "s" * 40, timeout_s=1.0)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await opened.get("bucket", "k")
        assert time.monotonic() - started < 3
    await opened.close()


async def test_objects_keys_and_port_survive_a_kill(tmp_path: Path) -> None:
    with serving_store(tmp_path) as first:
        opened = door_to(first)
        await opened.ensure_bucket("bucket")
        await opened.put("bucket", "k", b"kept", sha256(b"kept"))
        first.kill()
        (tmp_path / "objects/bucket/.rclone_temp_put_half").write_bytes(b"half")
    with serving_store(tmp_path) as second:
        assert (second.endpoint, second.store.secret_key) == (first.endpoint, first.store.secret_key)
        assert await opened.get("bucket", "k") == b"kept"  # the same client finds it again
        assert os.listdir(tmp_path / "objects/bucket") == ["k"]
    await opened.close()


def test_the_secret_is_readable_by_its_owner_only_and_not_on_the_command_line(store: RunningStore) -> None:
    keys = store.store.data_dir / "keys.json"
    assert keys.stat().st_mode & 0o077 == 0
    assert store.store.data_dir.stat().st_mode & 0o077 == 0
    command = Path(f"/proc/{store.process.pid}/cmdline").read_bytes()
    assert b"rclone" in command and store.store.secret_key.encode() not in command


def test_an_asked_port_that_is_taken_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} "):
            EmbeddedStore(tmp_path, port=port).prepare()


def test_another_store_on_our_port_is_not_taken_for_ours(tmp_path: Path, store: RunningStore) -> None:
    ours = EmbeddedStore(tmp_path)
    ours.prepare()
    ours.port = store.store.port
    with pytest.raises(PortTaken, match="does not know our key"):
        ours.probe(5.0)


def test_damaged_keys_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(ConfigError, match="delete it"):
        EmbeddedStore(tmp_path).prepare()


async def test_the_users_own_settings_for_aws_do_not_matter(
    tmp_path: Path, store: RunningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\nregion = eu-moon-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    opened = door_to(store)
    await opened.ensure_bucket("bucket")
    await opened.close()
