"""Trees of packages: the later one wins, and nothing is ever written through a link."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sandbox.trees import merge, merged_name


def layer(folder: Path, **files: str) -> Path:
    """A package; `a__b` is the file b in the folder a."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o444)
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def no_links(source: str, target: str) -> None:
    raise OSError(errno.EXDEV, "another file system")


@pytest.fixture(params=["links", "copies"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "copies":
        monkeypatch.setattr(os, "link", no_links)
    return str(request.param)


def test_folders_are_joined_and_of_two_files_the_later_layers_is_there(tmp_path: Path, way: str) -> None:
    one = layer(tmp_path / "one", same="1", python__a="1", python__b="1")
    two = layer(tmp_path / "two", same="2", python__b="2", python__c="2")
    merge([one, two], tmp_path / "both")
    assert texts(tmp_path / "both") == {"same": "2", "python/a": "1", "python/b": "2", "python/c": "2"}
    merge([two, one], tmp_path / "other")
    assert texts(tmp_path / "other")["same"] == "1"


def test_a_later_file_hides_a_folder_and_a_later_folder_a_file(tmp_path: Path, way: str) -> None:
    one = layer(tmp_path / "one", x__deep__a="1", x__b="1", y="1")
    two = layer(tmp_path / "two", x="2", y__deep__c="2")
    merge([one, two], tmp_path / "both")
    assert texts(tmp_path / "both") == {"x": "2", "y/deep/c": "2"}


def test_the_sources_stay_as_they_are_for_those_who_share_them(tmp_path: Path, way: str) -> None:
    one, two = layer(tmp_path / "one", a="1", d__e="1"), layer(tmp_path / "two", a="2", d="2")
    merge([one, two], tmp_path / "both")
    merge([one, two, one], tmp_path / "more")
    assert (texts(one), texts(two)) == ({"a": "1", "d/e": "1"}, {"a": "2", "d": "2"})


def test_files_are_shared_where_links_work_and_keep_their_modes(tmp_path: Path, way: str) -> None:
    one = layer(tmp_path / "one", a="1", run="1")
    (one / "run").chmod(0o555)
    merge([one], tmp_path / "tree")
    shared = (tmp_path / "tree" / "a").stat().st_ino == (one / "a").stat().st_ino
    assert shared == (way == "links")
    assert [(tmp_path / "tree" / n).stat().st_mode & 0o777 for n in ("a", "run", ".")] == [0o444, 0o555, 0o755]


def test_a_tree_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer(tmp_path / "one", a="1", b="1")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copy", full)
    with pytest.raises(OSError, match="no space"):
        merge([one], tmp_path / "tree")
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_tree_that_is_there_stays(tmp_path: Path) -> None:
    one, two = layer(tmp_path / "one", a="1"), layer(tmp_path / "two", a="2")
    merge([one], tmp_path / "tree")
    merge([two], tmp_path / "tree")
    assert texts(tmp_path / "tree") == {"a": "1"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "tree", "two"]


def test_a_trees_name_says_which_layers_in_which_order() -> None:
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    assert len({merged_name(x) for x in ([a], [a, b], [b, a], [a, b, c], [b])}) == 5
    assert merged_name((a, b)) == merged_name([a, b])
