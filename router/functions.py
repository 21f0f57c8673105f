"""From a function and a qualifier to what an agent needs to run it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from router.aliases import Split, alias_named, chosen, split_of
from schemas.frames import Spec
from schemas.ids import DEFAULT_ALIAS, LATEST, FunctionKey
from schemas.lifecycle import GOING
from schemas.records import AliasRecord, FunctionConfig, FunctionRecord, VersionRecord
from schemas.runstatus import RunStatus
from schemas.specs import spec_of_config

R_co = TypeVar("R_co", covariant=True)
SPECS_KEPT: Final = 10_000
"""Specs of published versions that are remembered; a full memory is begun anew."""


class View(Protocol[R_co]):
    """Where the router looks states up: a table reader's view, or the API's with its overlay."""

    def get(self, key: str) -> R_co | None:
        """The newest state, or None."""
        ...


FunctionsView = View[FunctionRecord]


class _Empty:
    def get(self, key: str) -> None:
        return None


def spec_of(record: FunctionRecord, region: str) -> Spec | None:
    """The runnable configuration of a function, or None when none ever reached Active."""
    return None if record.serving is None else _spec(record, record.name, record.serving, region)


def _spec(record: FunctionRecord | VersionRecord, function: str, config: FunctionConfig, region: str) -> Spec:
    return spec_of_config(
        config, appid=record.appid, uin=record.uin, namespace=record.namespace, function=function, region=region
    )


class Resolver:
    """Resolves calls against the registry's views; remembers the Spec of each record state, so that a warm lookup is two dict hits.

    Args:
        view: functions, by `appid/namespace/name`.
        region: of the fabric.
        versions, aliases: by the function's key with `/version` or `/alias` behind.
        share: uniform in [0, 1), for aliases with weights.
    """

    def __init__(
        self,
        view: View[FunctionRecord],
        *,
        region: str,
        versions: View[VersionRecord] | None = None,
        aliases: View[AliasRecord] | None = None,
        share: Callable[[], float] = random.random,
    ) -> None:
        self._view = view
        self._region = region
        self._versions: View[VersionRecord] = versions or _Empty()
        self._aliases: View[AliasRecord] = aliases or _Empty()
        self._share = share
        self._specs: dict[FunctionKey, tuple[FunctionRecord, Spec | None]] = {}
        self._of_versions: dict[tuple[FunctionKey, str], tuple[VersionRecord, Spec]] = {}

    def resolve(self, key: FunctionKey, qualifier: str) -> Spec | tuple[RunStatus, str]:
        """The Spec to run, or the status and sentence to answer with."""
        record = self._view.get(str(key))
        if record is None:
            self._specs.pop(key, None)
            return RunStatus.NO_FUNCTION, f"function {key.namespace}/{key.name} does not exist"
        if qualifier not in (LATEST, ""):
            alias = alias_named(self._aliases, key, qualifier)
            qualifier = qualifier if alias is None else chosen(alias, headers=None, share=self._share())
        if qualifier in (LATEST, DEFAULT_ALIAS, ""):
            known = self._specs.get(key)
            if known is None or known[0] is not record:
                known = self._specs[key] = (record, spec_of(record, self._region))
            spec = known[1]
        else:
            spec = self._version(key, qualifier)
            if spec is None:
                said = f"function {key.namespace}/{key.name} has no version or alias {qualifier!r}"
                return RunStatus.NO_QUALIFIER, said
        if spec is None or record.status in GOING:
            return RunStatus.FUNCTION_STATE, f"function {key.namespace}/{key.name} is {record.status}, not Active"
        return spec

    def forget(self, key: FunctionKey) -> None:
        """Drop what is remembered of a function that goes."""
        self._specs.pop(key, None)
        for at in [at for at in self._of_versions if at[0] == key]:
            del self._of_versions[at]

    def split(self, key: FunctionKey, qualifier: str) -> Split | None:
        """How calls by this qualifier divide now; None when all of them go to one version."""
        alias = alias_named(self._aliases, key, qualifier)
        return None if alias is None else split_of(alias)

    def _version(self, key: FunctionKey, version: str) -> Spec | None:
        record = self._versions.get(f"{key}/{version}")
        at = (key, version)
        if record is None:
            self._of_versions.pop(at, None)
            return None
        known = self._of_versions.get(at)
        if known is None or known[0] is not record:
            if len(self._of_versions) >= SPECS_KEPT:
                self._of_versions.clear()
            known = self._of_versions[at] = (record, _spec(record, record.function, record.config, self._region))
        return known[1]
