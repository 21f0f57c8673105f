"""One program in the foreground, for tests and set-up: started, waited for, stopped; never left behind.

The fabric's own processes are the supervisor's business; this is for a single one that lives as long as a `with`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from infra.tether import tethered
from schemas.errors import DependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_POLL_S = 0.01
_TAIL_BYTES = 3_000


class Foreground:
    """A started program, in a session of its own, killed with the thread that made it.

    Args:
        command: What to run.
        log: Where its stdout and stderr go (appended).
        environ: More environment variables for it.
    """

    def __init__(self, command: list[str], log: Path, *, environ: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environ or {})},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_ready(
        self, is_ready: Callable[[float], None], *, timeout_s: float, failure: type[DependencyError]
    ) -> None:
        """Call `is_ready(seconds left)` until it does not raise `failure`. Blocks.

        Raises:
            failure: the program ended, or the time did; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            if not self.is_running:
                raise failure(f"it ended with status {self._process.returncode} before it was ready: {self.log_tail()}")
            if left_s <= 0:
                raise failure(f"it was not ready within {timeout_s:g} s: {self.log_tail()}")
            try:
                is_ready(left_s)
            except failure:
                time.sleep(_POLL_S)
            else:
                return

    def stop(self, timeout_s: float) -> int:
        """SIGTERM, and SIGKILL if it still runs after `timeout_s`. Returns its exit status. Idempotent."""
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.wait()

    def log_tail(self) -> str:
        """The end of what it wrote, or a word that there is nothing."""
        try:
            return self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip() or "(it wrote nothing)"
        except OSError:
            return "(it wrote nothing)"
