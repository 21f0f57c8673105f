"""Where a handler may stand: in the package, or at the top of a layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.runner.codecheck import check

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
