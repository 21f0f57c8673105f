"""`WorkflowLog` over the history topic: read on demand, from its newest records back to a bound."""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.kafka.admin import Admin
from infra.kafka.consumer import Record
from infra.kafka.scan import Scanner
from infra.telemetry import get_logger
from schemas import avro, topics
from schemas.errors import WireError
from schemas.records import WorkflowRecord

log = get_logger("ingest.api.workflows")


@dataclass(slots=True)
class Newest:
    """The newest record of each workflow of a tenant. Used in the scanner's thread."""

    appid: str
    saga_id: str
    found: dict[str, WorkflowRecord] = field(default_factory=dict)

    def visit(self, record: Record) -> bool:
        """Take a record in."""
        if record.value is None or (self.saga_id and record.key != self.saga_id.encode()):
            return True
        try:
            made = avro.decode(WorkflowRecord, record.value)
        except WireError as exc:
            log.warning("history record skipped", offset=record.offset, error=str(exc))
            return True
        known = self.found.get(made.saga_id)
        if made.key.startswith(f"{self.appid}/") and (known is None or made.seq >= known.seq):
            self.found[made.saga_id] = made
        return True


class KafkaWorkflows:
    """Reads topics.HISTORY."""

    def __init__(self, admin: Admin, scanner: Scanner) -> None:
        self._admin, self._scanner = admin, scanner

    async def of(self, appid: str, saga_id: str = "") -> list[WorkflowRecord]:
        """See the port. Raises BrokerUnavailable."""
        newest = Newest(appid, saga_id)
        await self._scanner.newest(self._admin, topics.HISTORY, newest.visit)
        return list(newest.found.values())
