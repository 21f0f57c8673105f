"""Code packages: what is needed stays, what is not goes after an hour in which no look found it needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from infra.objectstore.store import StoredObject
from ingest.api.collection import PackageCollector, Watch, look, needed_objects
from schemas.errors import ObjectNotFound
from schemas.package import package_object
from schemas.records import FunctionRecord, LayerRef, VersionRecord
from schemas.tenants import LayerRecord
from tests.api_fakes import FakeClock, FakeView
from tests.commands import CONFIG, NOW_MS

HOUR_S = 3_600
A, B, C, D = (package_object(letter * 64) for letter in "abcd")


def function(serving: str = "", proposed: str = "") -> FunctionRecord:
    configs = [replace(CONFIG, code_sha256=letter * 64) if letter else None for letter in (serving, proposed)]
    return FunctionRecord(
        1, "1", "1", "default", "f", "lam-1", "Updating", "", NOW_MS, NOW_MS, 0, "c", configs[0], configs[1]
    )


def version(letter: str) -> VersionRecord:
    return VersionRecord(1, "1", "1", "default", "f", "1", "", NOW_MS, 0, "c", replace(CONFIG, code_sha256=letter * 64))


def layer(letter: str) -> LayerRecord:
    return LayerRecord(1, "1", "1", "l", 1, letter * 64, 1, ("Python3.10",), "", "", NOW_MS, 0, "c")


class Store:
    """Objects in memory, by name with the time they were written at."""

    def __init__(self, *names: str) -> None:
        self.objects = dict.fromkeys(names, NOW_MS)
        self.on_list: Callable[[], None] = lambda: None
        self.fails = False

    async def list(self, bucket: str, prefix: str = "") -> list[StoredObject]:
        if self.fails:
            raise ObjectNotFound(bucket)
        found = [StoredObject(k, 1, ms) for k, ms in self.objects.items() if k.startswith(prefix)]
        self.on_list()
        return found

    async def delete(self, bucket: str, key: str) -> None:
        del self.objects[key]


class Rig:
    """A collector over fakes; `hours` pass by its clock."""

    def __init__(self, *names: str) -> None:
        self.store, self.clock, self.is_whole = Store(*names), FakeClock(), True
        self.functions: FakeView[FunctionRecord] = FakeView()
        self.versions: FakeView[VersionRecord] = FakeView()
        self.layers: FakeView[LayerRecord] = FakeView()
        self.collector = PackageCollector(
            self.store, "b", functions=self.functions, versions=self.versions, layers=self.layers,
            is_whole=lambda: self.is_whole, clock=self.clock,
        )  # fmt: skip

    async def look(self, *, hours: float = 0.0) -> set[str]:
        """What is left after a look that many hours later."""
        self.clock.shift_ms += int(hours * 3_600_000)
        await self.collector.once()
        return set(self.store.objects)


def test_what_serves_what_is_proposed_and_what_is_published_is_needed() -> None:
    assert needed_objects([function("a", "b")], [version("c")], []) == {A, B, C}


def test_layers_are_needed_while_they_are_published_and_while_a_version_binds_them() -> None:
    assert needed_objects([], [], [layer("d")]) == {D}
    bound = replace(CONFIG, code_sha256="c" * 64, layers=(LayerRef("l", 1, "d" * 64), LayerRef("m", 1, "a" * 64)))
    assert needed_objects([], [replace(version("c"), config=bound)], []) == {A, C, D}


async def test_a_layers_package_goes_an_hour_after_the_layer_only() -> None:
    rig = Rig(A, B)
    rig.layers.put("1/l@1", layer("a"))
    await rig.look()
    assert await rig.look(hours=1.01) == {A}
    rig.layers.put("1/l@1", None)
    await rig.look()
    assert await rig.look(hours=1.01) == set()


async def test_a_package_goes_after_an_hour_and_never_while_a_version_needs_it() -> None:
    rig = Rig(A, B, C, D)
    rig.functions.put("f", function("a", "b"))
    rig.versions.put("f/1", version("c"))
    assert await rig.look() == {A, B, C, D}
    assert await rig.look(hours=0.99) == {A, B, C, D}
    assert await rig.look(hours=0.02) == {A, B, C}
    rig.versions.put("f/1", None)
    assert await rig.look() == {A, B, C}
    assert await rig.look(hours=1.01) == {A, B}


async def test_the_hour_begins_anew_when_it_was_needed_or_written_again_or_streams_was_away() -> None:
    for disturb in ("needed", "written", "streams"):
        rig = Rig(A)
        await rig.look()
        if disturb == "needed":
            rig.functions.put("f", function("a"))
        elif disturb == "written":
            rig.store.objects[A] += 1_000
        else:
            rig.is_whole = False
        assert await rig.look(hours=2) == {A}
        rig.functions.put("f", None)
        rig.is_whole = True
        assert await rig.look(hours=0.5) == {A}, disturb
        assert await rig.look(hours=1.01) == set(), disturb


async def test_what_is_written_or_needed_between_the_look_and_the_deletion_stays() -> None:
    for disturb in ("needed", "written"):
        rig = Rig(A)
        await rig.look()

        def meanwhile(rig: Rig = rig, disturb: str = disturb) -> None:
            if disturb == "written":
                rig.store.objects[A] += 1_000
            else:
                rig.functions.put("f", function("a"))

        rig.store.on_list = meanwhile
        assert await rig.look(hours=2) == {A}, disturb


async def test_other_objects_of_the_bucket_are_not_touched() -> None:
    rig = Rig("mine.txt", "sha256")
    await rig.look()
    assert await rig.look(hours=2) == {"mine.txt", "sha256"}


@given(st.lists(st.tuples(st.floats(0, 2_000), st.sets(st.sampled_from([A, B]))), max_size=12))
def test_only_what_every_look_of_a_whole_hour_found_unneeded_is_due(looks: list[tuple[float, set[str]]]) -> None:
    watch, now_s = Watch(), 0.0
    last_needed_s = dict.fromkeys([A, B], 0.0)
    first_seen_s: float | None = None
    for pause_s, needed in looks:
        now_s += pause_s
        first_seen_s = now_s if first_seen_s is None else first_seen_s
        objects = [StoredObject(name, 1, NOW_MS) for name in (A, B)]
        watch, due = look(watch, objects, frozenset(needed), now_s)
        for name in needed:
            last_needed_s[name] = now_s
        for entry in due:
            assert entry.key not in needed
            assert now_s - max(last_needed_s[entry.key], first_seen_s) >= HOUR_S
