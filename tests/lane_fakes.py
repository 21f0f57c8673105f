"""Fakes around a lane engine: a consumer that does as told, a dispatcher that keeps what was submitted, a dead-letter topic in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra.kafka.commits import Mark
from infra.kafka.consumer import Assigned, ConsumerEvents, Record
from ingest.deadletter import DeadLetter, trigger_key
from ingest.lanes import marks
from schemas.errors import BrokerUnavailable
from schemas.frames import Flow, Result
from schemas.ids import FunctionKey
from schemas.records import KafkaSource, TriggerRecord
from schemas.runerror import error_body
from schemas.runstatus import RunStatus

FUNCTION = FunctionKey("1250000000", "default", "echo")


def trigger(name: str = "t1", *, enabled: bool = True, seq: int = 1, **kafka: Any) -> TriggerRecord:
    """A Kafka trigger of `FUNCTION`; keywords change its KafkaSource."""
    source = KafkaSource("", "orders", f"penstock.{name}")
    return TriggerRecord(
        seq, FUNCTION.appid, "1", FUNCTION.namespace, FUNCTION.name, name, "ckafka", "$LATEST", enabled, "{}", "", 0, 0, 0,
        "c", replace(source, **kafka),
    )  # fmt: skip


def result(status: RunStatus = RunStatus.OK, message: str = "boom") -> Result:
    """What an agent would answer."""
    body = b"null" if status == RunStatus.OK else error_body(status, message, b"r" * 16)
    return Result(0, int(status), 0, 0, 100, 10, 0, b"", body)


class FakeSource:
    """A GroupConsumer in memory."""

    def __init__(self, events: ConsumerEvents) -> None:
        self.events = events
        self.started = self.held = self.closed = False
        self.committed: dict[int, Mark] = {}
        self.commits = 0

    def start(self) -> None:
        self.started = True

    def commit(self, marks: Mapping[int, Mark]) -> None:
        assert not self.closed
        self.commits += 1
        self.committed |= marks

    def hold(self) -> None:
        assert not self.held
        self.held = True

    def release(self) -> None:
        assert self.held
        self.held = False

    async def close(self, timeout_s: float = 5.0) -> None:
        self.closed = True

    def assign(
        self, *partitions: int, epoch: int = 1, offset: int = 0, finished: Iterable[tuple[int, int]] = ()
    ) -> None:
        """Say that these are ours."""
        metadata, _ = marks.encode(epoch, offset, finished)
        self.events.assigned({p: Assigned(epoch, offset, metadata) for p in partitions})

    def hand_over(self, records: list[Record]) -> None:
        self.events.records(records)


@dataclass
class Submitted:
    """One call of the dispatcher, not answered yet."""

    function: FunctionKey
    qualifier: str
    event: bytes
    flow: Flow | None
    attempt: int
    done: Callable[[Result], None]

    @property
    def offsets(self) -> list[int]:
        return [entry["Ckafka"]["offset"] for entry in json.loads(self.event)["Records"]]


class FakeDispatcher:
    """Keeps what is submitted, or answers it by `answer` at once."""

    def __init__(self) -> None:
        self.out: list[Submitted] = []
        self.seen: list[list[int]] = []
        self.answer: Callable[[Submitted], Result | None] = lambda _call: None

    def submit(
        self,
        function: FunctionKey,
        qualifier: str,
        event: bytes,
        *,
        flow: Flow | None,
        attempt: int,
        flags: int,
        done: Callable[[Result], None],
    ) -> None:
        call = Submitted(function, qualifier, event, flow, attempt, done)
        self.seen.append(call.offsets)
        answer = self.answer(call)
        if answer is None:
            self.out.append(call)
        else:
            done(answer)

    def finish(self, answer: Result | None = None, *, offset: int | None = None) -> None:
        """Answer what is out (only the run that holds `offset`)."""
        chosen = [call for call in self.out if offset is None or offset in call.offsets]
        assert chosen
        for call in chosen:
            self.out.remove(call)
            call.done(answer or result())


class FakeDesk:
    """A dead-letter topic in memory."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []
        self.broken = False

    async def put(self, letter: DeadLetter) -> None:
        if self.broken:
            raise BrokerUnavailable("no acknowledgement")
        self.letters.append(letter)


class View:
    """A table view of triggers in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, TriggerRecord] = {}
        self._callbacks: list[Callable[[str, TriggerRecord | None], None]] = []

    def items(self) -> Mapping[str, TriggerRecord]:
        return self.rows

    def subscribe(self, callback: Callable[[str, TriggerRecord | None], None]) -> None:
        self._callbacks.append(callback)

    def put(self, record: TriggerRecord) -> str:
        key = str(trigger_key(record))
        self.rows[key] = record
        self._tell(key, record)
        return key

    def delete(self, key: str) -> None:
        del self.rows[key]
        self._tell(key, None)

    def _tell(self, key: str, record: TriggerRecord | None) -> None:
        for callback in self._callbacks:
            callback(key, record)
