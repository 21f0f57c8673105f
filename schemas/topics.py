"""Penstock's own topics: the one table from which `infra.kafka.admin` provisions them and docs/topics.md is checked.

Names are `penstock.<domain>.<fact>.v<N>`. Control topics share one partition count, so that the owner of a key's partition
of one owns it of all (Faust tables need source and changelog partitions equal: GROUND.md B2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from schemas import concurrency, events, records, tenants

CONTROL_PARTITIONS: Final = 4
HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as it must be.

    `record` is the class that its values carry; `retention_ms` None with `compacted` means kept for ever by key, and else the newest of a
    key goes too when it is that old.
    """

    name: str
    record: type
    partitions: int
    compacted: bool
    retention_ms: int | None
    writer: str
    purpose: str

    def config(self) -> dict[str, str]:
        """Topic configuration for CreateTopics."""
        policies = [*(["compact"] if self.compacted else []), *(["delete"] if self.retention_ms is not None else [])]
        config = {"cleanup.policy": ",".join(policies), "compression.type": "producer"}
        if self.compacted:
            config |= {"min.cleanable.dirty.ratio": "0.1", "segment.ms": "600000", "delete.retention.ms": str(HOUR_MS)}
        if self.retention_ms is not None:
            config["retention.ms"] = str(self.retention_ms)
        return config


COMMANDS: Final = "penstock.control.commands.v1"
HISTORY: Final = "penstock.control.history.v1"
OUTCOMES: Final = "penstock.control.outcomes.v1"
FUNCTIONS: Final = "penstock.registry.functions.v1"
TRIGGERS: Final = "penstock.registry.triggers.v1"
VERSIONS: Final = "penstock.registry.versions.v1"
ALIASES: Final = "penstock.registry.aliases.v1"
TENANT_COMMANDS: Final = "penstock.control.tenants.v1"
REQUESTS: Final = "penstock.control.requests.v1"
NAMESPACES: Final = "penstock.registry.namespaces.v1"
KEYS: Final = "penstock.registry.keys.v1"
LAYERS: Final = "penstock.registry.layers.v1"
LIMITS: Final = "penstock.registry.limits.v1"
PROVISIONS: Final = "penstock.registry.provisions.v1"
STEPS_CODE: Final = "penstock.steps.code.v1"
STEPS_NETWORK: Final = "penstock.steps.network.v1"
STEPS_COMPUTE: Final = "penstock.steps.compute.v1"
STEPS_ROUTE: Final = "penstock.steps.route.v1"
STEPS_TRIGGER: Final = "penstock.steps.trigger.v1"
STEP_RESULTS: Final = "penstock.steps.results.v1"
STEP_TOPICS: Final = {
    "code": STEPS_CODE, "network": STEPS_NETWORK, "compute": STEPS_COMPUTE, "route": STEPS_ROUTE,
    "trigger": STEPS_TRIGGER,
}  # fmt: skip
"""Where the steps of each sub-resource module go."""
MEMBERS: Final = "penstock.fabric.members.v1"
PROVISION_STATUS: Final = "penstock.fabric.provisions.v1"
INVOCATIONS: Final = "penstock.telemetry.invocations.v1"
ACTIVITY: Final = "penstock.telemetry.functions.v1"
LANES: Final = "penstock.lanes.status.v1"
LOGS: Final = "penstock.logs.lines.v1"
EVENTS_NEW: Final = "penstock.events.new.v1"
EVENTS_LATER: Final = "penstock.events.later.v1"
EVENTS_CROWDED: Final = "penstock.events.crowded.v1"
EVENTS_DEAD: Final = "penstock.events.dead.v1"
EVENTS_STATUS: Final = "penstock.events.status.v1"
TERMINATIONS: Final = "penstock.events.terminations.v1"

