"""The one table of actions: name → schema of its request and handler. The server, the CLI and every SDK go through it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from ingest.api import (
    account,
    activity,
    aliases,
    concurrency,
    events,
    function_requests,
    functions,
    invoke,
    keys,
    layers,
    logs,
    namespaces,
    provisioned,
    run_logs,
    sources,
    triggers,
    unbuilt,
    versions,
    workflows,
)
from ingest.api.fields import NoFields, Schema
from ingest.api.services import Call, Services
from schemas.errors import BadRequest

VERSION: Final = "2018-04-16"
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Action(Generic[R]):
    """One action. `run` parses and handles."""

    schema: Schema[R]
    handler: Callable[[Services, Call, R], Awaitable[Mapping[str, Any]]]

    async def run(self, services: Services, call: Call, raw: Mapping[str, Any], *, text: bool) -> Mapping[str, Any]:
        """The answer's fields, without RequestId. `raw` is the JSON object, or the tree of a flattened request (`text`)."""
        return await self.handler(services, call, self.schema.parse(raw, text=text))


def _action(request: type[R], handler: Callable[[Services, Call, R], Awaitable[Mapping[str, Any]]]) -> Action[R]:
    return Action(Schema(request), handler)


ACTIONS: Final[dict[str, Action[Any]]] = {
    "CreateFunction": _action(function_requests.CreateFunction, functions.create_function),
    "UpdateFunctionCode": _action(function_requests.UpdateFunctionCode, functions.update_function_code),
    "UpdateFunctionConfiguration": _action(
        function_requests.UpdateFunctionConfiguration, functions.update_function_configuration
    ),
    "CopyFunction": _action(function_requests.CopyFunction, functions.copy_function),
    "DeleteFunction": _action(function_requests.DeleteFunction, functions.delete_function),
    "GetFunction": _action(function_requests.GetFunction, functions.get_function),
    "GetFunctionAddress": _action(function_requests.GetFunctionAddress, functions.get_function_address),
    "ListFunctions": _action(function_requests.ListFunctions, functions.list_functions),
    "Invoke": _action(invoke.Invoke, invoke.invoke),
    "InvokeFunction": _action(invoke.InvokeFunction, invoke.invoke_function),
    "GetFunctionEventInvokeConfig": _action(
        events.GetFunctionEventInvokeConfig, events.get_function_event_invoke_config
    ),
    "UpdateFunctionEventInvokeConfig": _action(
        events.UpdateFunctionEventInvokeConfig, events.update_function_event_invoke_config
    ),
    "GetAsyncEventStatus": _action(events.GetAsyncEventStatus, events.get_async_event_status),
    "ListAsyncEvents": _action(events.ListAsyncEvents, events.list_async_events),
    "TerminateAsyncEvent": _action(events.TerminateAsyncEvent, events.terminate_async_event),
    "GetFunctionLogs": _action(run_logs.GetFunctionLogs, run_logs.get_function_logs),
    "GetRequestStatus": _action(run_logs.GetRequestStatus, run_logs.get_request_status),
    "CreateTrigger": _action(triggers.CreateTrigger, triggers.create_trigger),
    "DeleteTrigger": _action(triggers.DeleteTrigger, triggers.delete_trigger),
    "UpdateTrigger": _action(triggers.UpdateTrigger, triggers.update_trigger),
    "UpdateTriggerStatus": _action(triggers.UpdateTriggerStatus, triggers.update_trigger_status),
    "ListTriggers": _action(triggers.ListTriggers, triggers.list_triggers),
    "PublishVersion": _action(versions.PublishVersion, versions.publish_version),
    "ListVersionByFunction": _action(versions.ListVersionByFunction, versions.list_version_by_function),
    "DeleteFunctionVersion": _action(versions.DeleteFunctionVersion, versions.delete_function_version),
    "CreateAlias": _action(aliases.CreateAlias, aliases.create_alias),
    "UpdateAlias": _action(aliases.UpdateAlias, aliases.update_alias),
    "GetAlias": _action(aliases.OneAlias, aliases.get_alias),
    "ListAliases": _action(aliases.ListAliases, aliases.list_aliases),
    "DeleteAlias": _action(aliases.OneAlias, aliases.delete_alias),
    "CreateNamespace": _action(namespaces.CreateNamespace, namespaces.create_namespace),
    "UpdateNamespace": _action(namespaces.UpdateNamespace, namespaces.update_namespace),
    "DeleteNamespace": _action(namespaces.DeleteNamespace, namespaces.delete_namespace),
    "ListNamespaces": _action(namespaces.ListNamespaces, namespaces.list_namespaces),
    "PublishLayerVersion": _action(layers.PublishLayerVersion, layers.publish_layer_version),
    "GetLayerVersion": _action(layers.LayerVersion, layers.get_layer_version),
    "ListLayerVersions": _action(layers.ListLayerVersions, layers.list_layer_versions),
    "ListLayers": _action(layers.ListLayers, layers.list_layers),
    "DeleteLayerVersion": _action(layers.LayerVersion, layers.delete_layer_version),
    "PutReservedConcurrencyConfig": _action(concurrency.PutReserved, concurrency.put_reserved),
    "GetReservedConcurrencyConfig": _action(concurrency.OneFunction, concurrency.get_reserved),
    "DeleteReservedConcurrencyConfig": _action(concurrency.OneFunction, concurrency.delete_reserved),
    "PutTotalConcurrencyConfig": _action(concurrency.PutTotal, concurrency.put_total),
    "PutProvisionedConcurrencyConfig": _action(provisioned.PutProvisioned, provisioned.put_provisioned),
    "GetProvisionedConcurrencyConfig": _action(provisioned.GetProvisioned, provisioned.get_provisioned),
    "DeleteProvisionedConcurrencyConfig": _action(provisioned.DeleteProvisioned, provisioned.delete_provisioned),
    "GetAccount": _action(NoFields, account.get_account),
    # Penstock's own; docs/api.md describes them.
    "GetFunctionLogLines": _action(logs.GetFunctionLogLines, logs.get_function_log_lines),
    "ListEventSources": _action(sources.ListEventSources, sources.list_event_sources),
    "GetActivity": _action(NoFields, activity.get_activity),
    "ListWorkflows": _action(workflows.ListWorkflows, workflows.list_workflows),
    "GetWorkflow": _action(workflows.GetWorkflow, workflows.get_workflow),
    "CreateKey": _action(keys.CreateKey, keys.create_key),
    "ListKeys": _action(keys.ListKeys, keys.list_keys),
    "RotateKey": _action(keys.RotateKey, keys.rotate_key),
    "DeleteKey": _action(keys.DeleteKey, keys.delete_key),
}


HAVE_SECRETS: Final = frozenset({"CreateKey", "RotateKey"})
"""Actions whose answer nobody may get a second time."""


def changes_something(name: str) -> bool:
    """True for an action that changes what is registered. An invocation may run again: functions are run at least once anyway."""
    return not name.startswith(("Get", "List", "Invoke"))


def find(name: str, version: str) -> Action[Any]:
    """The action; raises BadRequest with MissingParameter, NoSuchVersion, UnsupportedOperation or InvalidAction."""
    if not name:
        raise BadRequest("MissingParameter", "X-TC-Action is required")
    if not version:
        raise BadRequest("MissingParameter", "X-TC-Version is required")
    if version != VERSION:
        raise BadRequest("NoSuchVersion", f"this is SCF's API of version {VERSION}")
    action = ACTIONS.get(name)
    if action is None:
        if (refusal := unbuilt.refusal(name)) is not None:
            raise refusal
        raise BadRequest("InvalidAction", f"there is no action {name[:64]!r} here; there are {', '.join(ACTIONS)}")
    return action
