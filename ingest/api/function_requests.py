"""Requests of the actions on functions, and what Penstock does about each of SCF's fields.

Acted on: FunctionName, Namespace, Code (ZipFile, CosBucketName + CosObjectName in the fabric's own store), CodeSource (as a check),
Handler, Description, MemorySize, Timeout, InitTimeout, Environment, Layers, Runtime, Type (`Event`), Publish.
Accepted when it asks for nothing or for what happens anyway: empty texts, lists and structures, FALSE, PublicNetConfig in its default
form, InstallDependency FALSE.
Anything else answers UnsupportedOperation by the field's name: VpcConfig, CfsConfig, ImageConfig, DeadLetterConfig, Role, Tags,
ClsLogsetId, ClsTopicId, ProtocolType, InstanceConcurrencyConfig, IntranetConfig, AsyncRunEnable TRUE, TraceEnable TRUE and the others below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ingest.api.fields import Unsupported, asks_for_nothing, param, short
from ingest.api.params import (
    Filter,
    description,
    function_name,
    limit,
    must,
    namespace,
    offset,
    order,
    qualifier,
    switch,
)
from schemas.ids import is_handler, is_layer_name
from schemas.limits import INIT_TIMEOUT_RANGE_S, LAYERS_PER_FUNCTION, MEMORY_CHOICES_MIB, TIMEOUT_RANGE_S

_NO_VPC: Final = "functions have no network of their own here yet"
_NO_LOG_SERVICE: Final = "logs are kept by the fabric itself (penstock logs, GetFunctionLogLines)"


def _is_default_public_net(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.keys() - {"PublicNetStatus", "EipConfig"}:
        return False
    eip = value.get("EipConfig")
    status = eip.get("EipStatus") if isinstance(eip, Mapping) and eip.keys() <= {"EipStatus"} else None
    no_eip = asks_for_nothing(eip) or status == "DISABLE"
    return no_eip and value.get("PublicNetStatus") in (None, "", "ENABLE", "DISABLE")


def _is_no_fixed_ip(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() <= {"IpFixed"} and value.get("IpFixed") in (None, "", "DISABLE")


_CONFIGURATION: Final = (
    Unsupported("VpcConfig", _NO_VPC),
    Unsupported("PublicNetConfig", "fixed public addresses; " + _NO_VPC, _is_default_public_net),
    Unsupported("IntranetConfig", "fixed private addresses; " + _NO_VPC, _is_no_fixed_ip),
    Unsupported("CfsConfig", "file systems can't be mounted"),
    Unsupported("DeadLetterConfig", "a Kafka trigger has a dead-letter topic of its own, without setting"),
    Unsupported("Role", "functions get no cloud credentials; leave Role out"),
    Unsupported("ClsLogsetId", _NO_LOG_SERVICE),
    Unsupported("ClsTopicId", _NO_LOG_SERVICE),
    Unsupported("ProtocolParams", "web functions are not built"),
    Unsupported("InstanceConcurrencyConfig", "one worker runs one event at a time"),
    Unsupported("InstallDependency", "packages must hold all that they need"),
    Unsupported("DnsCache", _NO_VPC),
)
_CREATION: Final = (
    *_CONFIGURATION,
    Unsupported("Tags", "functions carry no tags"),
    Unsupported("AsyncRunEnable", "asynchronous long runs are not built", code="UnsupportedOperation.AsyncRunEnable"),
    Unsupported("TraceEnable", "traces are not built"),
    Unsupported("AutoDeployClsTopicIndex", _NO_LOG_SERVICE),
    Unsupported("AutoCreateClsTopic", _NO_LOG_SERVICE),
    Unsupported("ProtocolType", "web functions are not built"),
)
_SOURCES: Final = tuple(
    Unsupported(
        name, "send the package as ZipFile, or put it into the fabric's store and name CosBucketName and CosObjectName"
    )
    for name in (
        "DemoId",
        "TempCosObjectName",
        "GitUrl",
        "GitUserName",
        "GitPassword",
        "GitPasswordSecret",
        "GitBranch",
        "GitDirectory",
        "GitCommitId",
        "GitUserNameSecret",
        "ImageConfig",
    )
)


@dataclass(frozen=True, slots=True)
class CodeFields:
    """Structure Code: exactly one of ZipFile and CosBucketName + CosObjectName."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = _SOURCES

    zip_file: str | None = param(None, max_chars=10 * 1024 * 1024)
    cos_bucket_name: str | None = param(None, code="InvalidParameterValue.CosBucketName", max_chars=128)
    cos_object_name: str | None = param(None, code="InvalidParameterValue.CosObjectName", max_chars=1_024)
    cos_bucket_region: str | None = param(None, max_chars=64)


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable."""

    key: str = param(code="InvalidParameterValue.Environment")
    value: str = param("", code="InvalidParameterValue.EnvironmentExceededLimit")


@dataclass(frozen=True, slots=True)
class Environment:
    """Structure Environment."""

    variables: tuple[Variable, ...] = param(())


def _layer(value: Any) -> str | None:
    return None if not value or is_layer_name(value) else f"is {short(value)}, which is no name of a layer"


@dataclass(frozen=True, slots=True)
class LayerVersionSimple:
    """A layer version to be bound; the empty name with version 0, alone in its list, unbinds all."""

    layer_name: str = param(code="InvalidParameterValue.LayerName", check=_layer)
    layer_version: int = param(code="InvalidParameterValue.Layers", low=0, high=2**31)

    @property
    def unbinds(self) -> bool:
        """True for the entry that stands for none."""
        return not self.layer_name and not self.layer_version


def _layer_list(value: Any) -> str | None:
    wanted: tuple[LayerVersionSimple, ...] = value
    if len(wanted) > LAYERS_PER_FUNCTION:
        return f"has {len(wanted)} layers; the limit is {LAYERS_PER_FUNCTION}"
    if len(wanted) == 1 and wanted[0].unbinds:
        return None
    if any(not layer.layer_name or not layer.layer_version for layer in wanted):
        return "needs LayerName and LayerVersion of each layer; one entry with an empty name and version 0 unbinds all"
    if len(set(wanted)) < len(wanted):
        return "names a layer version twice"
    return None


def _layers() -> Any:
    return param((), code="InvalidParameterValue.Layers", check=_layer_list)


def _memory(value: Any) -> str | None:
    if value in MEMORY_CHOICES_MIB:
        return None
    return f"is {value}; it must be 64, or from 128 to {MEMORY_CHOICES_MIB[-1]} MB in steps of 128"


def _memory_size() -> Any:
    return param(None, code="InvalidParameterValue.MemorySize", check=_memory)


def _timeout() -> Any:
    return param(None, code="LimitExceeded.Timeout", low=TIMEOUT_RANGE_S[0], high=TIMEOUT_RANGE_S[1])


def _init_timeout() -> Any:
    return param(None, code="LimitExceeded.InitTimeout", low=INIT_TIMEOUT_RANGE_S[0], high=INIT_TIMEOUT_RANGE_S[1])


def _handler() -> Any:
    return param(
        None, code="InvalidParameterValue.Handler", check=must(is_handler, "FILE.FUNCTION, such as index.main_handler")
    )


# A field of a class hides the declaration of the same name from the fields below it.
def _new_function_name() -> Any:
    return function_name()


def _target_namespace() -> Any:
    return namespace()


@dataclass(frozen=True, slots=True)
class CreateFunction:
    """Request of CreateFunction."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = _CREATION

    function_name: str = function_name()
    code: CodeFields = param(required="MissingParameter.Code")
    handler: str | None = _handler()
    description: str = description()
    memory_size: int | None = _memory_size()
    timeout: int | None = _timeout()
    environment: Environment | None = param(None)
    runtime: str | None = param(None, code="InvalidParameterValue.Runtime", max_chars=64)
    namespace: str = namespace()
    type: str = param("Event", code="InvalidParameterValue.FunctionType", max_chars=16)
    code_source: str | None = param(None, code="InvalidParameterValue.CodeSource", max_chars=32)
    init_timeout: int | None = _init_timeout()
    layers: tuple[LayerVersionSimple, ...] = _layers()


