"""What set-up and the broker decide without starting anything: Java's versions, the lock, the files."""

from __future__ import annotations

import hashlib
import stat
import string
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.broker import installation, jars, properties
from infra.broker.fetch import render_pom
from infra.broker.installation import Installation
from infra.broker.jars import Jar
from infra.broker.java import Java, find_java, fingerprint, parse_major
from infra.broker.kafka import Broker
from infra.loopback import choose_port, free_port
from schemas.errors import ConfigError, SetupError


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6)', 17),
        ('openjdk version "25" 2025-09-16 LTS', 25),
        ('openjdk version "22-ea" 2024-03-19', 22),
        ('java version "1.8.0_392"\nJava(TM) SE Runtime Environment', 8),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "21.0.2" 2024-01-16', 21),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
        ("", None),
    ],
)
def test_the_major_version_is_read_from_what_java_says(text: str, major: int | None) -> None:
    assert parse_major(text) == major


def fake_java(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_an_old_java_home_is_passed_over_for_the_path(tmp_path: Path) -> None:
    fake_java(tmp_path / "old" / "bin" / "java", "11.0.2")
    good = fake_java(tmp_path / "new" / "bin" / "java", "21.0.2")
    found = find_java({"JAVA_HOME": str(tmp_path / "old"), "PATH": str(good.parent)})
    assert (found.path, found.major, found.source) == (good, 21, "PATH")


def test_without_a_usable_java_the_error_says_what_was_seen_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.broker.java.wheel_java", lambda: None)
    old = fake_java(tmp_path / "bin" / "java", "11.0.2")
    with pytest.raises(SetupError, match=f"{old} is Java 11.*run `make setup`"):
        find_java({"PATH": str(old.parent)})


def test_a_known_java_is_not_asked_again(tmp_path: Path) -> None:
    path = fake_java(tmp_path / "bin" / "java", "21.0.2")
    noted = Java(path, 99, "what it said then", "PATH")
    known = {fingerprint(path): noted}
    assert find_java({"PATH": str(path.parent)}, known=known) == noted
    path.write_text(path.read_text() + "# another program now\n")
    assert find_java({"PATH": str(path.parent)}, known=known).major == 21


def test_the_lock_names_45_jars_of_kafka() -> None:
    locked = jars.read_lock()
    assert len(locked) == 45
    assert f"kafka_2.13-{jars.KAFKA_VERSION}.jar" in [jar.file_name for jar in locked]
    assert [jar.file_name for jar in locked] == sorted(jar.file_name for jar in locked)


@pytest.mark.parametrize("line", ["a:b:1", "a:b " + "0" * 64, "a:b:1 " + "g" * 64, "a:b:1 " + "0" * 63])
def test_a_damaged_lock_is_refused_by_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "jars.lock").write_text(f"# comment\n\n{line}\n")
    with pytest.raises(SetupError, match="line 3"):
        jars.read_lock(tmp_path / "jars.lock")


def content(jar_name: str) -> bytes:
    return f"the bytes of {jar_name}".encode()


LOCKED = tuple(Jar("g", name, "1", hashlib.sha256(content(f"{name}-1.jar")).hexdigest()) for name in "abc")


class Repository:
    """A fetcher that counts; what it brings can be spoilt."""

    def __init__(self, *, spoilt: str = "", absent: str = "", error: str = "") -> None:
        self.asked: list[str] = []
        self._spoilt, self._absent, self._error = spoilt, absent, error

    def __call__(self, wanted: Sequence[Jar], folder: Path) -> None:
        self.asked += [jar.artifact for jar in wanted]
        if self._error:
            raise SetupError(self._error)
        for jar in wanted:
            if jar.artifact != self._absent:
                spoil = b"!" if jar.artifact == self._spoilt else b""
                (folder / jar.file_name).write_bytes(content(jar.file_name) + spoil)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_complete_folder_is_left_alone(tmp_path: Path) -> None:
    libs = tmp_path / "libs"
    assert jars.provide(LOCKED, libs, [Repository()]) == 3
    before = {entry: entry.stat().st_mtime_ns for entry in libs.iterdir()}
    second = Repository()
    assert jars.provide(LOCKED, libs, [second]) == 0
    assert second.asked == []
    assert {entry: entry.stat().st_mtime_ns for entry in libs.iterdir()} == before


def test_a_corrupted_jar_and_a_missing_one_are_fetched_again_and_only_they(tmp_path: Path) -> None:
    libs = tmp_path / "libs"
    jars.provide(LOCKED, libs, [Repository()])
    (libs / "b-1.jar").write_bytes(b"half")
    (libs / "c-1.jar").unlink()
    again = Repository()
    assert jars.provide(LOCKED, libs, [again]) == 2
    assert again.asked == ["b", "c"]
    assert jars.missing(LOCKED, libs) == []


def test_what_is_not_in_the_lock_is_removed(tmp_path: Path) -> None:
    libs = tmp_path / "libs"
    (libs / "folder").mkdir(parents=True)
    (libs / "kafka-old.jar").write_bytes(b"on the class path it would do harm")
    jars.provide(LOCKED, libs, [Repository()])
    assert names(libs) == ["a-1.jar", "b-1.jar", "c-1.jar"]


def test_what_one_fetcher_spoils_the_next_brings(tmp_path: Path) -> None:
    first, second = Repository(spoilt="b"), Repository()
    jars.provide(LOCKED, tmp_path / "libs", [first, second])
    assert (first.asked, second.asked) == (["a", "b", "c"], ["b"])
    assert jars.missing(LOCKED, tmp_path / "libs") == []


def test_a_jar_with_the_wrong_hash_never_comes_into_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"1 of Kafka's 3 jars \(first: g:b:1\).*b-1.jar came with another content"):
        jars.provide(LOCKED, tmp_path / "libs", [Repository(spoilt="b")])
    assert names(tmp_path / "libs") == ["a-1.jar", "c-1.jar"]


