"""`penstock up`'s side of infra.app.prepare: run it, follow its parts, and run it again when it hangs or breaks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from infra.restarts import EXIT_CONFIG
from infra.supervisor import last_lines
from infra.tether import tethered
from schemas.errors import BrokerUnavailable, ConfigError

_LIMITS_S: Final = (2.5, 5.0, 10.0, 30.0)


class Preparation:
    """One cluster to be made fit.

    Args:
        data_dir: the fabric's folder.
        environ: settings for the process, on top of our own.
        log: where its stderr goes.
        cluster_id: what must answer; empty when any cluster may.
        wait_s: for the cluster to answer at all.
        warm_up: whether a consumer group is to join once.
        limits_s: for each part after the first, one number a try.
    """

    def __init__(
        self,
        data_dir: Path,
        environ: Mapping[str, str],
        log: Path,
        *,
        cluster_id: str = "",
        wait_s: float = 120.0,
        warm_up: bool = True,
        limits_s: tuple[float, ...] = _LIMITS_S,
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "infra.app.prepare"),
    ) -> None:
        flags = ["--data-dir", str(data_dir), "--wait-s", str(wait_s)]
        flags += ["--cluster-id", cluster_id] if cluster_id else []
        flags += [] if warm_up else ["--no-warm-up"]
        self._command = [*command, *flags]
        self._environ, self._log, self._wait_s, self._limits_s = environ, log, wait_s, limits_s

    async def run(self, on_part: Callable[[str], None]) -> None:
        """Return when all is done; `on_part` hears of each part the first time that it ends.

        Raises:
            BrokerUnavailable: the cluster does not answer, or no try came to its end.
            ConfigError: something must be changed first.
        """
        told: set[str] = set()

        def note(part: str) -> None:
            if part not in told:
                told.add(part)
                on_part(part)

        trouble = ""
        for limit_s in self._limits_s:
            trouble = await self._try(limit_s, note)
            if not trouble:
                return
            if not told:  # it had all the time there is for the first part
                break
        raise BrokerUnavailable(trouble)

    async def _try(self, limit_s: float, note: Callable[[str], None]) -> str:
        """Empty when it came to its end, else what was wrong."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *tethered(self._command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self._environ},
            )
        assert process.stdout is not None
        try:
            patience_s = self._wait_s + limit_s
            while True:
                async with asyncio.timeout(patience_s):
                    line = await process.stdout.readline()
                if not line:
                    break
                note(line.decode(errors="replace").strip())
                patience_s = limit_s
            code = await process.wait()
        except TimeoutError:
            return f"the cluster was not made ready within {limit_s:g} s a part"
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        said = "; ".join(last_lines(self._log, 1))
        if code == EXIT_CONFIG:
            raise ConfigError(said)
        return "" if code == 0 else said or f"the cluster could not be made ready (status {code})"
