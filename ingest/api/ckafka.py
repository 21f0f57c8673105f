"""TriggerDesc of a ckafka trigger: SCF's {maxMsgNum, offset, retry} and Penstock's own fields, read into a `KafkaSource`. Pure.

maxMsgNum         1..10000, records at most in one invocation; default 1
offset            latest (default), earliest, or unix milliseconds
retry             0..10000 retries after the first try; default 3
topic             default: the part of TriggerName behind the instance (`ckafka-8tfxzia3-orders` and `kafka-orders` mean `orders`)
bootstrapServers  host:port,…; default the fabric's own brokers
concurrency       1..1000 invocations at once; default 32
ordering          key (default), partition or none
onPoison          skip; park-key and halt are not built yet and are refused
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from ingest.api.fields import Schema, Unsupported, param, short
from ingest.api.params import must
from schemas.errors import BadRequest
from schemas.ids import TriggerKey, consumer_group, is_topic
from schemas.limits import TRIGGER_BATCH_RANGE, TRIGGER_CONCURRENCY_RANGE, TRIGGER_RETRIES_RANGE
from schemas.records import KafkaSource

_CODE: Final = "InvalidParameterValue.TriggerDesc"
_INSTANCE: Final = re.compile(r"(?:ckafka-[a-z0-9]{8}|[^-]+)-(.+)\Z")
_MILLISECONDS: Final = re.compile(r"[0-9]{1,15}\Z")
_SERVER: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})\Z")
_MAX_SERVERS: Final = 16
_MAX_DESC: Final = 4_096


def _is_offset(text: str) -> bool:
    return text in ("latest", "earliest") or _MILLISECONDS.match(text) is not None


def _are_servers(text: str) -> bool:
    servers = text.split(",")
    ports = [match.group(1) for match in map(_SERVER.match, servers) if match is not None]
    return len(ports) == len(servers) <= _MAX_SERVERS and all(0 < int(port) < 65_536 for port in ports)


@dataclass(frozen=True, slots=True)
class TriggerDesc:
    """The fields of the JSON text."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (
        Unsupported(
            "consumerGroupName", "every trigger has a consumer group of its own", code="UnsupportedOperation.Trigger"
        ),
        Unsupported(
            "timeOut",
            "a batch is what is there when a lane is free; nothing waits for it to fill",
            code="UnsupportedOperation.Trigger",
        ),
    )

    max_msg_num: int = param(1, name="maxMsgNum", code=_CODE, low=TRIGGER_BATCH_RANGE[0], high=TRIGGER_BATCH_RANGE[1])
    offset: str = param(
        "latest", name="offset", code=_CODE, check=must(_is_offset, "latest, earliest or unix milliseconds")
    )
    retry: int = param(3, name="retry", code=_CODE, low=TRIGGER_RETRIES_RANGE[0], high=TRIGGER_RETRIES_RANGE[1])
    topic: str | None = param(None, name="topic", code=_CODE, check=must(is_topic, "the name of a Kafka topic"))
    bootstrap_servers: str | None = param(
        None, name="bootstrapServers", code=_CODE, check=must(_are_servers, "host:port, or several with commas between")
    )
    concurrency: int = param(
        32, name="concurrency", code=_CODE, low=TRIGGER_CONCURRENCY_RANGE[0], high=TRIGGER_CONCURRENCY_RANGE[1]
    )
    ordering: str = param("key", name="ordering", code=_CODE, choices=("key", "partition", "none"))
    on_poison: str = param("skip", name="onPoison", code=_CODE, choices=("skip",))


_SCHEMA: Final = Schema(TriggerDesc)
DEAD_LETTERS: Final = "penstock.dead."
"""Dead letters of all tenants: their topics' names don't say whose."""


def parse_trigger_desc(text: str, key: TriggerKey, *, generation: str, is_owner: bool = True) -> KafkaSource:
    """What the trigger reads, and how. Raises BadRequest, mostly InvalidParameterValue.TriggerDesc.

    Dead letters may be read by the fabric's owner (`is_owner`) only.
    """
    desc = _fields_of(_object(text))
    topic = desc.topic or _topic_of_name(key.name)
    if _is_internal(topic) or (topic.startswith(DEAD_LETTERS) and not is_owner):
        raise BadRequest(_CODE, f"topic {topic!r} is internal to the fabric or to Kafka; choose one of your own")
    return KafkaSource(
        bootstrap_servers=desc.bootstrap_servers or "",
        topic=topic,
        group_id=consumer_group(key, generation),
        batch=desc.max_msg_num,
        concurrency=desc.concurrency,
        retries=desc.retry,
        ordering=desc.ordering,
        on_poison=desc.on_poison,
        start=desc.offset,
    )


def changed_desc(earlier: str, given: str, key: TriggerKey, source: KafkaSource) -> tuple[str, KafkaSource]:
    """A trigger's TriggerDesc and source with the fields of `given` in them, the others as they were.

    Raises BadRequest for a field that is wrong, or that can't change: what is read, and where its reading began.
    """
    changes = _object(given)
    _fields_of(changes)
    text = json.dumps({**_object(earlier), **changes}, separators=(",", ":"), ensure_ascii=False)
    wanted = parse_trigger_desc(text, key, generation="")
    if (wanted.topic, wanted.bootstrap_servers) != (source.topic, source.bootstrap_servers):
        raise BadRequest(_CODE, "topic and bootstrapServers of a trigger can't change; make another trigger")
    if wanted.start != source.start:
        raise BadRequest(_CODE, "offset says where a new trigger begins and can't change; make another trigger")
    return text, replace(wanted, group_id=source.group_id)


def _fields_of(raw: dict[str, Any]) -> TriggerDesc:
    # Consoles and older SDKs write numbers as text, and `offset` comes as a number too.
    offset = raw.get("offset")
    if isinstance(offset, int) and not isinstance(offset, bool):
        raw = {**raw, "offset": str(offset)}
    try:
        return _SCHEMA.parse(raw, text=True, at="TriggerDesc.")
    except BadRequest as exc:
        if exc.api_code in ("UnknownParameter", "InvalidParameter"):
            raise BadRequest(_CODE, exc.message) from exc
        raise


def _object(text: str) -> dict[str, Any]:
    if len(text) > _MAX_DESC:
        raise BadRequest(_CODE, f"TriggerDesc is {len(text)} characters long; the limit is {_MAX_DESC}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadRequest(_CODE, f"TriggerDesc of a ckafka trigger is JSON text, and this is not: {exc}") from exc
    if not isinstance(value, dict):
        raise BadRequest(_CODE, f"TriggerDesc of a ckafka trigger is a JSON object, not {short(value)}")
    return value


def _topic_of_name(name: str) -> str:
    match = _INSTANCE.match(name)
    if match is None:
        raise BadRequest(
            _CODE, "name the topic: as `topic` in TriggerDesc, or by a TriggerName of the form INSTANCE-TOPIC"
        )
    return match.group(1)


def _is_internal(topic: str) -> bool:
    # What Faust keeps (`penstock-…-changelog`) holds every tenant's state.
    own = topic.startswith(("penstock.", "penstock-streams-"))
    return topic.startswith("__") or (own and not topic.startswith(DEAD_LETTERS))
