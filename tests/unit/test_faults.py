"""Fault points: a process that a test names is killed once, at the named place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_COME_BY = "from infra.faults import fault\nfault('a.b'); print('first', flush=True); fault('a.b'); print('second')"


def come_by(folder: Path | None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({} if folder is None else {"PENSTOCK_FAULTS": str(folder)})}
    return subprocess.run([sys.executable, "-c", _COME_BY], capture_output=True, text=True, env=env, check=False)


def test_without_a_wish_nothing_happens(tmp_path: Path) -> None:
    assert come_by(None).stdout.split() == come_by(tmp_path).stdout.split() == ["first", "second"]


def test_another_process_is_killed_once(tmp_path: Path) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    (tmp_path / "a.b").write_text(str(victim.pid))
    assert come_by(tmp_path).returncode == 0
    assert victim.wait(10) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["a.b.struck"]
