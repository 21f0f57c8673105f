"""From a qualifier to what runs: versions frozen, aliases followed, in the resolver and in a trigger's lanes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ingest.lanes.engine import LaneEngine
from router.aliases import Split, record_share
from router.functions import Resolver
from schemas.frames import Spec
from schemas.ids import FunctionKey
from schemas.records import AliasRecord, FunctionRecord, VersionRecord
from schemas.runstatus import RunStatus
from tests.commands import CONFIG, NOW_MS, alias_record
from tests.lane_fakes import FakeDesk, FakeDispatcher, FakeSource, result, trigger
from tests.records import keyed, record

KEY = FunctionKey("1250000000", "default", "hello")
FUNCTION = FunctionRecord(
    1, "1250000000", "1", "default", "hello", "lam-1", "Active", "", NOW_MS, NOW_MS, 0, "c", CONFIG
)


def version(number: str, sha: str) -> VersionRecord:
    config = replace(CONFIG, version=number, code_sha256=sha * 64)
    return VersionRecord(1, "1250000000", "1", "default", "hello", number, "", NOW_MS, 0, "c", config)


class Fabric:
    """A function with versions 1 and 2."""

    def __init__(self, *aliases: AliasRecord, status: str = "Active") -> None:
        self.functions = {str(KEY): replace(FUNCTION, status=status)}
        self.versions = {f"{KEY}/1": version("1", "1"), f"{KEY}/2": version("2", "2")}
        self.aliases = {f"{KEY}/{a.name}": a for a in aliases}
        self.share = 0.0
        self.resolver = Resolver(
            self.functions, region="r", versions=self.versions, aliases=self.aliases, share=lambda: self.share
        )

    def runs(self, qualifier: str) -> str:
        """The version that runs, with its code checked; else the status of the refusal."""
        spec = self.resolver.resolve(KEY, qualifier)
        if not isinstance(spec, Spec):
            return str(int(spec[0]))
        assert spec.code_sha256 == ({"$LATEST": "0"}.get(spec.version, spec.version) * 64)
        return spec.version


def test_a_version_runs_its_own_code_whatever_latest_is() -> None:
    fabric = Fabric()
    assert [fabric.runs(q) for q in ("1", "2", "$LATEST", "$DEFAULT", "")] == [
        "1",
        "2",
        "$LATEST",
        "$LATEST",
        "$LATEST",
    ]


def test_a_version_serves_while_the_function_is_updated_or_its_update_failed_and_ends_with_it() -> None:
    assert [Fabric(status=s).runs("1") for s in ("Updating", "UpdateFailed", "Deleting")] == ["1", "1", "438"]


@pytest.mark.parametrize("qualifier", ["3", "prod", "01", "x" * 64])
def test_an_unknown_qualifier_is_442(qualifier: str) -> None:
    assert Fabric().runs(qualifier) == str(int(RunStatus.NO_QUALIFIER)) == "442"


def test_a_version_that_was_deleted_is_not_remembered() -> None:
    fabric = Fabric()
    assert fabric.runs("2") == "2"
    del fabric.versions[f"{KEY}/2"]
    assert fabric.runs("2") == "442"


def test_an_alias_leads_to_its_versions_and_follows_when_it_is_moved() -> None:
    fabric = Fabric(alias_record(version="1", additional="2", weight=0.5))
    fabric.share = 0.7
    assert fabric.runs("prod") == "1"
    fabric.share = 0.3
    assert fabric.runs("prod") == "2"
    fabric.aliases[f"{KEY}/prod"] = alias_record(version="$LATEST")
    assert fabric.runs("prod") == "$LATEST"


def test_the_default_alias_can_be_pointed_at_a_version() -> None:
    fabric = Fabric(alias_record("$DEFAULT", "2"))
    assert (fabric.runs("$DEFAULT"), fabric.runs("$LATEST")) == ("2", "$LATEST")


def test_a_split_is_only_told_for_aliases_with_a_weight() -> None:
    fabric = Fabric(alias_record(version="1", additional="2", weight=0.5), alias_record("rules", "1", rule="2"))
    split = fabric.resolver.split
    assert split(KEY, "prod") == Split("1", "2", 0.5)
    assert [split(KEY, q) for q in ("rules", "1", "$LATEST", "nobody")] == [None] * 4


class Rig:
    """An engine whose trigger names an alias that divides."""

    def __init__(self, weight: float, **kafka: Any) -> None:
        self.dispatcher = FakeDispatcher()
        self.split: Split | None = Split("1", "2", weight)
        self.engine = LaneEngine(
            replace(trigger(**kafka), qualifier="prod"),
            submit=self.dispatcher.submit,
            bury=FakeDesk().put,
            source=self._open,
            jitter=lambda: 0.5,
            ended=lambda _error: None,
            division=lambda: self.split,
        )
        self.engine.start()
        self.source.assign(0)

    def _open(self, events: Any) -> FakeSource:
        self.source = FakeSource(events)
        return self.source

    async def drain(self, *, status: RunStatus = RunStatus.OK) -> list[tuple[str, list[int]]]:
        """Answer all that is out, again and again; what ran, in order."""
        ran: list[tuple[str, list[int]]] = []
        for _ in range(200):
            for _ in range(4):
                await asyncio.sleep(0)
            if not self.dispatcher.out:
                return ran
            calls, self.dispatcher.out = self.dispatcher.out, []
            for call in calls:
                ran.append((call.qualifier, call.offsets))
                call.done(result(status))
        raise AssertionError("it does not end")


@pytest.mark.looptime
@pytest.mark.parametrize("ordering", ["key", "partition", "none"])
async def test_no_batch_holds_records_of_two_versions_and_none_is_lost(ordering: str) -> None:
    rig = Rig(0.5, ordering=ordering, batch=10, concurrency=4)
    records = [record(i, None if i % 7 == 0 else f"k{i % 9}") for i in range(120)]
    rig.source.hand_over(records)
    ran = await rig.drain()
    assert rig.split is not None
    for qualifier, offsets in ran:
        shares = [record_share(records[o].key, 0, o) for o in offsets]
        assert {rig.split.version(share) for share in shares} == {qualifier}
    assert sorted(o for _, offsets in ran for o in offsets) == list(range(120))
    assert {qualifier for qualifier, _ in ran} == {"1", "2"}
    if ordering == "partition":
        assert [o for _, offsets in ran for o in offsets] == list(range(120))


@pytest.mark.looptime
async def test_a_batch_that_failed_is_cut_anew_when_the_weight_moved_meanwhile() -> None:
    rig = Rig(0.0, ordering="partition", batch=10)
    rig.source.hand_over(keyed("abcdefgh"))
    await asyncio.sleep(0)
    (call,) = rig.dispatcher.out
    assert (call.qualifier, call.offsets) == ("1", list(range(8)))
    rig.split = Split("1", "2", 0.5)
    rig.dispatcher.out = []
    call.done(result(RunStatus.USER_EXCEPTION))
    await asyncio.sleep(1)
    ran = await rig.drain()
    assert [o for _, offsets in ran for o in offsets] == list(range(8))
    for qualifier, offsets in ran:
        assert {rig.split.version(record_share(b"abcdefgh"[o : o + 1], 0, o)) for o in offsets} == {qualifier}


@pytest.mark.looptime
async def test_an_alias_that_does_not_divide_goes_on_by_its_name() -> None:
    rig = Rig(0.5)
    rig.split = None
    rig.source.hand_over(keyed("ab"))
    assert [qualifier for qualifier, _ in await rig.drain()] == ["prod", "prod"]
