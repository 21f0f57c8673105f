"""What the actions on functions decide: from a checked request and the state that is seen to a command and the state it leads to. Pure.

Streams decides again when it takes the command in, for it alone writes the registry; a refusal here is the quick answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from ingest.api.describe import newest_config
from ingest.api.fields import short
from ingest.api.function_requests import (
    CopyFunction,
    CreateFunction,
    Environment,
    UpdateFunctionCode,
    UpdateFunctionConfiguration,
)
from ingest.api.services import Call
from schemas.errors import BadRequest
from schemas.ids import CUSTOM_RUNTIME, LATEST, FunctionKey, function_id, is_env_key
from schemas.lifecycle import FunctionMove, FunctionStatus, after
from schemas.limits import (
    ENV_BYTES,
    FUNCTIONS_PER_NAMESPACE,
    INIT_TIMEOUT_DEFAULT_S,
    MEMORY_DEFAULT_MIB,
    TIMEOUT_DEFAULT_S,
)
from schemas.records import Command, FunctionConfig, FunctionRecord, LayerRef

_PYTHON: Final = re.compile(r"Python3\.[0-9]{1,2}\Z")
_RESERVED: Final = ("SCF_", "QCLOUD_", "TENCENTCLOUD_")
_RUNTIMES: Final = (
    "use Python3.10 (any Python3 name runs on the Python of the fabric's machine); for any other language use CustomRuntime,"
    " with an executable file bootstrap at the top of the package"
)
_CUSTOM_HANDLER: Final = "index.main_handler"
"""What a bootstrap finds in _HANDLER when no Handler was given."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A command to send, and the state to show until the registry has taken it in."""

    command: Command
    shown: FunctionRecord


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """What a command says of a package that is in the store."""

    sha256: str
    size_bytes: int


def check_runtime(runtime: str | None) -> str:
    """The runtime name; raises BadRequest for all but Python 3 and CustomRuntime."""
    if not runtime:
        raise BadRequest(
            "InvalidParameterValue.Runtime",
            f"Runtime is missing, and SCF's default Python2.7 does not exist here: {_RUNTIMES}",
        )
    if runtime != CUSTOM_RUNTIME and not _PYTHON.match(runtime):
        raise BadRequest("InvalidParameterValue.Runtime", f"Runtime {short(runtime)} does not exist here: {_RUNTIMES}")
    return runtime


def check_type(function_type: str) -> None:
    """Raises BadRequest for all but Event functions."""
    if function_type == "HTTP":
        raise BadRequest(
            "UnsupportedOperation", "Type HTTP is not supported by Penstock: web functions are not built, use Event"
        )
    if function_type not in ("Event", ""):
        raise BadRequest("InvalidParameterValue.FunctionType", f"Type {short(function_type)} does not exist; use Event")


def check_environment(environment: Environment) -> dict[str, str]:
    """The variables as a dict; raises BadRequest by SCF's rules (4 KB in all, reserved prefixes)."""
    variables: dict[str, str] = {}
    for variable in environment.variables:
        key, value = variable.key, variable.value
        if not is_env_key(key):
            raise BadRequest(
                "InvalidParameterValue.Environment",
                f"environment variable {short(key)}: a name has letters, digits and _ and starts with a letter",
            )
        if key.upper().startswith(_RESERVED):
            raise BadRequest(
                "InvalidParameterValue.EnvironmentSystemProtect",
                f"environment variable {key!r}: names that start with {', '.join(_RESERVED)} are the platform's own",
            )
        if "\0" in value:
            raise BadRequest(
                "InvalidParameterValue.Environment", f"environment variable {key!r}: its value holds a NUL character"
            )
        if key in variables:
            raise BadRequest("InvalidParameterValue.Environment", f"environment variable {key!r} is given twice")
        variables[key] = value
    size = sum(len(k.encode()) + len(v.encode()) for k, v in variables.items())
    if size > ENV_BYTES:
        raise BadRequest(
            "InvalidParameterValue.EnvironmentExceededLimit",
            f"the environment has {size} bytes; the limit is {ENV_BYTES}",
        )
    return variables


