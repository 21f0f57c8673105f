"""What stands in Penstock's own topics, as frozen dataclasses. `schemas.avro` derives the Avro schema of each.

Evolution: only add fields, each with a default, at the end; never rename or change a type. tests/unit/test_avro.py
holds the fingerprints, so that a change is seen.

Every state record is absolute (the whole state, never a difference) and carries `seq`: a reader ignores an older or equal one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.limits import EVENT_RETRIES, EVENT_TTL_RANGE_S

LEVELS = 6
"""Cold-start levels L0..L5 (DESIGN.md section 5); counters per level are tuples of this length."""


@dataclass(frozen=True, slots=True)
class StatusReason:
    """Why a function is in a failed state; `code` is published, `message` says what to do."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class LayerRef:
    """A layer version that a configuration binds; `sha256` names its content in the store, so that nothing else decides what runs."""

    name: str
    version: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FunctionConfig:
    """All that is needed to run one version of a function. Immutable; a change makes a new one.

    `code_sha256` is the hex digest of the zip and its name in the object store; sizes are bytes, memory MiB, times seconds. Of `layers` the
    later ones win.
    """

    version: str
    code_sha256: str
    code_size: int
    handler: str
    runtime: str
    memory_mib: int
    timeout_s: int
    init_timeout_s: int
    environment: dict[str, str] = field(default_factory=dict)
    layers: tuple[LayerRef, ...] = ()


@dataclass(frozen=True, slots=True)
class EventPolicy:
    """How a function's asynchronous events are tried again: `retries` after its own failures, nothing once they are `ttl_s` old."""

    retries: int = EVENT_RETRIES
    ttl_s: int = EVENT_TTL_RANGE_S[1]


@dataclass(frozen=True, slots=True)
class FunctionRecord:
    """State of one function; key `appid/namespace/name` in topic penstock.registry.functions.v1 (tombstone when deleted).

    `serving` is the last configuration that reached Active and is what runs; `proposed` is the one that a running saga
    tries to make Active. `applied` is the offset of the last command taken in, in the partition of this key.
    """

    seq: int
    appid: str
    uin: str
    namespace: str
    name: str
    function_id: str
    status: str
    description: str
    created_unix_ms: int
    modified_unix_ms: int
    applied: int
    command_id: str
    serving: FunctionConfig | None = None
    proposed: FunctionConfig | None = None
    reasons: tuple[StatusReason, ...] = ()
    events: EventPolicy = EventPolicy()


@dataclass(frozen=True, slots=True)
class KafkaSource:
    """Where and how a Kafka trigger reads. Its start offsets are already committed for `group_id` when this is written.

    `ordering` is key, partition or none; `on_poison` is skip, park-key or halt; `batch` records at most in one invocation;
    `concurrency` invocations at once over the trigger; `retries` after the first try. Empty `bootstrap_servers` is the fabric's own
    cluster, wherever that listens.
    """

    bootstrap_servers: str
    topic: str
    group_id: str
    batch: int = 1
    concurrency: int = 32
    retries: int = 3
    ordering: str = "key"
    on_poison: str = "skip"
    start: str = "latest"


@dataclass(frozen=True, slots=True)
class TriggerRecord:
    """State of one trigger; key `appid/namespace/function/name` in topic penstock.registry.triggers.v1 (tombstone when deleted).

    `description` is SCF's TriggerDesc, as the caller gave it.
    """

    seq: int
    appid: str
    uin: str
    namespace: str
    function: str
    name: str
    type: str
    qualifier: str
    enabled: bool
    trigger_desc: str
    custom_argument: str
    created_unix_ms: int
    modified_unix_ms: int
    applied: int
    command_id: str
    kafka: KafkaSource | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version; key `appid/namespace/function/N` in topic penstock.registry.versions.v1 (tombstone when deleted).

    Nothing in it ever changes. N is 1, 2, ... and is not given twice to one function.
    """

    seq: int
    appid: str
    uin: str
    namespace: str
    function: str
    version: str
    description: str
    created_unix_ms: int
    applied: int
    command_id: str
    config: FunctionConfig


@dataclass(frozen=True, slots=True)
class VersionMatch:
    """A rule of an alias: calls whose header `header` fits go to `version`. `method` is exact (`expression` is the value) or range
    (`(a,b)` or `[a,b]`, of integers).
    """

    version: str
    header: str
    method: str
    expression: str


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """State of one alias; key `appid/namespace/function/NAME` in topic penstock.registry.aliases.v1 (tombstone when deleted).

    `version` is the main one. `additional` (empty: none) gets the share `weight`, from 0 to 1, or what one of `matches` names.
    """

    seq: int
    appid: str
    uin: str
    namespace: str
    function: str
    name: str
    version: str
    description: str
    created_unix_ms: int
    modified_unix_ms: int
    applied: int
    command_id: str
    additional: str = ""
    weight: float = 0.0
    matches: tuple[VersionMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """One wish of a caller; topic penstock.control.commands.v1, keyed like the record that it changes.

    `kind` is one of `COMMAND_KINDS`. The gateway has validated it against what it saw; streams decides, for it alone writes the
    registry topics, and says how it ended in an Outcome. Commands about versions and aliases have the function's key. `publish`: a version
    is published when the update is done. `qualifier` is the version or alias that a deletion is about.
    """

    command_id: str
    kind: str
    unix_ms: int
    appid: str
    uin: str
    namespace: str
    function: str
    description: str | None = None
    config: FunctionConfig | None = None
    trigger: TriggerRecord | None = None
    publish: bool = False
    qualifier: str = ""
    alias: AliasRecord | None = None
    events: EventPolicy | None = None


COMMAND_KINDS = (
    "create-function",
    "update-function",
    "delete-function",
    "set-event-policy",
    "create-trigger",
    "update-trigger",
    "delete-trigger",
    "publish-version",
    "delete-version",
    "create-alias",
    "update-alias",
    "delete-alias",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended; topic penstock.control.outcomes.v1. `code` is a Tencent Cloud error code, empty when accepted.

    `result` is what the command gave: the number of a published version.
    """

    command_id: str
    key: str
    code: str = ""
    message: str = ""
    result: str = ""


