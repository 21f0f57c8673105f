"""The code cache: one fetch for many callers, bounded, nothing in use removed, nothing half-made kept."""

from __future__ import annotations

import asyncio
import io
import stat
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from sandbox.agent.codecache import CodeCache
from sandbox.packages import unpack
from schemas.errors import BadPackage, PackageCorrupt, PlatformError, StoreUnavailable
from tests.packages import zipped


def package(name: str, size: int = 10) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x" * size)
        info = zipfile.ZipInfo("lib/run")
        info.external_attr = (stat.S_IFREG | 0o700) << 16
        archive.writestr(info, b"#!")
    return out.getvalue()


class Store:
    def __init__(self, *packages: bytes) -> None:
        self.objects = {f"sha256/{sha256(p).hexdigest()}.zip": p for p in packages}
        self.gets = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []

    async def get(self, bucket: str, key: str, expect_sha256: str | None = None) -> bytes:
        assert bucket == "penstock-code"
        self.gets += 1
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return self.objects[key]


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


async def settled(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not claim():
            await asyncio.sleep(0.01)


async def started(folder: Path, store: Store, limit_bytes: int = 1_000_000) -> CodeCache:
    cache = CodeCache(folder, store, limit_bytes=limit_bytes)
    await cache.start()
    return cache


def test_a_bootstrap_can_be_started_whatever_its_zip_says_of_permissions(tmp_path: Path) -> None:
    unpack(zipped(("bootstrap", b"#!/bin/sh\n"), ("lib/bootstrap", b"")), tmp_path / "out")
    assert (tmp_path / "out" / "bootstrap").stat().st_mode & 0o777 == 0o555
    assert (tmp_path / "out" / "lib" / "bootstrap").stat().st_mode & 0o777 == 0o444


def test_unpacked_files_are_read_only_and_only_scripts_can_be_run(tmp_path: Path) -> None:
    unpack(package("a/b.py"), tmp_path / "out")
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert modes == {"b.py": 0o444, "run": 0o555}


def test_an_unpack_that_fails_leaves_nothing(tmp_path: Path) -> None:
    data = bytearray(package("a.py", 1000))
    data[500] ^= 1
    with pytest.raises(BadPackage):
        unpack(bytes(data), tmp_path / "out")
    assert names(tmp_path) == set()


async def test_callers_at_a_time_share_one_fetch_and_only_they_met_it(tmp_path: Path) -> None:
    data = package("index.py")
    store = Store(data)
    cache = await started(tmp_path, store)
    leases = await asyncio.gather(*(cache.hold(digest(data)) for _ in range(5)))
    later = await cache.hold(digest(data))
    assert store.gets == 1
    assert [lease.fetched for lease in leases] == [True] * 5
    assert not later.fetched
    assert (later.path / "index.py").read_bytes() == b"x" * 10


async def test_a_cancelled_caller_does_not_take_the_fetch_from_the_others(tmp_path: Path) -> None:
    data = package("index.py")
    store = Store(data)
    store.gate.clear()
    cache = await started(tmp_path, store)
    loop = asyncio.get_running_loop()
    first, second = loop.create_task(cache.hold(digest(data))), loop.create_task(cache.hold(digest(data)))
    while store.gets == 0:
        await asyncio.sleep(0)
    first.cancel()
    store.gate.set()
    assert (await second).path.is_dir()
    assert store.gets == 1


async def test_the_least_recently_used_goes_first_and_what_is_held_stays(tmp_path: Path) -> None:
    packages = [package(f"{n}.py", 10_000) for n in "abcd"]
    a, b, c, d = map(digest, packages)
    cache = await started(tmp_path, Store(*packages), limit_bytes=60_000)
    held = await cache.hold(a)
    for code in (b, c):
        (await cache.hold(code)).release()
    (await cache.hold(b)).release()
    (await cache.hold(d)).release()
    assert {n for n in names(tmp_path) if not n.endswith(".json")} == {a, b, d}
    held.release()
    held.release()
    (await cache.hold(c)).release()
    assert {n for n in names(tmp_path) if not n.endswith(".json")} == {b, d, c}


async def test_the_next_agent_of_the_same_boot_uses_what_is_whole_and_removes_the_rest(tmp_path: Path) -> None:
    data, cut = package("index.py"), package("cut.py")
    store = Store(data, cut)
    cache = await started(tmp_path, store)
    (await cache.hold(digest(data))).release()
    (await cache.hold(digest(cut))).release()
    (tmp_path / f"{digest(cut)}.json").unlink()
    (tmp_path / ".partial-x").mkdir()
    again = await started(tmp_path, store)
    assert names(tmp_path) == {digest(data), f"{digest(data)}.json"}
    assert not (await again.hold(digest(data))).fetched
    assert (await again.hold(digest(cut))).fetched


async def test_entries_of_an_earlier_boot_are_fetched_again(tmp_path: Path) -> None:
    data = package("index.py")
    cache = await started(tmp_path, Store(data))
    (await cache.hold(digest(data))).release()
    marker = tmp_path / f"{digest(data)}.json"
    marker.write_text(marker.read_text().replace('"boot": "', '"boot": "x'))
    assert (await (await started(tmp_path, Store(data))).hold(digest(data))).fetched


async def test_a_store_that_is_down_or_a_bad_package_raises_its_error_and_the_next_call_tries_again(
    tmp_path: Path,
) -> None:
    data = package("index.py")
    store = Store(data)
    cache = await started(tmp_path, store)
    for error in (StoreUnavailable("down"), BadPackage("bad")):
        store.failures = [error]
        with pytest.raises(type(error)):
            await cache.hold(digest(data))
    store.failures = [PackageCorrupt("damaged on the way")]
    assert (await cache.hold(digest(data))).path.is_dir()


async def test_a_disk_that_takes_nothing_is_a_platform_error(tmp_path: Path) -> None:
    data = package("index.py")
    cache = await started(tmp_path / "cache", Store(data))
    (tmp_path / "cache").rmdir()
    with pytest.raises(PlatformError, match="code cache"):
        await cache.hold(digest(data))


async def test_many_callers_of_many_packages_in_a_cache_too_small_all_get_whole_code(tmp_path: Path) -> None:
    packages = [package(f"{n}.py", 10_000) for n in range(6)]
    cache = await started(tmp_path, Store(*packages), limit_bytes=30_000)

    async def use(number: int) -> None:
        data = packages[number % 6]
        lease = await cache.hold(digest(data))
        assert (lease.path / f"{number % 6}.py").stat().st_size == 10_000
        await asyncio.sleep(0)
        assert (lease.path / "lib" / "run").exists()
        lease.release()

    await asyncio.gather(*(use(n) for n in range(60)))
    await settled(lambda: cache.disk_bytes <= 30_000)


async def test_what_was_held_when_room_was_needed_goes_when_it_is_given_back(tmp_path: Path) -> None:
    packages = [package(f"{n}.py", 10_000) for n in range(3)]
    cache = await started(tmp_path, Store(*packages), limit_bytes=40_000)
    leases = [await cache.hold(digest(data)) for data in packages]
    assert cache.disk_bytes > 40_000
    leases[0].release()
    await settled(lambda: not leases[0].path.exists())
    assert cache.disk_bytes <= 40_000
    assert leases[1].path.is_dir() and leases[2].path.is_dir()
