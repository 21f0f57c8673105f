"""docs/api.md lists the actions that there are."""

from __future__ import annotations

import re
from pathlib import Path

from ingest.api.actions import ACTIONS


def test_the_api_page_lists_every_action_in_the_tables_order() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    listed = re.findall(r"^\| ([A-Z][A-Za-z]+) \|", page, re.MULTILINE)
    assert listed == list(ACTIONS)
