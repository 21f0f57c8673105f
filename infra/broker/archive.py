"""Two things made once per installation, by running Kafka's own classes: the checkpoint and the start-up archive."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from infra.broker import properties
from infra.broker.kafka import serving_broker
from schemas.errors import PenstockError, SetupError

if TYPE_CHECKING:
    from infra.broker.installation import Installation

_TOOL_TIMEOUT_S = 120.0
# The JVM writes the archive when it ends; that took up to 18 s on a loaded machine.
_DUMP_TIMEOUT_S = 180.0


def make_checkpoint(installation: Installation) -> None:
    """Let StorageTool format a throw-away folder, and keep the file with the cluster's features.

    Raises:
        SetupError: the tool failed; with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="format-", dir=installation.folder) as scratch:
        log_dir, config = Path(scratch) / "log", Path(scratch) / "server.properties"
        config.write_text(properties.render_server(log_dir=log_dir, port=9092, controller_port=9093))
        arguments = ("kafka.tools.StorageTool", "format", "-t", properties.new_id(), "-c", str(config))
        try:
            run = subprocess.run(
                installation.command(*arguments), capture_output=True, timeout=_TOOL_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise SetupError(f"Kafka's StorageTool did not finish: {exc}") from exc
        made = sorted(log_dir.glob("__cluster_metadata-0/*.checkpoint"))
        if run.returncode != 0 or len(made) != 1:
            said = (run.stdout + run.stderr).decode(errors="replace").strip()[-500:]
            raise SetupError(f"Kafka's StorageTool made no checkpoint (status {run.returncode}): {said}")
        made[0].chmod(0o644)  # the tool makes it for its own user only; others of this machine start brokers too
        os.replace(made[0], installation.checkpoint)


def is_usable(installation: Installation) -> bool:
    """Whether this JVM takes the archive: it is told to refuse to start without it."""
    if not installation.archive.exists():
        return False
    must = "-XX:AOTMode=on" if installation.archive_is_aot else "-Xshare:on"
    command = installation.command("-version", flags=(installation.archive_flag, must))
    try:
        run = subprocess.run(command, capture_output=True, timeout=_TOOL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return run.returncode == 0


def make_archive(installation: Installation) -> None:
    """Run a broker once, use it a little, and let the JVM write down the classes it had loaded. Removes older archives.

    Raises:
        SetupError: there is no usable archive after it; the broker starts without one, in twice the time.
    """
    archive = installation.archive
    archive.parent.mkdir(exist_ok=True)
    # The JVM writes to the name it is given; it gets its final one only when it is whole.
    made = archive.with_name(f"making-{archive.name}")
    flag = "-XX:AOTCacheOutput" if installation.archive_is_aot else "-XX:ArchiveClassesAtExit"
    try:
        with (
            tempfile.TemporaryDirectory(prefix="train-", dir=installation.folder) as scratch,
            serving_broker(
                Path(scratch), flags=(f"{flag}={made}",), installation=installation, stop_timeout_s=_DUMP_TIMEOUT_S
            ) as running,  # its warm-up is part of the use
        ):
            running.broker.warm_up_transactions()
    except PenstockError as exc:
        raise SetupError(f"no start-up archive: {exc}") from exc
    for leftover in archive.parent.iterdir():
        if leftover != made:
            with suppress(OSError):
                leftover.unlink()
    if not made.exists():
        raise SetupError("no start-up archive: the JVM wrote none")
    made.replace(archive)
    if not is_usable(installation):
        archive.unlink()
        raise SetupError("no start-up archive: the JVM does not take the one it wrote")