def check_new_name(key: FunctionKey, existing: FunctionRecord | None, *, count: int) -> None:
    """Raises BadRequest when the name is taken or the namespace is full."""
    if existing is not None:
        raise BadRequest(
            "ResourceInUse.FunctionName",
            f"function {key.name!r} exists in namespace {key.namespace!r} (it is {existing.status})",
        )
    if count >= FUNCTIONS_PER_NAMESPACE:
        raise BadRequest(
            "LimitExceeded.Function",
            f"namespace {key.namespace!r} has {count} functions; the limit is {FUNCTIONS_PER_NAMESPACE}",
        )


def check_create(request: CreateFunction) -> FunctionConfig:
    """The configuration that a CreateFunction asks for, still without its package and layers; raises BadRequest."""
    check_type(request.type)
    runtime = check_runtime(request.runtime)
    if not request.handler and runtime != CUSTOM_RUNTIME:
        raise BadRequest(
            "InvalidParameterValue.Handler", "Handler is required: FILE.FUNCTION, such as index.main_handler"
        )
    return FunctionConfig(
        version=LATEST,
        code_sha256="",
        code_size=0,
        handler=request.handler or _CUSTOM_HANDLER,
        runtime=runtime,
        memory_mib=request.memory_size or MEMORY_DEFAULT_MIB,
        timeout_s=request.timeout or TIMEOUT_DEFAULT_S,
        init_timeout_s=request.init_timeout or INIT_TIMEOUT_DEFAULT_S,
        environment=check_environment(request.environment) if request.environment is not None else {},
    )


def plan_create(
    request: CreateFunction,
    call: Call,
    *,
    key: FunctionKey,
    config: FunctionConfig,
    package: PackageFacts,
    layers: tuple[LayerRef, ...],
    command_id: str,
) -> Plan:
    """CreateFunction, after `check_create` and `check_new_name`."""
    full = replace(config, code_sha256=package.sha256, code_size=package.size_bytes, layers=layers)
    return _plan_new(call, key=key, config=full, description=request.description, command_id=command_id)


def plan_copy(
    request: CopyFunction,
    call: Call,
    *,
    source: FunctionRecord,
    key: FunctionKey,
    existing: FunctionRecord | None,
    command_id: str,
) -> Plan:
    """CopyFunction to `key`, after `check_new_name` unless `existing` is to be overwritten: it then gets a new $LATEST, the rest of it stays.

    What runs of the source is copied, not an update on its way. Without CopyConfiguration only the package, handler and runtime are.
    """
    if source.serving is None:
        raise BadRequest(
            "FailedOperation.FunctionStatusError",
            f"function {source.name!r} is {source.status} and can't run yet; copy it when it is Active",
        )
    described = source.description if request.copy_configuration else None
    description = described if request.description is None else request.description
    whole = replace(source.serving, version=LATEST)
    if existing is None:
        config = whole if request.copy_configuration else _unset(whole)
        return _plan_new(call, key=key, config=config, description=description or "", command_id=command_id)
    kept = check_update(existing)
    config = whole if request.copy_configuration else _with_code(kept, whole)
    return _plan_update(
        existing, call, key=key, config=config, description=description, command_id=command_id, publish=False
    )


def _unset(config: FunctionConfig) -> FunctionConfig:
    """The same code with the configuration that a new function has by default."""
    return replace(
        config,
        memory_mib=MEMORY_DEFAULT_MIB,
        timeout_s=TIMEOUT_DEFAULT_S,
        init_timeout_s=INIT_TIMEOUT_DEFAULT_S,
        environment={},
        layers=(),
    )


def _with_code(config: FunctionConfig, other: FunctionConfig) -> FunctionConfig:
    """A configuration with the code of another one."""
    return replace(
        config,
        code_sha256=other.code_sha256,
        code_size=other.code_size,
        handler=other.handler,
        runtime=other.runtime,
    )


def _plan_new(call: Call, *, key: FunctionKey, config: FunctionConfig, description: str, command_id: str) -> Plan:
    command = _command("create-function", key, call, command_id, description=description, config=config)
    shown = FunctionRecord(
        seq=0,
        appid=key.appid,
        uin=call.caller.uin,
        namespace=key.namespace,
        name=key.name,
        function_id=function_id(command_id),
        status=FunctionStatus.CREATING,
        description=description,
        created_unix_ms=call.now_ms,
        modified_unix_ms=call.now_ms,
        applied=-1,
        command_id=command_id,
        proposed=config,
    )
    return Plan(command, shown)