@dataclass(frozen=True, slots=True)
class StepCommand:
    """One step for a sub-resource module; topic penstock.steps.<module>.v1, keyed by resource.

    `step_id` is the idempotency key: equal for every attempt and delivery of the same step of the same saga.
    """

    step_id: str
    saga_id: str
    module: str
    operation: str
    key: str
    unix_ms: int
    config: FunctionConfig | None = None
    attempt: int = 1
    trigger: TriggerRecord | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """Answer of a module; topic penstock.steps.results.v1, keyed by resource. `reasons` empty means it succeeded.

    `attempt` is the one that is answered; `retryable` says that another one may succeed.
    """

    step_id: str
    saga_id: str
    module: str
    key: str
    unix_ms: int
    reasons: tuple[StatusReason, ...] = ()
    attempt: int = 1
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class WorkflowEvent:
    """One thing that a workflow was given, and what it decided.

    `given` is begin, done, failed, retryable, timer, abandon or leave; `step_id`, `attempt` and `reasons` belong to it. `decided` is send (a step goes
    out: `module`, `operation`, `sent_step_id`, `sent_attempt`; again at `due_unix_ms` if there is no answer), rest (until `due_unix_ms`),
    succeeded or failed.
    """

    unix_ms: int
    given: str
    decided: str
    step_id: str = ""
    attempt: int = 0
    reasons: tuple[StatusReason, ...] = ()
    module: str = ""
    operation: str = ""
    sent_step_id: str = ""
    sent_attempt: int = 0
    due_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """History of one workflow; compacted topic penstock.control.history.v1, keyed by `saga_id`, kept 7 days.

    `key` is the resource's; `state` is running, undoing, succeeded or failed. `left_out` events (repeated attempts) were not kept.
    """

    seq: int
    saga_id: str
    key: str
    workflow: str
    state: str
    began_unix_ms: int
    unix_ms: int
    events: tuple[WorkflowEvent, ...] = ()
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A live process; key `kind/member_id` in topic penstock.fabric.members.v1, written every heartbeat.

    `address` is `unix:@NAME` (abstract socket), `unix:/PATH` or `tcp:HOST:PORT`. `term` grows with every start of the process
    (unix milliseconds at start). `detail` is JSON for people.
    """

    kind: str
    member_id: str
    host: str
    zone: str
    address: str
    term: int
    unix_ms: int
    detail: str = "{}"


@dataclass(frozen=True, slots=True)
class InvocationWindow:
    """What one gateway saw of one function in one window; topic penstock.telemetry.invocations.v1, keyed by function.

    Counts are of the window, gauges as at its end; sums in microseconds. `cold` counts starts by level L0..L5 (L0 = warm).
    """

    key: str
    gateway: str
    term: int
    window: int
    unix_ms: int
    span_ms: int
    arrivals: int
    completed: int
    failed: int
    throttled: int
    retried: int
    dead: int
    in_flight: int
    queued: int
    duration_sum_us: int
    duration_max_us: int
    wait_sum_us: int
    cold: tuple[int, ...] = (0,) * LEVELS


@dataclass(frozen=True, slots=True)
class FunctionActivity:
    """The fabric's view of one function, by streams; compacted topic penstock.telemetry.functions.v1, keyed by function.

    Totals count since the function was first seen; rates are per second over the last 10 s.
    """

    seq: int
    key: str
    unix_ms: int
    arrivals: int
    completed: int
    failed: int
    throttled: int
    retried: int
    dead: int
    in_flight: int
    queued: int
    arrivals_per_s: float
    completed_per_s: float
    failed_per_s: float
    duration_mean_us: int
    duration_max_us: int
    wait_mean_us: int
    cold: tuple[int, ...] = (0,) * LEVELS


@dataclass(frozen=True, slots=True)
class LanePartition:
    """One partition of a trigger as its owner sees it. `why` is empty while it moves, else the reason it does not."""

    partition: int
    epoch: int
    next_offset: int
    in_flight: int
    queued: int
    retrying: int
    parked: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """State of one trigger at one gateway; compacted topic penstock.lanes.status.v1, keyed `gateway/trigger key`."""

    key: str
    gateway: str
    term: int
    unix_ms: int
    state: str
    partitions: tuple[LanePartition, ...] = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a function's log. `stream` is stdout, stderr or platform; `line` has no line end."""

    request_id: str
    unix_ms: int
    stream: str
    line: str


@dataclass(frozen=True, slots=True)
class LogBlock:
    """Lines in arrival order at one agent; topic penstock.logs.lines.v1, keyed by function, kept 24 h."""

    key: str
    version: str
    agent: str
    lines: tuple[LogLine, ...] = ()