def test_when_nobody_can_fetch_every_reason_is_given(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no mvn here; no network\. Check"):
        jars.provide(LOCKED, tmp_path / "libs", [Repository(error="no mvn here"), Repository(error="no network")])
    assert names(tmp_path) == ["libs"]  # nothing half-made beside it


def test_the_pom_asks_for_exactly_the_wanted_jars() -> None:
    pom = ElementTree.fromstring(render_pom(LOCKED))
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    asked = [
        ":".join(dependency.findtext(f"m:{part}", "", space) for part in ("groupId", "artifactId", "version"))
        for dependency in pom.iterfind("m:dependencies/m:dependency", space)
    ]
    assert asked == [jar.coordinate for jar in LOCKED]
    assert len(pom.findall(".//m:exclusion", space)) == len(LOCKED)


def unescape(text: str) -> str:
    """As java.util.Properties reads a value."""
    units, i = b"", 0
    while i < len(text):
        if text.startswith("\\u", i):
            units, i = units + bytes.fromhex(text[i + 2 : i + 6]), i + 6
        elif text[i] == "\\":
            units, i = units + text[i + 1].encode("utf-16-be"), i + 2
        else:
            units, i = units + text[i].encode("utf-16-be"), i + 1
    return units.decode("utf-16-be")


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_any_value_survives_a_properties_file(value: str) -> None:
    written = properties.escape(value)
    assert written.isascii() and "\n" not in written
    assert unescape(written) == value


def test_the_broker_listens_on_loopback_only(tmp_path: Path) -> None:
    text = properties.render_server(log_dir=tmp_path, port=1234, controller_port=5678)
    settings = dict(line.split("=", 1) for line in text.splitlines())
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:1234,CONTROLLER://127.0.0.1:5678"
    assert settings["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1234"
    assert settings["log.dirs"] == str(tmp_path)
    assert settings["auto.create.topics.enable"] == "false"


def test_a_data_folder_with_a_comma_is_refused() -> None:
    with pytest.raises(ConfigError, match="comma"):
        properties.render_server(log_dir=Path("/data/a,b"), port=1, controller_port=2)


def test_ids_are_what_kafka_takes() -> None:
    alphabet = set(string.ascii_letters + string.digits + "-_")
    for _ in range(500):
        new = properties.new_id()
        assert len(new) == 22 and set(new) <= alphabet and not new.startswith("-")


def test_meta_properties_are_read_back_also_as_kafka_rewrites_them() -> None:
    text = properties.render_meta(cluster_id="c" * 22, directory_id="d" * 22)
    rewritten = "#\n#Tue Nov 24 02:00:00 UTC 2026\n" + "\n".join(reversed(text.splitlines())) + "\n"
    assert properties.parse_meta(rewritten) == properties.parse_meta(text)
    assert properties.parse_meta(text)["cluster.id"] == "c" * 22


@pytest.fixture
def fake_installation(tmp_path: Path) -> Installation:
    """An installation that can't start anything."""
    folder = installation.kafka_folder(tmp_path / "build")
    (folder / "libs").mkdir(parents=True)
    paths = installation.jar_paths(folder)
    for path in paths:
        path.write_bytes(b"jar")
    made = Installation(folder, Java(fake_java(tmp_path / "jdk" / "bin" / "java", "17.0.1"), 17, "17", "PATH"), paths)
    made.checkpoint.write_bytes(b"features")
    installation.record(made)
    return made


def test_an_installation_is_loaded_as_recorded_until_a_jar_changes(
    fake_installation: Installation, tmp_path: Path
) -> None:
    environ = {"PATH": str(fake_installation.java.path.parent)}
    assert installation.load(tmp_path / "build", environ) == fake_installation
    fake_installation.jars[3].write_bytes(b"another")
    with pytest.raises(SetupError, match="changed since set-up: run `make setup`"):
        installation.load(tmp_path / "build", environ)


def test_without_set_up_the_error_says_to_run_it(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="run `make setup`"):
        installation.load(tmp_path)


def test_the_archive_belongs_to_one_java_and_one_set_of_jars(fake_installation: Installation) -> None:
    first = fake_installation.archive
    java = Java(fake_installation.java.path, 17, "17, another build", "PATH")
    assert Installation(fake_installation.folder, java, fake_installation.jars).archive != first
    fake_installation.jars[0].write_bytes(b"touched")
    assert fake_installation.archive != first


def test_a_prepared_broker_keeps_its_cluster_and_its_ports(fake_installation: Installation, tmp_path: Path) -> None:
    first, second = (Broker(tmp_path / "data", fake_installation) for _ in range(2))
    command = first.prepare()
    assert second.prepare() == command
    assert (second.cluster_id, second.port) == (first.cluster_id, first.port)
    assert (tmp_path / "data/log/__cluster_metadata-0/00000000000000000000-0000000000.checkpoint").exists()


def test_a_folder_of_something_else_is_not_formatted_over(fake_installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "data/log/orders-0").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no meta\.properties"):
        Broker(tmp_path / "data", fake_installation).prepare()


def test_a_format_that_was_cut_short_is_done_again(fake_installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "data/log/__cluster_metadata-0").mkdir(parents=True)
    Broker(tmp_path / "data", fake_installation).prepare()
    assert "cluster.id=" in (tmp_path / "data/log/meta.properties").read_text()


def test_the_last_port_is_used_again_unless_it_must_be_avoided() -> None:
    port = free_port()
    assert choose_port(asked=None, last=port, wanted_for="x") == port
    assert choose_port(asked=None, last=port, wanted_for="x", avoid=(port,)) != port
