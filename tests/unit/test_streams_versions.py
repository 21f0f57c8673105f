"""What the registry decides about versions and aliases, one claim a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from schemas import avro
from schemas.limits import ALIASES_PER_FUNCTION, ROUTING_RULE_CHARS, ROUTING_RULES, VERSIONS_PER_FUNCTION
from schemas.records import AliasRecord, Command, FunctionRecord, Outcome, StepResult, VersionMatch, VersionRecord
from streams import registry, versions
from streams.entries import Entry, Output
from streams.registry import take
from tests.commands import CONFIG, FAILURE, alias_record, answer, answers, command, other_config


def feed(*events: Command | StepResult, entry: Entry = registry.NEW) -> tuple[Entry, tuple[Output, ...]]:
    """Take events in; offsets go on behind what the entry has seen."""
    said: tuple[Output, ...] = ()
    for event in events:
        offset = 1 + (entry.applied if isinstance(event, Command) else entry.answered)
        entry, outputs = take(entry, event, offset)
        said += outputs
    return entry, said


def active(*more: Command | StepResult) -> Entry:
    return feed(command("create-function", "c1"), *answers("c1"), *more)[0]


def publish(command_id: str = "p1", description: str = "") -> Command:
    return command("publish-version", command_id, description=description)


def alias(kind: str, name: str = "prod", version: str = "1", **more: Any) -> Command:
    return replace(command(kind, f"{kind}-{name}-{version}"), alias=alias_record(name, version, **more))


def delete(kind: str, name: str) -> Command:
    return replace(command(kind, f"d-{name}"), qualifier=name)


def ended(outputs: tuple[Output, ...]) -> list[tuple[str, str]]:
    return [(o.code, o.result) for o in outputs if isinstance(o, Outcome)]


def test_a_published_version_is_what_serves_under_its_number() -> None:
    _, outputs = feed(publish(description="first"), entry=active())
    version, outcome = outputs
    assert isinstance(version, VersionRecord)
    assert (version.version, version.description, version.command_id) == ("1", "first", "p1")
    assert version.config == replace(CONFIG, version="1")
    assert outcome == Outcome("p1", "1250000000/default/hello", result="1")


def test_publishing_does_not_touch_the_functions_own_record() -> None:
    before = active()
    entry, outputs = feed(publish(), entry=before)
    assert entry.function == before.function
    assert not any(isinstance(o, FunctionRecord) for o in outputs)


def test_numbers_go_up_and_are_not_given_twice() -> None:
    entry = active(publish("p1"), publish("p2"), delete("delete-version", "2"))
    assert ended(feed(publish("p3"), entry=entry)[1]) == [("", "3")]


def test_an_update_leaves_the_published_version_as_it_was() -> None:
    entry, outputs = feed(
        command("update-function", "c2", config=other_config()),
        *answers("c2"),
        publish("p2"),
        entry=active(publish("p1")),
    )
    versions_said = [o for o in outputs if isinstance(o, VersionRecord)]
    assert [(v.version, v.config.handler) for v in versions_said] == [("2", "index.other")]
    assert entry.ledger is not None and entry.ledger.versions == (1, 2)


@pytest.mark.parametrize("results", [(), (answer("c2", reasons=FAILURE),)], ids=["Updating", "UpdateFailed"])
def test_only_an_active_function_is_published(results: tuple[StepResult, ...]) -> None:
    entry = active(command("update-function", "c2"), *results)
    assert ended(feed(publish(), entry=entry)[1]) == [("FailedOperation.FunctionStatusError", "")]


def test_an_update_with_publish_makes_a_version_when_it_succeeds_and_none_when_it_fails() -> None:
    update = replace(command("update-function", "c2", config=other_config()), publish=True)
    _, outputs = feed(update, *answers("c2"), entry=active())
    (version,) = [o for o in outputs if isinstance(o, VersionRecord)]
    assert (version.version, version.config.handler) == ("1", "index.other")
    failed, outputs = feed(update, answer("c2", reasons=FAILURE), entry=active())
    assert not any(isinstance(o, VersionRecord) for o in outputs)
    assert failed.ledger is None or failed.ledger.versions == ()


def test_a_newer_update_without_publish_takes_the_publishing_of_the_older_one_away() -> None:
    update = replace(command("update-function", "c2"), publish=True)
    _, outputs = feed(update, command("update-function", "c3"), *answers("c3"), entry=active())
    assert not any(isinstance(o, VersionRecord) for o in outputs)


def test_a_function_has_so_many_versions() -> None:
    full = replace(active(), ledger=versions.Ledger(5_000, tuple(range(1, VERSIONS_PER_FUNCTION + 1))))
    assert ended(feed(publish(), entry=full)[1]) == [("LimitExceeded.FunctionVersions", "")]
    update = replace(command("update-function", "c2"), publish=True)
    assert ended(feed(update, entry=full)[1]) == [("LimitExceeded.FunctionVersions", "")]
    assert len(avro.encode(full)) < 10_000


def test_a_function_has_so_many_aliases_and_the_largest_of_them_fit_one_record_of_kafka() -> None:
    wide = "\U0001f600"
    rules = (VersionMatch("1", wide * ROUTING_RULE_CHARS, "exact", wide * ROUTING_RULE_CHARS),) * ROUTING_RULES
    large = replace(alias_record("a" * 64), description=wide * 1_000, matches=rules)
    aliases = tuple(replace(large, name=f"a{i:063}") for i in range(ALIASES_PER_FUNCTION))
    full = replace(active(), ledger=versions.Ledger(5_000, tuple(range(1, VERSIONS_PER_FUNCTION + 1)), aliases))
    assert len(avro.encode(full)) < 900_000
    assert ended(feed(alias("create-alias"), entry=full)[1]) == [("LimitExceeded.Alias", "")]


def test_an_alias_is_made_changed_and_deleted() -> None:
    entry, outputs = feed(alias("create-alias"), entry=active(publish("p1"), publish("p2")))
    made = outputs[0]
    assert isinstance(made, AliasRecord)
    assert (made.name, made.version, made.seq) == ("prod", "1", entry.seq)
    entry, outputs = feed(alias("update-alias", version="2", additional="1", weight=0.25), entry=entry)
    changed = outputs[0]
    assert isinstance(changed, AliasRecord)
    assert (changed.version, changed.additional, changed.weight) == ("2", "1", 0.25)
    assert changed.seq > made.seq
    entry, outputs = feed(delete("delete-alias", "prod"), entry=entry)
    assert outputs[0] == versions.Removed("1250000000/default/hello/prod")
    assert ended(outputs) == [("", "")]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (alias("create-alias", version="2"), "ResourceNotFound.FunctionVersion"),
        (alias("create-alias", additional="9"), "ResourceNotFound.FunctionVersion"),
        (alias("create-alias", additional="$LATEST", weight=1.5), "InvalidParameterValue.RoutingConfig"),
        (alias("create-alias", name="$DEFAULT"), "ResourceInUse.Alias"),
        (alias("create-alias", name="used"), "ResourceInUse.Alias"),
        (alias("update-alias", name="nobody"), "ResourceNotFound.Alias"),
        (delete("delete-alias", "nobody"), "ResourceNotFound.Alias"),
        (delete("delete-alias", "$DEFAULT"), "InvalidParameterValue.Alias"),
        (delete("delete-version", "7"), "ResourceNotFound.FunctionVersion"),
        (delete("delete-version", "$LATEST"), "ResourceNotFound.FunctionVersion"),
        (delete("delete-version", "01"), "ResourceNotFound.FunctionVersion"),
        (delete("delete-version", "1"), "FailedOperation"),
        (command("create-alias"), "InternalError"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.command_id,
)
def test_what_can_not_be_is_refused_and_changes_nothing(change: Command, code: str) -> None:
    entry = active(publish(), alias("create-alias", name="used"))
    then, outputs = feed(change, entry=entry)
    assert ended(outputs) == [(code, "")]
    assert len(outputs) == 1
    assert versions.at_rest(then.ledger) == versions.at_rest(entry.ledger)


def test_a_version_named_by_a_rule_or_as_the_additional_one_is_in_use_too() -> None:
    base = active(publish("p1"), publish("p2"), publish("p3"))
    for more in ({"additional": "2"}, {"rule": "2"}):
        entry, _ = feed(alias("create-alias", **more), entry=base)
        assert ended(feed(delete("delete-version", "2"), entry=entry)[1]) == [("FailedOperation", "")]
        assert ended(feed(delete("delete-version", "3"), entry=entry)[1]) == [("", "")]


def test_the_default_alias_is_there_unmade_and_can_be_pointed_elsewhere() -> None:
    entry, outputs = feed(alias("update-alias", name="$DEFAULT"), entry=active(publish()))
    assert isinstance(outputs[0], AliasRecord)
    assert ended(feed(delete("delete-version", "1"), entry=entry)[1]) == [("FailedOperation", "")]


def test_deleting_the_function_deletes_all_of_them_and_one_made_anew_begins_at_1() -> None:
    entry = active(publish("p1"), publish("p2"), alias("create-alias"))
    seq = entry.seq
    entry, outputs = feed(command("delete-function", "c9"), *answers("c9", kind="delete-function"), entry=entry)
    gone = {o.key.rpartition("/")[2] for o in outputs if isinstance(o, versions.Removed)}
    assert gone == {"1", "2", "prod"}
    entry, outputs = feed(command("create-function", "c10"), *answers("c10"), publish("p3"), entry=entry)
    (version,) = [o for o in outputs if isinstance(o, VersionRecord)]
    assert version.version == "1"
    assert version.seq > seq


@pytest.mark.parametrize("kind", versions.KINDS)
def test_without_the_function_there_is_nothing_to_decide(kind: str) -> None:
    assert ended(feed(command(kind))[1]) == [("ResourceNotFound.FunctionName", "")]


def test_the_same_command_again_says_the_same_again() -> None:
    entry, outputs = feed(publish(), entry=active())
    assert take(entry, publish(), entry.applied) == (entry, outputs)
    assert avro.decode(Entry, avro.encode(entry)) == entry
