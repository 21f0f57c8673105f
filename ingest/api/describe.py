"""Registry records in the shapes of SCF's answers (SCF.md section 9). Times are UTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from schemas.ids import LATEST
from schemas.lifecycle import FunctionStatus
from schemas.records import FunctionConfig, FunctionRecord, LayerRef, StatusReason, TriggerRecord
from schemas.tenants import LayerRecord

_FAILED: Final = (FunctionStatus.CREATE_FAILED, FunctionStatus.UPDATE_FAILED, FunctionStatus.DELETE_FAILED)
_NO_CONFIG: Final = FunctionConfig(LATEST, "", 0, "", "", 0, 0, 0)


def time_text(unix_ms: int) -> str:
    """`YYYY-MM-DD HH:MM:SS`, UTC."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def newest_config(record: FunctionRecord) -> FunctionConfig | None:
    """What the caller last asked for: the configuration on its way to Active, else the one that serves."""
    return record.proposed or record.serving


def status_reasons(reasons: Sequence[StatusReason]) -> list[dict[str, str]]:
    """StatusReasons."""
    return [{"ErrorCode": reason.code, "ErrorMessage": reason.message} for reason in reasons]


@dataclass(frozen=True, slots=True)
class Concurrency:
    """What of a function's concurrency is set: MB reserved (None: nothing is), and MB of all its provisioned workers."""

    reserved_mib: int | None = None
    provisioned_mib: int = 0


def function_summary(record: FunctionRecord, concurrency: Concurrency) -> dict[str, Any]:
    """Structure Function of ListFunctions."""
    config = newest_config(record) or _NO_CONFIG
    return {
        "FunctionName": record.name,
        "FunctionId": record.function_id,
        "Namespace": record.namespace,
        "Runtime": config.runtime,
        "Status": record.status,
        "StatusDesc": _status_text(record),
        "StatusReasons": status_reasons(record.reasons),
        "Description": record.description,
        "Type": "Event",
        "Tags": [],
        "AddTime": time_text(record.created_unix_ms),
        "ModTime": time_text(record.modified_unix_ms),
        "TotalProvisionedConcurrencyMem": concurrency.provisioned_mib,
        "ReservedConcurrencyMem": concurrency.reserved_mib,
        "AsyncRunEnable": "FALSE",
        "TraceEnable": "FALSE",
    }


def function_detail(
    record: FunctionRecord,
    triggers: Sequence[TriggerRecord],
    layers: Sequence[dict[str, Any]],
    concurrency: Concurrency,
) -> dict[str, Any]:
    """Answer of GetFunction; `layers` as `layer_info` and `deleted_layer` show them. Of what Penstock doesn't have, the value that says so."""
    config = newest_config(record) or _NO_CONFIG
    failed = record.status in _FAILED
    return {
        **function_summary(record, concurrency),
        "Handler": config.handler,
        "CodeSize": config.code_size,
        "CodeInfo": "",
        "CodeResult": "failed" if failed else "success",
        "CodeError": _status_text(record) if failed else "",
        "ErrNo": 0,
        "Timeout": config.timeout_s,
        "InitTimeout": config.init_timeout_s,
        "MemorySize": config.memory_mib,
        "FunctionVersion": config.version,
        "Qualifier": config.version,
        "Environment": {"Variables": [{"Key": k, "Value": v} for k, v in sorted(config.environment.items())]},
        "Triggers": [trigger_info(trigger) for trigger in triggers],
        "VpcConfig": {"VpcId": "", "SubnetId": ""},
        "PublicNetConfig": {"PublicNetStatus": "DISABLE", "EipConfig": {"EipStatus": "DISABLE", "EipAddress": []}},
        "IntranetConfig": {"IpFixed": "DISABLE", "IpAddress": []},
        "CfsConfig": {"CfsInsList": []},
        "EipConfig": {"EipFixed": "FALSE", "Eips": []},
        "DeadLetterConfig": {"Type": "", "Name": "", "FilterType": ""},
        "AccessInfo": {"Host": "", "Vip": ""},
        "Layers": list(layers),
        "Role": "",
        "ClsLogsetId": "",
        "ClsTopicId": "",
        "UseGpu": "FALSE",
        "InstallDependency": "FALSE",
        "L5Enable": "FALSE",
        "OnsEnable": "FALSE",
        "DnsCache": "FALSE",
        "AvailableStatus": "Available" if record.serving is not None else "NotAvailable",
    }


def _status_text(record: FunctionRecord) -> str:
    return "; ".join(reason.message for reason in record.reasons)


def layer_info(layer: LayerRecord) -> dict[str, Any]:
    """Structure LayerVersionInfo."""
    return {
        "LayerName": layer.name,
        "LayerVersion": layer.version,
        "CompatibleRuntimes": list(layer.runtimes),
        "AddTime": time_text(layer.created_unix_ms),
        "Description": layer.description,
        "LicenseInfo": layer.license_info,
        "Status": "Active",
        "Stamp": "",
        "Tags": [],
    }


def deleted_layer(ref: LayerRef) -> dict[str, Any]:
    """Structure LayerVersionInfo of a layer version that is bound and was deleted: it goes on in what binds it."""
    return {
        "LayerName": ref.name,
        "LayerVersion": ref.version,
        "CompatibleRuntimes": [],
        "AddTime": "",
        "Description": "",
        "LicenseInfo": "",
        "Status": "Deleted",
        "Stamp": "",
        "Tags": [],
    }


def trigger_info(trigger: TriggerRecord) -> dict[str, Any]:
    """Structures Trigger and TriggerInfo."""
    return {
        "TriggerName": trigger.name,
        "Type": trigger.type,
        "TriggerDesc": trigger.trigger_desc,
        "Enable": int(trigger.enabled),
        "Qualifier": trigger.qualifier,
        "CustomArgument": trigger.custom_argument,
        "Description": trigger.description,
        "AddTime": time_text(trigger.created_unix_ms),
        "ModTime": time_text(trigger.modified_unix_ms),
        "AvailableStatus": "Available",
        "ResourceId": trigger.kafka.topic if trigger.kafka is not None else "",
        "BindStatus": "",
        "TriggerAttribute": "",
    }


def page(items: Sequence[Any], offset: int, limit: int) -> Sequence[Any]:
    """One page of a listing."""
    return items[offset : offset + limit]
