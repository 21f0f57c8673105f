"""Where a handler may stand: in the package, or at the top of a layer."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from sandbox.runner.codecheck import check, check_bootstrap

HANDLER = "def main_handler(event, context):\n    pass\n"


@pytest.fixture
def search_path(tmp_path: Path) -> list[str]:
    for folder in ("user", "opt", "opt/python"):
        (tmp_path / folder).mkdir()
    (tmp_path / "user" / "own.py").write_text("import shared\nfrom shared import *\n")
    return [str(tmp_path / folder) for folder in ("user", "opt", "opt/python")]


@pytest.mark.parametrize("folder", [0, 1, 2])
@pytest.mark.parametrize("name", ["index.py", "index/__init__.py", "index.cpython-310.so"])
def test_a_handler_is_found_where_the_worker_would_find_it(search_path: list[str], folder: int, name: str) -> None:
    file = Path(search_path[folder]) / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(HANDLER)
    assert check("index.main_handler", search_path) == []
    assert bool(check("index.main_handler", search_path[:1])) == (folder > 0)


def test_the_packages_own_file_decides(search_path: list[str]) -> None:
    Path(search_path[1], "index.py").write_text(HANDLER)
    Path(search_path[0], "index.py").write_text("def other(event, context):\n    pass\n")
    ((said, message),) = check("index.main_handler", search_path)
    assert (said, "no function main_handler" in message) == ("InvalidParameterValue.Handler", True)


def test_a_handler_that_is_nowhere_is_refused_with_what_the_package_has(search_path: list[str]) -> None:
    ((said, message),) = check("index.main_handler", search_path)
    assert (said, "there is: own.py" in message) == ("InvalidParameterValue.Handler", True)


def test_the_file_of_a_handler_in_a_folder_must_be_in_the_package(search_path: list[str]) -> None:
    Path(search_path[1], "deep").mkdir()
    Path(search_path[1], "deep", "index.py").write_text(HANDLER)
    assert check("deep/index.main_handler", search_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has no file bootstrap at its top"),
        (b"#!/bin/sh\r\necho\r\n", "CRLF"),
        (b"#!/no/such/thing -x\n", "'/no/such/thing' as its interpreter"),
        (b"#!\n", "does not exist here"),
        (b"", "neither with #!"),
        (b"MZ\x90", "neither with #!"),
        (b"\x7fELF\x02\x02\x01" + bytes(11) + b"\x00\x16" + bytes(44), "another kind of processor"),
        (b"#! /bin/sh -e\n", ""),
        (b"#!/bin/sh", ""),
    ],
)
def test_a_bootstrap_that_could_not_be_started_is_told_with_the_reason(
    search_path: list[str], content: bytes | None, says: str
) -> None:
    if content is not None:
        file = Path(search_path[0], "bootstrap")
        file.write_bytes(content)
        file.chmod(0o555)
    found = check_bootstrap(search_path[0])
    assert bool(found) == bool(says)
    for code, message in found:
        assert code == "InvalidParameterValue.Code"
        assert says in message


def test_this_machines_own_programs_pass(search_path: list[str]) -> None:
    shutil.copy(os.path.realpath(sys.executable), Path(search_path[0], "bootstrap"))
    assert check_bootstrap(search_path[0]) == []