_C: Final = CONTROL_PARTITIONS
TOPICS: Final[tuple[TopicSpec, ...]] = (
    TopicSpec(COMMANDS, records.Command, _C, False, 7 * 24 * HOUR_MS, "gateway", "wishes of API callers"),
    TopicSpec(OUTCOMES, records.Outcome, 1, False, HOUR_MS, "streams", "how each command ended"),
    TopicSpec(HISTORY, records.WorkflowRecord, _C, True, 7 * 24 * HOUR_MS, "streams", "history of every workflow"),
    TopicSpec(FUNCTIONS, records.FunctionRecord, _C, True, None, "streams", "state of every function"),
    TopicSpec(TRIGGERS, records.TriggerRecord, _C, True, None, "streams", "state of every trigger"),
    TopicSpec(VERSIONS, records.VersionRecord, _C, True, None, "streams", "published versions"),
    TopicSpec(ALIASES, records.AliasRecord, _C, True, None, "streams", "aliases of every function"),
    TopicSpec(TENANT_COMMANDS, tenants.TenantCommand, _C, False, 7 * 24 * HOUR_MS, "gateway", "wishes about tenants"),
    TopicSpec(
        REQUESTS, tenants.CarriedOut, 1, False, HOUR_MS, "gateway", "changes that were carried out, by signature"
    ),
    TopicSpec(NAMESPACES, tenants.NamespaceRecord, _C, True, None, "streams", "namespaces of every tenant"),
    TopicSpec(KEYS, tenants.KeyRecord, _C, True, None, "streams", "API keys, secrets sealed"),
    TopicSpec(LAYERS, tenants.LayerRecord, _C, True, None, "streams", "published layers of every tenant"),
    TopicSpec(LIMITS, concurrency.LimitRecord, _C, True, None, "streams", "limits of concurrency of every tenant"),
    TopicSpec(PROVISIONS, concurrency.ProvisionRecord, _C, True, None, "streams", "workers to be kept ready"),
    TopicSpec(STEPS_CODE, records.StepCommand, _C, False, 24 * HOUR_MS, "streams", "steps for the code module"),
    TopicSpec(STEPS_NETWORK, records.StepCommand, _C, False, 24 * HOUR_MS, "streams", "steps for the network module"),
    TopicSpec(STEPS_COMPUTE, records.StepCommand, _C, False, 24 * HOUR_MS, "streams", "steps for the compute module"),
    TopicSpec(STEPS_ROUTE, records.StepCommand, _C, False, 24 * HOUR_MS, "streams", "steps for the route module"),
    TopicSpec(STEPS_TRIGGER, records.StepCommand, _C, False, 24 * HOUR_MS, "streams", "steps for the trigger module"),
    TopicSpec(STEP_RESULTS, records.StepResult, _C, False, 24 * HOUR_MS, "modules", "answers of the modules"),
    TopicSpec(MEMBERS, records.Member, 1, True, None, "every process", "who is alive, and where"),
    TopicSpec(PROVISION_STATUS, concurrency.ProvisionStatus, 1, True, None, "agent", "workers that are ready"),
    TopicSpec(
        INVOCATIONS, records.InvocationWindow, _C, False, HOUR_MS, "gateway", "what ran, per function and window"
    ),
    TopicSpec(ACTIVITY, records.FunctionActivity, _C, True, None, "streams", "activity of every function"),
    TopicSpec(LANES, records.LaneStatus, 1, True, None, "gateway", "state of each trigger's lanes"),
    TopicSpec(LOGS, records.LogBlock, _C, False, 24 * HOUR_MS, "agent", "log lines of functions"),
    TopicSpec(EVENTS_NEW, events.AsyncEvent, _C, False, 7 * 24 * HOUR_MS, "gateway", "asynchronous events"),
    TopicSpec(EVENTS_LATER, events.AsyncEvent, _C, False, 7 * 24 * HOUR_MS, "gateway", "events that run again later"),
    TopicSpec(
        EVENTS_CROWDED,
        events.AsyncEvent,
        _C,
        False,
        7 * 24 * HOUR_MS,
        "gateway",
        "events behind many of their function",
    ),
    TopicSpec(EVENTS_DEAD, events.AsyncEvent, _C, False, 14 * 24 * HOUR_MS, "gateway", "events that were given up"),
    TopicSpec(EVENTS_STATUS, events.EventStatus, _C, True, 72 * HOUR_MS, "gateway", "what became of events"),
    TopicSpec(TERMINATIONS, events.Termination, 1, True, 24 * HOUR_MS, "gateway", "events that are to be ended"),
)