@dataclass(frozen=True, slots=True)
class UpdateFunctionCode:
    """Request of UpdateFunctionCode; the package stands in Code or in the fields beside it."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (
        Unsupported("InstallDependency", "packages must hold all that they need"),
        Unsupported("EnvId", "there is one environment"),
    )

    function_name: str = function_name()
    handler: str | None = _handler()
    cos_bucket_name: str | None = param(None, code="InvalidParameterValue.CosBucketName", max_chars=128)
    cos_object_name: str | None = param(None, code="InvalidParameterValue.CosObjectName", max_chars=1_024)
    zip_file: str | None = param(None, max_chars=10 * 1024 * 1024)
    namespace: str = namespace()
    cos_bucket_region: str | None = param(None, max_chars=64)
    code: CodeFields | None = param(None)
    code_source: str | None = param(None, code="InvalidParameterValue.CodeSource", max_chars=32)
    publish: str = switch("InvalidParameterValue")


@dataclass(frozen=True, slots=True)
class UpdateFunctionConfiguration:
    """Request of UpdateFunctionConfiguration; a field that is absent stays as it is, Environment and Layers are replaced whole."""

    UNSUPPORTED: ClassVar[tuple[Unsupported, ...]] = (
        *_CONFIGURATION,
        Unsupported("L5Enable", "there is no L5"),
        Unsupported("IgnoreSysLog", "the START, END and REPORT lines are always written"),
    )

    function_name: str = function_name()
    description: str | None = description(None)
    memory_size: int | None = _memory_size()
    timeout: int | None = _timeout()
    runtime: str | None = param(None, code="InvalidParameterValue.Runtime", max_chars=64)
    environment: Environment | None = param(None)
    namespace: str = namespace()
    init_timeout: int | None = _init_timeout()
    layers: tuple[LayerVersionSimple, ...] = _layers()
    publish: str = switch("InvalidParameterValue")


@dataclass(frozen=True, slots=True)
class DeleteFunction:
    """Request of DeleteFunction; with Qualifier it is one published version that goes."""

    function_name: str = function_name()
    namespace: str = namespace()
    qualifier: str = qualifier("")


@dataclass(frozen=True, slots=True)
class CopyFunction:
    """Request of CopyFunction; TargetRegion can only be the fabric's own."""

    function_name: str = function_name()
    new_function_name: str = _new_function_name()
    namespace: str = namespace()
    target_namespace: str = _target_namespace()
    description: str | None = description(None)
    target_region: str = param("", max_chars=64)
    override: bool = param(False)
    copy_configuration: bool = param(True)


@dataclass(frozen=True, slots=True)
class GetFunction:
    """Request of GetFunction."""

    function_name: str = function_name()
    qualifier: str = qualifier()
    namespace: str = namespace()
    show_code: str = switch(
        "UnsupportedOperation",
        check=lambda v: "TRUE is not supported by Penstock: the code is not shown" if v == "TRUE" else None,
    )


@dataclass(frozen=True, slots=True)
class GetFunctionAddress:
    """Request of GetFunctionAddress."""

    function_name: str = function_name()
    qualifier: str = qualifier()
    namespace: str = namespace()


@dataclass(frozen=True, slots=True)
class ListFunctions:
    """Request of ListFunctions."""

    order: str = order()
    orderby: str = param(
        "AddTime", code="InvalidParameterValue.OrderBy", choices=("AddTime", "ModTime", "FunctionName")
    )
    offset: int = offset()
    limit: int = limit()
    search_key: str = param("", code="InvalidParameterValue.SearchKey", max_chars=128)
    namespace: str = namespace()
    description: str = description()
    filters: tuple[Filter, ...] = param((), code="InvalidParameterValue.Filters")
