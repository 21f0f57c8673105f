"""Feeds `streams.tenants` with commands: the same order of safety as `streams.processors`, for the state of tenants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from infra import clock
from schemas import avro
from schemas.concurrency import LimitRecord, ProvisionRecord
from schemas.records import Outcome
from schemas.tenants import KeyRecord, LayerRecord, NamespaceRecord, TenantCommand
from schemas.topics import KEYS, LAYERS, LIMITS, NAMESPACES, PROVISIONS
from streams import processors, tenants
from streams.processors import Input, Journal, Outbox, Publication, Sweep, decoded

_TOPICS: Final[Mapping[type, str]] = {
    NamespaceRecord: NAMESPACES,
    KeyRecord: KEYS,
    LayerRecord: LAYERS,
    LimitRecord: LIMITS,
    ProvisionRecord: PROVISIONS,
}


def publication(output: tenants.Output, *, partition: int) -> Publication:
    """Where an output goes. Rows go to the partition number that the tenant's commands come from."""
    if isinstance(output, tenants.Gone):
        return Publication(_topic_of(output.key), partition, output.key.encode(), None)
    if isinstance(output, Outcome):
        return processors.publication(output, partition=partition)
    return Publication(_TOPICS[type(output)], partition, tenants.row_key(output).encode(), avro.encode(output))


def _topic_of(key: str) -> str:
    """By the shape of a row's key, as `tenants.TenantEntry` has them."""
    if "@" in key:
        return LAYERS
    return (KEYS, NAMESPACES, LIMITS, PROVISIONS)[key.count("/")]


class TenantProcessor:
    """Takes commands about tenants in; keyed by appid."""

    def __init__(self, journal: Journal, outbox: Outbox) -> None:
        self._journal, self._outbox = journal, outbox
        self._sweep = Sweep(journal)

    async def handle(self, record: Input) -> None:
        """Take one command through. One that comes again says the same again."""
        command = decoded(TenantCommand, record, lambda command: command.appid)
        if command is not None and record.key is not None:
            entry = self._entry(record.key)
            then, outputs = tenants.take(entry, command, record.offset)
            if then is not entry:
                await self._journal.put(record.partition, record.key, avro.encode(then), version=then.applied + 1)
            await self._publish(outputs, record.partition)
        record.done()

    async def _publish(self, outputs: Iterable[tenants.Output], partition: int) -> None:
        publications = [publication(output, partition=partition) for output in outputs]
        if publications:
            await self._outbox.publish(publications)

    def _entry(self, key: bytes) -> tenants.TenantEntry:
        stored = self._journal.get(key)
        return tenants.NEW if stored is None else avro.decode(tenants.TenantEntry, stored)

    def due(self) -> list[bytes]:
        """Some tenants that can be forgotten (hand each to `forget`, in its lane); looks at a few at each call, in turn."""
        return [key for key in self._sweep.some() if tenants.is_forgettable(self._entry(key), clock.unix_ms())]

    async def forget(self, key: bytes) -> None:
        """Drop the marks of a tenant that has nothing, if that is still so."""
        if self._journal.get(key) is not None and tenants.is_forgettable(self._entry(key), clock.unix_ms()):
            await self._journal.put(self._journal.partition(key), key, None, version=0)
