"""The gateway process: `python -m infra.app.gateway --data-dir D --slot gateway-1`. Cloud API, lanes, router."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack

from infra import clock
from infra.app.process import Process, every, main, wait_for_kafka
from infra.credentials import CREDENTIALS_FILE, credentials, fabric_key
from infra.kafka.admin import Admin
from infra.kafka.producer import Producer
from infra.kafka.scan import Scanner
from infra.kafka.tables import TableReader
from infra.loopback import HOST
from infra.metrics import MetricRegistry
from infra.objectstore.store import ObjectStore
from infra.sealing import Seal
from infra.settings import store_address
from infra.steps import StepLoop
from ingest.api.adapters import KafkaCommands, KafkaLaneStates, KafkaRequests, StoredCode
from ingest.api.background import BackgroundWork
from ingest.api.calls import Api
from ingest.api.collection import PackageCollector
from ingest.api.kafka_events import KafkaEvents, KafkaOutlet
from ingest.api.kafka_logs import KafkaLogs
from ingest.api.kafka_sources import KafkaSources
from ingest.api.kafka_workflows import KafkaWorkflows
from ingest.api.keystore import TenantKeys
from ingest.api.ports import Owner
from ingest.api.registry import Registry
from ingest.api.server import ApiServer
from ingest.api.services import Services
from ingest.api.upkeep import LimitUpkeep
from ingest.deadletter import DeadIndex, DeadLetterSink
from ingest.events.work import EventWork, kafka_topics
from ingest.trigger_steps import TriggerModule
from ingest.triggers import TriggerManager
from router.agents import AgentPool
from router.counts import Counts
from router.dispatch import Dispatcher
from router.functions import Resolver
from router.routes import RouteModule
from schemas import avro, topics
from schemas.errors import ConfigError
from schemas.records import Member

WINDOW_MS = 250
HEARTBEAT_S = 2.0
SWEEP_S = 30.0
STREAMS_STALE_MS = 10_000
_TABLES = (
    topics.FUNCTIONS, topics.TRIGGERS, topics.MEMBERS, topics.ACTIVITY, topics.LANES, topics.OUTCOMES,
    topics.NAMESPACES, topics.KEYS, topics.REQUESTS, topics.VERSIONS, topics.ALIASES,
    topics.LAYERS, topics.LIMITS, topics.PROVISIONS, topics.PROVISION_STATUS, topics.TERMINATIONS,
)  # fmt: skip


class Gateway:
    """All parts of one gateway, made and wired in order."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._settings = process.settings
        self._term = clock.unix_ms()
        self._window = 0
        cluster = process.cluster
        self._producer = Producer(cluster, client_id=process.slot, linger_ms=0.5)
        self._tables = TableReader(
            cluster, [t for t in topics.TOPICS if t.name in _TABLES], from_end=frozenset([topics.OUTCOMES])
        )
        self._counts = Counts()
        identity = {"kind": "gateway", "slot": process.slot, "term": self._term}
        self._agents = AgentPool(fabric_key(self._settings.data_dir), identity, self._agents_changed)
        self._dispatcher: Dispatcher | None = None

    async def run(self) -> None:
        """Serve until cancelled; then stop taking, finish what runs, commit, close."""
        cluster, settings = self._process.cluster, self._settings
        if settings.port is None:
            raise ConfigError("no port for the cloud API: set PENSTOCK_PORT, or start this process by `penstock up`")
        async with AsyncExitStack() as stack:
            await self._producer.start()
            stack.push_async_callback(self._producer.close, 3.0)
            await self._tables.start()
            stack.push_async_callback(self._tables.close)
            view = self._tables.view
            functions = Registry(view(topics.FUNCTIONS), clock.mono_s)
            triggers = Registry(view(topics.TRIGGERS), clock.mono_s)
            versions = Registry(view(topics.VERSIONS), clock.mono_s)
            aliases = Registry(view(topics.ALIASES), clock.mono_s)
            resolver = Resolver(functions, region=settings.region, versions=versions, aliases=aliases)
            dispatcher = Dispatcher(resolver, self._counts, self._agents)
            self._dispatcher = dispatcher
            limits = view(topics.LIMITS)
            limits.follow(dispatcher.limit_changed)
            members = view(topics.MEMBERS)
            members.follow(self._agents.member_changed)
            stack.callback(self._agents.close)
            address = store_address(settings)
            store = ObjectStore(
                address.endpoint, address.keys.access_key, address.keys.secret_key, region=address.region
            )
            stack.push_async_callback(store.close)
            scanner, admin, background, sources = (
                Scanner(cluster),
                Admin(cluster),
                BackgroundWork(),
                KafkaSources(cluster),
            )
            dead = DeadIndex(admin, scanner)
            for close in (scanner.close, background.close):
                stack.push_async_callback(close)
            stack.callback(admin.close)
            stack.callback(sources.close)
            metrics = MetricRegistry()
            manager = TriggerManager(
                view(topics.TRIGGERS),
                dispatcher.submit,
                DeadLetterSink(self._producer),
                self._producer,
                cluster=cluster,
                slot=self._process.slot,
                term=self._term,
                counts=self._counts,
                metrics=metrics,
                split=dispatcher.split,
            )
            outlet = KafkaOutlet(self._producer)
            work = EventWork(
                kafka_topics(cluster, self._process.slot),
                dispatcher,
                outlet,
                functions=view(topics.FUNCTIONS),
                terminations=view(topics.TERMINATIONS),
                counts=self._counts,
                metrics=metrics,
                retry_s=settings.event_retry_s,
            )
            own = credentials(settings.data_dir)
            made_s = (settings.data_dir / CREDENTIALS_FILE).stat().st_mtime
            keys = Registry(view(topics.KEYS), clock.mono_s)
            seal = Seal(fabric_key(settings.data_dir), purpose="keys")
            services = Services(
                functions=functions,
                triggers=triggers,
                namespaces=Registry(view(topics.NAMESPACES), clock.mono_s),
                keys=keys,
                layers=Registry(view(topics.LAYERS), clock.mono_s),
                limits=Registry(limits, clock.mono_s),
                provisions=Registry(view(topics.PROVISIONS), clock.mono_s),
                versions=versions,
                aliases=aliases,
                owner=Owner(own.secret_id, own.appid, own.uin, int(made_s * 1_000)),
                seal=seal,
                commands=KafkaCommands(self._producer, view(topics.OUTCOMES)),
                code=StoredCode(store, bucket=address.bucket),
                invoker=dispatcher,
                sources=sources,
                lanes=KafkaLaneStates(view(topics.LANES), own=manager.status_of, gateway=self._process.slot),
                dead=dead,
                logs=KafkaLogs(admin, scanner, clock.mono_s),
                workflows=KafkaWorkflows(admin, scanner),
                events=KafkaEvents(outlet, admin, scanner),
                activity=view(topics.ACTIVITY),
                members=members,
                kept=view(topics.PROVISION_STATUS),
                clock=clock,
                region=settings.region,
                bootstrap_servers=cluster.bootstrap_servers,
            )
            upkeep = LimitUpkeep(
                view(topics.FUNCTIONS), view(topics.VERSIONS), view(topics.NAMESPACES), limits, view(topics.PROVISIONS),
                services.commands, background, clock,
            )  # fmt: skip
            server = ApiServer(
                Api(
                    services,
                    TenantKeys(own, keys, seal, clock),
                    metrics,
                    KafkaRequests(self._producer, view(topics.REQUESTS)),
                ),
                metrics,
                self,
                pages={},
            )
            await server.start(HOST, settings.port)
            stack.push_async_callback(server.close)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._agents.run())
                group.create_task(manager.run())
                group.create_task(work.run())
                binding = TriggerModule(sources, cluster.bootstrap_servers)
                routes = RouteModule(resolver, lambda: len(self._agents.links))
                for module, handle in (("route", routes.handle), ("trigger", binding.handle)):
                    group.create_task(
                        StepLoop(
                            cluster, self._producer, module=module, instance_id=self._process.slot, handle=handle
                        ).run()
                    )
                # In a store that is not ours alone another fabric may keep its packages in the same bucket.
                if settings.s3_endpoint is None:
                    group.create_task(
                        PackageCollector(
                            store,
                            address.bucket,
                            functions=view(topics.FUNCTIONS),
                            versions=view(topics.VERSIONS),
                            layers=view(topics.LAYERS),
                            is_whole=lambda: self.parts()["streams"],
                            clock=clock,
                        ).run()
                    )
                group.create_task(every(0.2, self._tick))
                group.create_task(every(SWEEP_S, upkeep.sweep))
                group.create_task(every(WINDOW_MS / 1000, self._report))
                group.create_task(every(HEARTBEAT_S, self._heartbeat))

    def parts(self) -> Mapping[str, bool]:
        """What /readyz says."""
        now = clock.unix_ms()
        members = self._tables.view(topics.MEMBERS).items()
        streams = [m for m in members.values() if m.kind == "streams" and now - m.unix_ms < STREAMS_STALE_MS]
        return {"streams": bool(streams), "agent": bool(self._agents.links)}

    def _agents_changed(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.agents_changed()

    def _tick(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.tick()

    def _report(self) -> None:
        self._window += 1
        windows = self._counts.close_windows(
            gateway=self._process.slot,
            term=self._term,
            number=self._window,
            unix_ms=clock.unix_ms(),
            span_ms=WINDOW_MS,
        )
        for window in windows:
            self._producer.send_nowait(topics.INVOCATIONS, key=window.key.encode(), value=avro.encode(window))

    def _heartbeat(self) -> None:
        detail = json.dumps({"pid": os.getpid()})
        address = f"tcp:{HOST}:{self._settings.port}"
        member = Member(
            "gateway", self._process.slot, self._settings.host, self._settings.zone, address, self._term,
            clock.unix_ms(), detail,
        )  # fmt: skip
        key = f"gateway/{self._process.slot}".encode()
        self._producer.send_nowait(topics.MEMBERS, key=key, value=avro.encode(member))


async def run(process: Process) -> None:
    """Wait for Kafka, then serve."""
    await wait_for_kafka(process.cluster)
    await Gateway(process).run()


if __name__ == "__main__":
    main(run)