def check_update(existing: FunctionRecord) -> FunctionConfig:
    """The configuration that an update starts from; raises BadRequest when the function can't be updated now."""
    _moved(existing, FunctionMove.UPDATE)
    config = newest_config(existing)
    if config is None:
        raise BadRequest(
            "FailedOperation.FunctionStatusError",
            f"function {existing.name!r} is {existing.status} and has no configuration to update; delete it and create it again",
        )
    return config


def plan_update_code(
    request: UpdateFunctionCode,
    call: Call,
    *,
    key: FunctionKey,
    existing: FunctionRecord,
    package: PackageFacts,
    command_id: str,
) -> Plan:
    """UpdateFunctionCode: the new package, and a new handler when one is given."""
    config = check_update(existing)
    config = replace(
        config, code_sha256=package.sha256, code_size=package.size_bytes, handler=request.handler or config.handler
    )
    publish = request.publish == "TRUE"
    return _plan_update(
        existing, call, key=key, config=config, description=None, command_id=command_id, publish=publish
    )


def plan_update_configuration(
    request: UpdateFunctionConfiguration,
    call: Call,
    *,
    key: FunctionKey,
    existing: FunctionRecord,
    layers: tuple[LayerRef, ...] | None,
    command_id: str,
) -> Plan:
    """UpdateFunctionConfiguration: what is given replaces what was; `layers` None leaves those that are bound."""
    config = check_update(existing)
    config = replace(
        config,
        memory_mib=request.memory_size or config.memory_mib,
        timeout_s=request.timeout or config.timeout_s,
        init_timeout_s=request.init_timeout or config.init_timeout_s,
        runtime=check_runtime(request.runtime) if request.runtime else config.runtime,
        environment=config.environment if request.environment is None else check_environment(request.environment),
        layers=config.layers if layers is None else layers,
    )
    publish = request.publish == "TRUE"
    return _plan_update(
        existing, call, key=key, config=config, description=request.description, command_id=command_id, publish=publish
    )


def _plan_update(
    existing: FunctionRecord,
    call: Call,
    *,
    key: FunctionKey,
    config: FunctionConfig,
    description: str | None,
    command_id: str,
    publish: bool,
) -> Plan:
    shown = replace(
        existing,
        status=_moved(existing, FunctionMove.UPDATE),
        description=existing.description if description is None else description,
        modified_unix_ms=call.now_ms,
        command_id=command_id,
        proposed=config,
        reasons=(),
    )
    command = _command("update-function", key, call, command_id, description=description, config=config)
    return Plan(replace(command, publish=publish), shown)


def plan_delete(existing: FunctionRecord, call: Call, *, key: FunctionKey, command_id: str) -> Plan:
    """DeleteFunction."""
    shown = replace(
        existing,
        status=_moved(existing, FunctionMove.DELETE),
        modified_unix_ms=call.now_ms,
        command_id=command_id,
        reasons=(),
    )
    return Plan(_command("delete-function", key, call, command_id), shown)


def _moved(existing: FunctionRecord, move: FunctionMove) -> FunctionStatus:
    status = after(FunctionStatus(existing.status), move)
    if status is None:
        raise BadRequest(
            "FailedOperation.FunctionStatusError",
            f"function {existing.name!r} is {existing.status}; wait until that is over, then {move} it",
        )
    return status


def _command(
    kind: str,
    key: FunctionKey,
    call: Call,
    command_id: str,
    *,
    description: str | None = None,
    config: FunctionConfig | None = None,
) -> Command:
    return Command(
        command_id=command_id,
        kind=kind,
        unix_ms=call.now_ms,
        appid=key.appid,
        uin=call.caller.uin,
        namespace=key.namespace,
        function=key.name,
        description=description,
        config=config,
    )


def matches(record: FunctionRecord, filters: Mapping[str, tuple[str, ...]]) -> bool:
    """True when a function passes every filter of `check_filters`."""
    config = newest_config(record)
    seen = {"Status": record.status, "Runtime": config.runtime if config is not None else "", "Type": "Event"}
    return all(seen[name] in values for name, values in filters.items())
