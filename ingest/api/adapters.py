"""The real things behind `ingest.api.ports`, over infra's doors: commands, the code store, lanes' states."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from infra.kafka.producer import Producer
from infra.kafka.tables import TableView
from infra.objectstore.store import ObjectStore
from ingest.api.ports import LaneState
from schemas import avro, topics
from schemas.errors import ObjectNotFound
from schemas.ids import TriggerKey
from schemas.package import CODE_BUCKET, package_object
from schemas.records import Command, LanePartition, LaneStatus, Outcome
from schemas.tenants import CarriedOut, TenantCommand

SEND_S: Final = 5.0
_AWAITED: Final = 10_000


class CommandTicket:
    """A command that the broker has. Its outcome may be known already."""

    def __init__(self, offset: int, answer: asyncio.Future[Outcome]) -> None:
        self.offset = offset
        self._answer = answer

    async def outcome(self, timeout_s: float) -> Outcome | None:
        """How it ended; None when that is not known in time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._answer)
        except (TimeoutError, asyncio.CancelledError) as exc:
            if isinstance(exc, TimeoutError) or self._answer.cancelled():
                return None
            raise


class KafkaCommands:
    """Commands to their topics; their outcomes from a view of topics.OUTCOMES (read from its end)."""

    def __init__(self, producer: Producer, outcomes: TableView[Outcome]) -> None:
        self._producer, self._outcomes = producer, outcomes
        self._awaited: OrderedDict[str, asyncio.Future[Outcome]] = OrderedDict()
        self._callbacks: list[Callable[[Outcome], None]] = []
        outcomes.subscribe(self._heard)

    async def send(self, key: str, command: Command | TenantCommand) -> CommandTicket:
        """Raises BrokerUnavailable; then it is not known whether the command is in."""
        topic = topics.COMMANDS if isinstance(command, Command) else topics.TENANT_COMMANDS
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._awaited[command.command_id] = answer
        if len(self._awaited) > _AWAITED:  # streams has been away for long, and nobody waits for these any more
            self._awaited.popitem(last=False)[1].cancel()
        try:
            delivered = await self._producer.send(topic, key=key.encode(), value=avro.encode(command), timeout_s=SEND_S)
        except BaseException:
            self._awaited.pop(command.command_id, None)
            raise
        return CommandTicket(delivered.offset, answer)

    def subscribe(self, callback: Callable[[Outcome], None]) -> None:
        """Called for every outcome."""
        self._callbacks.append(callback)

    def _heard(self, key: str, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        self._outcomes.apply(key, None, tell=False)  # an outcome is an event: keeping all would only fill the memory
        answer = self._awaited.pop(outcome.command_id, None)
        if answer is not None and not answer.done():
            answer.set_result(outcome)
        for callback in self._callbacks:
            callback(outcome)


class KafkaRequests:
    """What was carried out, by topics.REQUESTS: gateways tell each other, and themselves after a restart."""

    def __init__(self, producer: Producer, view: TableView[CarriedOut]) -> None:
        self._producer, self._view = producer, view

    def note(self, request: CarriedOut) -> None:
        """Tell the others."""
        self._producer.send_nowait(topics.REQUESTS, key=request.mark.hex().encode(), value=avro.encode(request))

    def subscribe(self, callback: Callable[[CarriedOut], None]) -> None:
        """Called for every one, and at once for those that are there; the view keeps none of them."""

        def heard(key: str, request: CarriedOut | None) -> None:
            if request is not None:
                self._view.apply(key, None, tell=False)
                callback(request)

        for key, request in list(self._view.items().items()):
            heard(key, request)
        self._view.subscribe(heard)


class StoredCode:
    """Code packages in the object store."""

    def __init__(self, store: ObjectStore, *, bucket: str = CODE_BUCKET) -> None:
        self._store, self._bucket = store, bucket

    async def put_package(self, sha256: str, package: bytes) -> None:
        """Store a package under its hash; the bucket is made when it went missing."""
        try:
            await self._store.put(self._bucket, package_object(sha256), package, sha256)
        except ObjectNotFound:
            await self._store.ensure_bucket(self._bucket)
            await self._store.put(self._bucket, package_object(sha256), package, sha256)

    async def package_url(self, sha256: str, *, valid_s: int) -> str:
        """A presigned URL of the store, at the address that the fabric itself uses for it."""
        return await self._store.presigned_url(self._bucket, package_object(sha256), valid_s=valid_s)

    async def read_object(self, bucket: str, name: str, *, limit_bytes: int) -> bytes:
        """An object of any bucket but the fabric's own, which holds every tenant's packages."""
        if bucket == self._bucket:
            raise ObjectNotFound(f"{bucket}/{name}")
        return await self._store.get(bucket, name, limit_bytes=limit_bytes)


class KafkaLaneStates:
    """What gateways say of triggers' lanes, from the view of topics.LANES; of this gateway's own, what it knows now.

    Args:
        view: keyed `gateway/trigger key`.
        own: the newest state of one of this gateway's engines, by trigger key; None when it has none.
        gateway: this gateway's name in the view.
    """

    def __init__(
        self,
        view: TableView[LaneStatus],
        *,
        own: Callable[[str], LaneStatus | None] = lambda _key: None,
        gateway: str = "",
    ) -> None:
        self._own, self._gateway = own, gateway
        self._by_trigger: dict[str, dict[str, LaneStatus]] = {}
        for row, status in view.items().items():
            self._changed(row, status)
        view.subscribe(self._changed)

    def of(self, key: TriggerKey) -> LaneState:
        """All gateways' partitions, of each the newest epoch; the state is that of the gateway that spoke last."""
        text = str(key)
        statuses = dict(self._by_trigger.get(text, ()))
        if (own := self._own(text)) is not None:
            statuses[self._gateway] = own
        return merged(statuses.values())

    def _changed(self, row: str, status: LaneStatus | None) -> None:
        gateway, _, trigger = row.partition("/")
        if status is not None:
            self._by_trigger.setdefault(trigger, {})[gateway] = status
        elif (known := self._by_trigger.get(trigger)) is not None:
            known.pop(gateway, None)
            if not known:
                del self._by_trigger[trigger]


def merged(statuses: Iterable[LaneStatus]) -> LaneState:
    """One state from what several gateways say. Pure."""
    partitions: dict[int, LanePartition] = {}
    state = ""
    for status in sorted(statuses, key=lambda s: s.unix_ms):
        state = status.state
        for partition in status.partitions:
            known = partitions.get(partition.partition)
            if known is None or partition.epoch >= known.epoch:
                partitions[partition.partition] = partition
    return LaneState(state, partitions)
