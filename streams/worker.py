"""The Faust worker: the thin edge that feeds the pure cores and writes what they say (docs/adr/0002).

Faust owns membership of the group, the tables with their changelogs, and recovery. Outputs are written by the acknowledged producer before
an event counts as processed, so a crash repeats outputs and never skips one; the cores answer a repeated input with the same outputs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import dataclass
from typing import Any

import faust

from infra.clock import unix_ms
from infra.kafka.clients import Cluster
from infra.kafka.producer import Producer
from schemas import avro, topics
from schemas.errors import BrokerUnavailable, WireError
from schemas.records import Command, InvocationWindow, Member, StepResult
from streams.activity import Activity, take_window
from streams.registry import Entry, Outputs, key_of, take_command, take_result

_LOG = logging.getLogger("streams.worker")
HEARTBEAT_S = 2.0


@dataclass(frozen=True, slots=True)
class StreamsConfig:
    """What a worker needs. `instance_id` is stable over restarts (static membership) and its own on every host."""

    bootstrap_servers: str
    instance_id: str
    host: str
    zone: str
    session_s: float = 10.0


class Worker:
    """One embedded Faust app with its producer."""

    def __init__(self, config: StreamsConfig) -> None:
        self._config = config
        self._producer = Producer(Cluster(config.bootstrap_servers), client_id=config.instance_id, linger_ms=0)
        self._app = _app(config)
        self._registry = _table(self._app, "registry")
        self._activity = _table(self._app, "activity")
        self._agents = [
            self._app.agent(_source(self._app, topics.COMMANDS), name="commands")(self._commands),
            self._app.agent(_source(self._app, topics.STEP_RESULTS), name="results")(self._results),
            self._app.agent(_source(self._app, topics.INVOCATIONS), name="invocations")(self._invocations),
        ]

    async def run(self) -> None:
        """Work until cancelled. Ends with an error when Faust gives up; the supervisor then starts it again."""
        await self._producer.start()
        self._app.finalize()
        await self._app.start()
        _LOG.info("streams worker %s is running", self._config.instance_id)
        try:
            await self._heartbeat()
        finally:
            await self._say_member(None)
            await self._app.stop()
            await self._producer.close(2.0)

    async def _heartbeat(self) -> None:
        term = unix_ms()
        while True:
            crash = self._app.crash_reason
            if crash is not None or self._app.should_stop:
                raise BrokerUnavailable(f"the stream processor stopped: {crash!r}") from crash
            config = self._config
            await self._say_member(
                Member("streams", config.instance_id, config.host, config.zone, "", term, unix_ms(), _detail())
            )
            await asyncio.sleep(HEARTBEAT_S)

    async def _say_member(self, member: Member | None) -> None:
        key = f"streams/{self._config.instance_id}".encode()
        self._producer.send_nowait(topics.MEMBERS, key=key, value=None if member is None else avro.encode(member))

    async def _commands(self, stream: Any) -> None:
        async for event in stream.events():
            command = _decoded(Command, event)
            if command is not None:
                key = key_of(command)
                entry, outputs = take_command(self._entry(key), command, event.message.offset)
                self._registry[key.encode()] = avro.encode(entry)
                await self._write(key, outputs)

    async def _results(self, stream: Any) -> None:
        async for event in stream.events():
            result = _decoded(StepResult, event)
            if result is not None:
                entry, outputs = take_result(self._entry(result.key), result)
                self._registry[result.key.encode()] = avro.encode(entry)
                await self._write(result.key, outputs)

    async def _invocations(self, stream: Any) -> None:
        async for event in stream.events():
            window = _decoded(InvocationWindow, event)
            if window is None:
                continue
            key = window.key.encode()
            stored = self._activity.get(key)
            state = Activity(window.key) if stored is None else avro.decode(Activity, stored)
            state, shown = take_window(state, window)
            if shown is not None:
                self._activity[key] = avro.encode(state)
                self._producer.send_nowait(topics.ACTIVITY, key=key, value=avro.encode(shown))

    def _entry(self, key: str) -> Entry:
        stored = self._registry.get(key.encode())
        return Entry() if stored is None else avro.decode(Entry, stored)

    async def _write(self, key: str, outputs: Outputs) -> None:
        raw = key.encode()
        if outputs.function is not None:
            await self._send(topics.FUNCTIONS, raw, avro.encode(outputs.function))
        if outputs.trigger is not None:
            await self._send(topics.TRIGGERS, raw, avro.encode(outputs.trigger))
        if outputs.tombstone:
            await self._send(topics.FUNCTIONS if key.count("/") == 2 else topics.TRIGGERS, raw, None)
        if outputs.step is not None:
            await self._send(topics.STEPS_CODE, raw, avro.encode(outputs.step))
        if outputs.outcome is not None:
            await self._send(topics.OUTCOMES, outputs.outcome.command_id.encode(), avro.encode(outputs.outcome))

    async def _send(self, topic: str, key: bytes, value: bytes | None) -> None:
        while True:
            try:
                await self._producer.send(topic, key=key, value=value)
                return
            except BrokerUnavailable as exc:
                _LOG.warning("output to %s waits: %s", topic, exc)
                await asyncio.sleep(0.2)


def _decoded(record: type, event: Any) -> Any:
    """The event's value, or None for bytes that are no such record: skipped, and said."""
    try:
        return avro.decode(record, event.value or b"")
    except WireError as exc:
        message = event.message
        _LOG.warning("skipped %s[%d]@%d: %s", message.topic, message.partition, message.offset, exc)
        return None


def _app(config: StreamsConfig) -> Any:
    return faust.App(
        "penstock-streams",
        broker=";".join(f"aiokafka://{server}" for server in config.bootstrap_servers.split(",")),
        store="memory://",
        web_enabled=False,
        topic_partitions=topics.CONTROL_PARTITIONS,
        topic_replication_factor=1,
        topic_disable_leader=True,
        key_serializer="raw",
        value_serializer="raw",
        processing_guarantee="at_least_once",
        broker_commit_interval=0.3,
        broker_session_timeout=config.session_s,
        broker_heartbeat_interval=1.0,
        broker_max_poll_interval=300.0,
        consumer_group_instance_id=config.instance_id,
        producer_linger=0.005,
        stream_recovery_delay=0.0,
        stream_wait_empty=False,
        loop=asyncio.get_running_loop(),
    )


def _source(app: Any, name: str) -> Any:
    return app.topic(
        name,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        partitions=topics.CONTROL_PARTITIONS,
    )


def _table(app: Any, name: str) -> Any:
    return app.Table(
        name, partitions=topics.CONTROL_PARTITIONS, key_type=bytes, value_type=bytes
    )  # bytes are stored as they are: see key_serializer and value_serializer of the app


def _detail() -> str:
    return json.dumps({"pid": os.getpid()})


async def run_streams(config: StreamsConfig) -> None:
    """Entry of the streams process; ends cleanly when cancelled."""
    await Worker(config).run()
