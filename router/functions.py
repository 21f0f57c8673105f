"""From a function and a qualifier to what an agent needs to run it."""

from __future__ import annotations

from typing import Protocol

from schemas.frames import Spec
from schemas.ids import DEFAULT_ALIAS, LATEST, FunctionKey
from schemas.lifecycle import FunctionStatus
from schemas.records import FunctionRecord
from schemas.runstatus import RunStatus


class FunctionsView(Protocol):
    """Where the router looks functions up: the table reader's view, or the API's with its overlay."""

    def get(self, key: str) -> FunctionRecord | None:
        """The newest state of `appid/namespace/name`, or None."""
        ...


def spec_of(record: FunctionRecord, region: str) -> Spec | None:
    """The runnable configuration of a function, or None when none ever reached Active."""
    config = record.serving
    if config is None:
        return None
    return Spec(
        appid=record.appid,
        uin=record.uin,
        namespace=record.namespace,
        function=record.name,
        version=config.version,
        code_sha256=config.code_sha256,
        handler=config.handler,
        runtime=config.runtime,
        memory_mib=config.memory_mib,
        timeout_s=config.timeout_s,
        init_timeout_s=config.init_timeout_s,
        region=region,
        environment=config.environment,
    )


class Resolver:
    """Resolves calls against the registry view; remembers the Spec of each record state, so that a warm lookup is two dict hits."""

    def __init__(self, view: FunctionsView, *, region: str) -> None:
        self._view = view
        self._region = region
        self._specs: dict[FunctionKey, tuple[FunctionRecord, Spec | None]] = {}

    def resolve(self, key: FunctionKey, qualifier: str) -> Spec | tuple[RunStatus, str]:
        """The Spec to run, or the status and sentence to answer with."""
        record = self._view.get(str(key))
        if record is None:
            self._specs.pop(key, None)
            return RunStatus.NO_FUNCTION, f"function {key.namespace}/{key.name} does not exist"
        if qualifier not in (LATEST, DEFAULT_ALIAS, ""):
            return RunStatus.NO_QUALIFIER, f"function {key.namespace}/{key.name} has no version or alias {qualifier!r}"
        known = self._specs.get(key)
        if known is None or known[0] is not record:
            known = self._specs[key] = (record, spec_of(record, self._region))
        if known[1] is None or record.status in (FunctionStatus.DELETING, FunctionStatus.DELETE_FAILED):
            return RunStatus.FUNCTION_STATE, f"function {key.namespace}/{key.name} is {record.status}, not Active"
        return known[1]
