"""The streams process under test, and what a gateway and a module do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from infra.kafka.producer import Producer
from infra.kafka.tables import TableReader
from schemas import avro
from schemas.records import Command, FunctionRecord, Outcome, StepResult
from schemas.topics import COMMANDS, FUNCTIONS, OUTCOMES, STEP_RESULTS, TOPICS
from streams.registry import key_of
from tests.commands import answers


class Worker:
    """One streams process, as `penstock up` starts it."""

    def __init__(self, folder: Path, bootstrap: str, slot: str = "streams-1") -> None:
        self._folder, self._bootstrap, self._slot = folder, bootstrap, slot
        self.log = folder / f"{slot}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Worker:
        command_line = [
            sys.executable,
            "-m",
            "infra.app.streams",
            "--data-dir",
            str(self._folder),
            "--slot",
            self._slot,
        ]
        environ = {**os.environ, "PENSTOCK_BOOTSTRAP_SERVERS": self._bootstrap, "PENSTOCK_LOG_LEVEL": "INFO"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command_line, stdout=log, stderr=log, env=environ)
        return self

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def running(worker: Worker) -> Iterator[Worker]:
    """The worker, started, and ended with the block."""
    try:
        yield worker.start()
    finally:
        if worker.alive:
            worker.end(signal.SIGKILL)


async def provision(bootstrap: str) -> None:
    """Make the control topics."""
    admin = Admin(Cluster(bootstrap))
    await admin.provision(TOPICS)
    admin.close()


class Client:
    """What a gateway and a module do: commands and step results in, views out."""

    def __init__(self, bootstrap: str) -> None:
        cluster = Cluster(bootstrap)
        self._producer = Producer(cluster, client_id="test", linger_ms=0)
        self._reader = TableReader(cluster, TOPICS)

    async def start(self) -> None:
        await self._producer.start()
        await self._reader.start(30)

    async def close(self) -> None:
        await self._producer.close()
        await self._reader.close()

    async def send(self, event: Command | StepResult) -> int:
        topic = COMMANDS if isinstance(event, Command) else STEP_RESULTS
        return await self.send_raw(topic, key_of(event), avro.encode(event))

    async def send_raw(self, topic: str, key: str | None, value: bytes | None) -> int:
        sent = await self._producer.send(topic, key=None if key is None else key.encode(), value=value)
        return sent.offset

    async def see(self, topic: str, key: str, claim: Callable[[Any], bool], within_s: float = 30.0) -> Any:
        """The newest value of a key once `claim` holds for it (None: no value)."""
        return await self._reader.view(topic).wait(key, claim, within_s)

    async def function(self, name: str, status: str, within_s: float = 30.0) -> FunctionRecord:
        key = f"1250000000/default/{name}"
        found = await self.see(FUNCTIONS, key, lambda r: r is not None and r.status == status, within_s)
        assert isinstance(found, FunctionRecord)
        return found

    async def complete(self, command_id: str, name: str, kind: str = "create-function") -> None:
        """Answer all steps of a saga that has begun, as modules do that find nothing wrong."""
        await self.function(name, {"c": "Creating", "u": "Updating", "d": "Deleting"}[kind[0]])
        for result in answers(command_id, function=name, kind=kind):
            await self.send(result)

    async def outcome(self, command_id: str) -> Outcome:
        found = await self.see(OUTCOMES, command_id, lambda o: o is not None)
        assert isinstance(found, Outcome)
        return found

    def functions(self) -> Mapping[str, FunctionRecord]:
        """All that the registry topic has now, by key; a live mapping."""
        return self._reader.view(FUNCTIONS).items()
