"""A function's package and layers in the code cache: held together, given back together, refused with a reason."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sandbox.agent import bundle as bundles
from sandbox.agent.bundle import Bundle, take_in
from sandbox.agent.codecache import CodeCache
from schemas.errors import ObjectNotFound, StoreUnavailable
from schemas.records import FunctionConfig, LayerRef
from tests.packages import zipped
from tests.unit.test_codecache import Store, digest, names, package, started


def config(code: bytes, *layers: bytes) -> FunctionConfig:
    refs = tuple(LayerRef(f"l{at}", at + 1, digest(data)) for at, data in enumerate(layers))
    return FunctionConfig("$LATEST", digest(code), len(code), "index.main_handler", "Python3.10", 128, 3, 65, {}, refs)


class Emptied(Store):
    async def get(self, bucket: str, key: str, expect_sha256: str | None = None) -> bytes:
        if key not in self.objects:
            raise ObjectNotFound(key)
        return await super().get(bucket, key, expect_sha256)


async def refused(cache: CodeCache, wanted: FunctionConfig) -> tuple[str, str]:
    bundle = Bundle(cache)
    reason = await take_in(bundle, wanted)
    bundle.release()
    assert reason is not None
    return reason.code, reason.message


async def test_packages_are_fetched_side_by_side_and_equal_ones_once(tmp_path: Path) -> None:
    code, one, two = (package(f"{n}.py", 100) for n in "abc")
    store = Store(code, one, two)
    store.gate.clear()
    cache = await started(tmp_path, store)
    bundle = Bundle(cache)
    adding = asyncio.get_running_loop().create_task(bundle.add(*map(digest, (code, one, two, one))))
    async with asyncio.timeout(10):
        while store.gets < 3:
            await asyncio.sleep(0)
    store.gate.set()
    await adding
    assert (store.gets, bundle.fetched, bundle.unpacked_bytes) == (3, True, 3 * 102)
    assert (bundle.path(digest(one)) / "b.py").is_file()
    bundle.release()
    assert cache.leases == 0


async def test_what_is_held_is_not_evicted_and_what_is_released_may_be(tmp_path: Path) -> None:
    code, one, two, other = (package(f"{n}.py", 10_000) for n in "abcd")
    cache = await started(tmp_path, Store(code, one, two, other), limit_bytes=40_000)
    bundle = Bundle(cache)
    await bundle.add(digest(code), digest(one), digest(two))
    (await cache.hold(digest(other))).release()
    assert {digest(code), digest(one), digest(two)} <= names(tmp_path)
    bundle.release()
    bundle.release()
    async with asyncio.timeout(10):
        while len(names(tmp_path) & {digest(data) for data in (code, one, two, other)}) > 2:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("ends", ["failure", "cancellation"])
async def test_after_a_failure_or_a_cancellation_nothing_is_held(tmp_path: Path, ends: str) -> None:
    code, one, other = (package(f"{n}.py", 10_000) for n in "abc")
    store = Emptied(code, other)
    cache = await started(tmp_path, store, limit_bytes=1)
    bundle = Bundle(cache)
    if ends == "failure":
        with pytest.raises(ObjectNotFound):
            await bundle.add(digest(code), digest(one))
    else:
        (await cache.hold(digest(code))).release()
        store.gate.clear()
        adding = asyncio.get_running_loop().create_task(bundle.add(digest(code), digest(other)))
        while store.gets < 2:
            await asyncio.sleep(0)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        store.gate.set()
    bundle.release()
    (await cache.hold(digest(other))).release()
    async with asyncio.timeout(10):
        while digest(code) in names(tmp_path):
            await asyncio.sleep(0.01)


async def test_a_whole_configuration_has_no_reason_against_it(tmp_path: Path) -> None:
    code, one = package("index.py"), package("shared.py")
    bundle = Bundle(await started(tmp_path, Store(code, one)))
    assert await take_in(bundle, config(code, one)) is None
    assert bundle.path(digest(one)).is_dir()
    bundle.release()


async def test_each_package_that_can_not_be_used_is_named_with_its_code(tmp_path: Path) -> None:
    code, one, bad = package("index.py"), package("shared.py"), zipped(("../x", b""))
    cache = await started(tmp_path, Emptied(code, one, bad))
    assert await refused(cache, config(package("gone.py"), one)) == (
        "ResourceNotFound.Code",
        "the package is not in the object store: upload it again",
    )
    said, message = await refused(cache, config(code, one, package("gone.py")))
    assert (said, "version 2 of layer 'l1' is not in the object store" in message) == (
        "ResourceNotFound.LayerVersion",
        True,
    )
    said, message = await refused(cache, config(code, bad))
    assert (said, "version 1 of layer 'l0' is refused" in message) == ("InvalidParameterValue.Layers", True)
    assert (await refused(cache, config(bad)))[0] == "InvalidParameterValue.ZipFile"


async def test_the_limit_of_unpacked_bytes_holds_over_the_package_and_all_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, one, two, three = (package(f"{n}.py", 998) for n in "abcd")  # with the two bytes of lib/run: 1,000 each
    store = Store(code, one, two, three)
    cache = await started(tmp_path, store)
    monkeypatch.setattr(bundles, "PACKAGE_UNPACKED_BYTES", 2_999)
    said, message = await refused(cache, config(code, one, two, three))
    assert store.gets == 3  # no more is fetched than tells it
    assert (said, "unpack to 3,000 bytes; the limit over all of them is 2,999" in message) == (
        "InvalidParameterValue.Layers",
        True,
    )
    monkeypatch.setattr(bundles, "PACKAGE_UNPACKED_BYTES", 3_000)
    assert await take_in(Bundle(cache), config(code, one, two)) is None


async def test_a_restarted_agent_knows_the_unpacked_bytes_of_what_it_finds(tmp_path: Path) -> None:
    code = package("index.py", 998)
    (await (await started(tmp_path, Store(code))).hold(digest(code))).release()
    bundle = Bundle(await started(tmp_path, Store()))
    await bundle.add(digest(code))
    assert (bundle.unpacked_bytes, bundle.fetched) == (1_000, False)


async def test_a_store_that_does_not_answer_is_no_reason_but_asked_again(tmp_path: Path) -> None:
    code, one = package("index.py"), package("shared.py")
    store = Store(code, one)
    cache = await started(tmp_path, store)
    (await cache.hold(digest(code))).release()
    store.failures = [StoreUnavailable("no answer")]
    with pytest.raises(StoreUnavailable):
        await take_in(Bundle(cache), config(code, one))
