"""The pages say what the code does: names on them exist, tables on them equal the tables in the code."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from schemas import topics

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def symbols(path: Path) -> set[str]:
    """Names that a module defines: functions, classes, `Class.method`, top-level assignments."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def anchors() -> list[tuple[str, str, str]]:
    """Every `path::symbol` on a page."""
    found = []
    for page in PAGES:
        for path, symbol in re.findall(r"`([\w/.-]+\.py)::([\w.]+)`", page.read_text()):
            found.append((page.name, path, symbol))
    return found


@pytest.mark.parametrize(("page", "path", "symbol"), anchors(), ids=str)
def test_a_symbol_named_on_a_page_exists(page: str, path: str, symbol: str) -> None:
    module = ROOT / path
    assert module.is_file(), f"{page} names {path}, which does not exist"
    assert symbol in symbols(module), f"{page} names {path}::{symbol}, which is not defined there"


def test_the_architecture_page_traces_an_event_by_symbols() -> None:
    assert len([a for a in anchors() if a[0] == "ARCHITECTURE.md"]) >= 12


def test_the_topics_page_lists_every_topic_as_the_table_has_it() -> None:
    rows = [line for line in (ROOT / "docs" / "topics.md").read_text().splitlines() if line.startswith("| penstock.")]
    expected = [
        f"| {t.name} | {t.record.__name__} | {t.partitions} | {_kept(t)} | {t.writer} | {t.purpose} |"
        for t in topics.TOPICS
    ]
    assert rows == expected


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def test_no_file_names_a_registry_host_or_a_path_of_this_machine() -> None:
    hosts = [
        "py" + "pi.org",
        "pythonhosted" + ".org",
        "npmjs" + ".org",
        "maven.apache" + ".org/maven2",
        "repo1.maven" + ".org",
    ]
    hosts += [
        "crates" + ".io",
        "proxy.golang" + ".org",
        "deb.debian" + ".org",
        "/work/" + "main",
        "/work/" + "shared",
        "/root" + "/.pyenv",
    ]
    found = []
    for path in tracked():
        text = path.read_text(errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {host}" for host in hosts if host in text]
    assert found == []


def test_no_source_file_is_longer_than_600_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in tracked()
        if p.suffix == ".py" and (n := len(p.read_text().splitlines())) > 600
    }
    assert long == {}


def test_every_promise_names_a_test_that_exists_or_says_pending() -> None:
    page = (ROOT / "docs" / "SPECIFICATION.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "|---"))]
    assert len(rows) > 15
    for row in rows:
        last = row.rstrip(" |").rsplit("|", 1)[-1]
        names = re.findall(r"`([\w/.]+\.py)(?:::(\w+))?`", last)
        assert names or "pending" in last, f"no test and not pending: {row}"
        for path, test in names:
            assert (ROOT / path).is_file(), f"{path} does not exist: {row}"
            assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path} has no {test}"


def _kept(spec: topics.TopicSpec) -> str:
    hours = "" if spec.retention_ms is None else f"{spec.retention_ms // topics.HOUR_MS} h"
    return ", ".join(filter(None, ("compacted" if spec.compacted else "", hours)))
