"""Settings: where a value comes from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import settings
from infra.credentials import credentials, fabric_key, make_credentials
from schemas.errors import ConfigError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of whoever runs the tests."""
    import os

    for name in list(os.environ):
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / "penstock.toml").write_text('port = 1001\nzone = "file"\nlog_level = "debug"\n')
    monkeypatch.setenv("PENSTOCK_PORT", "1002")
    monkeypatch.setenv("PENSTOCK_ZONE", "environment")
    found = settings.load(data_dir, flags={"port": 1003, "zone": None})
    assert (found.port, found.zone, found.log_level, found.region) == (1003, "environment", "DEBUG", "ap-guangzhou")


def test_the_file_of_the_data_folder_counts_and_the_one_of_the_current_folder_only_without_it(data_dir: Path) -> None:
    Path("penstock.toml").write_text("port = 1001\n")
    assert settings.load(data_dir).port == 1001
    (data_dir / "penstock.toml").write_text('zone = "z"\n')
    found = settings.load(data_dir)
    assert (found.port, found.zone) == (None, "z")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("port = 1\nx = = 3\n", "line 2", "no valid TOML"),
        ("port = 'a\n", "line 1", "no valid TOML"),
        ("\nport = 'a'\n", "line 2, port", "integer"),
        ("port = 70000", "line 1, port", "65535"),
        ("prot = 3", "line 1", "did you mean 'port'?"),
        ("data_dir = 'x'", "line 1", "use --data-dir"),
        ("[nonsense]\na = 1", "line 1", "--print-config"),
        ("bootstrap_servers = 'nowhere'", "line 1, bootstrap_servers", "host:port"),
        ("s3_endpoint = 'http://a/b'", "line 1, s3_endpoint", "without a path"),
        ("driver = 'docker'", "line 1, driver", "'auto', 'jail' or 'microvm'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_line_and_what_to_do(
    data_dir: Path, text: str, line: str, says: str
) -> None:
    (data_dir / "penstock.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        settings.load(data_dir)
    assert str(data_dir / "penstock.toml") in str(refused.value)
    assert line in str(refused.value)
    assert says in str(refused.value)


def test_a_wrong_variable_or_flag_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^--port: "):
        settings.load(data_dir, flags={"port": 0})
    monkeypatch.setenv("PENSTOCK_ALLOW_WEAKER_ISOLATION", "perhaps")
    with pytest.raises(ConfigError, match=r"^environment variable PENSTOCK_ALLOW_WEAKER_ISOLATION: "):
        settings.load(data_dir)


def test_a_store_needs_its_keys_and_no_secret_is_shown(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="PENSTOCK_S3_ACCESS_KEY"):
        settings.load(data_dir, flags={"s3_endpoint": "http://s3.example:9000"})
    monkeypatch.setenv("PENSTOCK_S3_ACCESS_KEY", "the-id")
    monkeypatch.setenv("PENSTOCK_S3_SECRET_KEY", "the-secret")
    monkeypatch.setenv("PENSTOCK_KAFKA_OPTIONS", '{"sasl.password": "the-password", "sasl.username": "me"}')
    found = settings.load(data_dir, flags={"s3_endpoint": "http://s3.example:9000/"})
    shown = str(settings.show(found)) + repr(found)
    assert "the-secret" not in shown
    assert "the-password" not in str(settings.show(found))
    address = settings.store_address(found)
    assert (address.endpoint, address.keys.secret_key) == ("http://s3.example:9000", "the-secret")


def test_a_child_sees_what_its_parent_decided_and_no_secret_goes_that_way(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = {"port": 1234, "allow_weaker_isolation": True, "bootstrap_servers": "127.0.0.1:9092", "driver": None}
    for name, value in settings.child_environment(decided).items():
        monkeypatch.setenv(name, value)
    found = settings.load(data_dir)
    assert (found.port, found.allow_weaker_isolation, found.bootstrap_servers, found.driver) == (
        1234,
        True,
        "127.0.0.1:9092",
        "auto",
    )
    with pytest.raises(TypeError):
        settings.child_environment({"s3_secret_key": "x"})


def test_credentials_are_made_once_for_their_owner_only(data_dir: Path) -> None:
    made = make_credentials(data_dir, region="ap-beijing", appid="1250000001")
    again = make_credentials(data_dir, region="ap-guangzhou")
    assert made == again == credentials(data_dir)
    assert (made.region, made.appid, made.secret_id[:4], len(made.secret_key)) == (
        "ap-beijing",
        "1250000001",
        "AKID",
        32,
    )
    assert made.secret_key not in repr(made)
    assert fabric_key(data_dir, make=True) == fabric_key(data_dir)
    assert {f.stat().st_mode & 0o777 for f in data_dir.iterdir()} == {0o600}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"secret_id": 1}', "\xff"])
def test_damaged_credentials_say_so(data_dir: Path, content: str) -> None:
    (data_dir / "credentials.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"credentials\.json is damaged"):
        credentials(data_dir)


def test_a_variable_that_sets_nothing_is_named_with_the_likely_one() -> None:
    said = settings.unknown_variables(["PENSTOCK_PROT", "PENSTOCK_PORT", "PENSTOCK_CI", "PENSTOCK_XYZZY", "PATH"])
    assert [s.split(":")[0] for s in said] == [
        "environment variable PENSTOCK_PROT sets nothing",
        "environment variable PENSTOCK_XYZZY sets nothing",
    ]
    assert "did you mean 'port'?" in said[0]
    assert "--print-config" in said[1]
