"""`up`'s side of making a cluster fit, with small stand-ins for the process that does it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from infra.app.preparation import Preparation
from schemas.errors import BrokerUnavailable, ConfigError

COUNT = "import pathlib, sys; p = pathlib.Path({0!r}); n = len(p.read_text()) if p.exists() else 0; p.write_text('x' * (n + 1))\n"


def preparation(
    folder: Path, code: str, *, limits_s: tuple[float, ...] = (5.0, 5.0), wait_s: float = 5.0
) -> Preparation:
    program = COUNT.format(str(folder / "tries")) + code
    return Preparation(
        folder,
        {},
        folder / "prepare.log",
        wait_s=wait_s,
        limits_s=limits_s,
        command=(sys.executable, "-S", "-c", program),
    )


def tries(folder: Path) -> int:
    return len((folder / "tries").read_text())


async def test_each_part_is_told_once(tmp_path: Path) -> None:
    parts: list[str] = []
    await preparation(tmp_path, "print('broker'); print('topics')").run(parts.append)
    assert (parts, tries(tmp_path)) == (["broker", "topics"], 1)


async def test_a_process_that_aborts_is_run_again(tmp_path: Path) -> None:
    parts: list[str] = []
    code = "print('broker', flush=True)\nimport os\nif n == 0: os.abort()\nprint('topics')"
    await preparation(tmp_path, code).run(parts.append)
    assert (parts, tries(tmp_path)) == (["broker", "topics"], 2)


async def test_a_process_that_hangs_in_a_part_is_killed_and_run_again(tmp_path: Path) -> None:
    code = "print('broker', flush=True)\nimport time\nif n == 0: time.sleep(600)"
    await preparation(tmp_path, code, limits_s=(0.2, 5.0)).run(lambda _: None)
    assert tries(tmp_path) == 2


async def test_when_no_try_comes_to_its_end_the_last_trouble_is_told(tmp_path: Path) -> None:
    code = "print('broker', flush=True)\nsys.exit('the broker answers, but does not let us')"
    with pytest.raises(BrokerUnavailable, match="does not let us"):
        await preparation(tmp_path, code).run(lambda _: None)
    assert tries(tmp_path) == 2


async def test_a_cluster_that_never_answers_is_not_asked_twice(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="no broker"):
        await preparation(tmp_path, "sys.exit('no broker')").run(lambda _: None)
    assert tries(tmp_path) == 1


async def test_what_must_be_changed_first_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another cluster"):
        await preparation(tmp_path, "print('broker'); print('another cluster', file=sys.stderr); sys.exit(78)").run(
            lambda _: None
        )
    assert tries(tmp_path) == 1
