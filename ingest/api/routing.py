"""Qualifiers of the API's calls: which version one leads to, and SCF's RoutingConfig and RoutingKey in both directions."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ingest.api.fields import param, short
from ingest.api.params import must
from ingest.api.services import Services
from router.aliases import alias_named, bounds_of, chosen
from schemas.errors import BadRequest
from schemas.ids import DEFAULT_ALIAS, LATEST, FunctionKey
from schemas.limits import ROUTING_KEY_BYTES, ROUTING_RULE_CHARS, ROUTING_RULES
from schemas.records import AliasRecord, FunctionRecord, VersionMatch, VersionRecord

HEADER: Final = "invoke.headers."
_WEIGHTS: Final = "InvalidParameterValue.AdditionalVersionWeights"
_ROUTING: Final = "InvalidParameterValue.RoutingConfig"


def is_version(text: str) -> bool:
    """`$LATEST` or a number, there or not."""
    return text == LATEST or (text.isascii() and text.isdecimal() and len(text) <= 9)


def version_name() -> Any:
    """The required field FunctionVersion of an alias; whether it exists is looked up."""
    return param(code="InvalidParameterValue.Qualifier", check=must(is_version, "a version's number, or $LATEST"))


@dataclass(frozen=True, slots=True)
class VersionWeight:
    """Structure VersionWeight: the additional version's share."""

    version: str = param(code=_WEIGHTS, check=must(is_version, "a version's number, or $LATEST"))
    weight: float = param(code=_WEIGHTS, low=0, high=1)


@dataclass(frozen=True, slots=True)
class Match:
    """Structure VersionMatch."""

    version: str = param(code=_ROUTING, check=must(is_version, "a version's number, or $LATEST"))
    key: str = param(
        code=_ROUTING,
        max_chars=ROUTING_RULE_CHARS,
        check=must(lambda v: v.startswith(HEADER) and v != HEADER, f"{HEADER}NAME"),
    )
    method: str = param(code=_ROUTING, choices=("exact", "range"))
    expression: str = param(code=_ROUTING, max_chars=ROUTING_RULE_CHARS)


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """Structure RoutingConfig (SCF spells the second field so)."""

    additional_version_weights: tuple[VersionWeight, ...] = param(())
    addtion_version_matchs: tuple[Match, ...] = param(())


@dataclass(frozen=True, slots=True)
class Route:
    """A RoutingConfig as an AliasRecord has it."""

    additional: str = ""
    weight: float = 0.0
    matches: tuple[VersionMatch, ...] = ()


def route_of(config: RoutingConfig | None, main: str) -> Route:
    """A checked RoutingConfig; raises BadRequest."""
    if config is None:
        return Route()
    weights, matches = config.additional_version_weights, config.addtion_version_matchs
    if weights and matches:
        raise BadRequest(_ROUTING, "give either AdditionalVersionWeights or AddtionVersionMatchs, not both")
    if len(weights) > 1 or len(matches) > ROUTING_RULES or len({m.version for m in matches}) > 1:
        raise BadRequest(_ROUTING, f"an alias has one additional version, and at most {ROUTING_RULES} rules for it")
    for match in matches:
        if match.method == "range" and bounds_of(match.expression) is None:
            raise BadRequest(_ROUTING, f"{short(match.expression)} is no range: give (a,b) or [a,b] with integers")
    extra = {w.version for w in weights} | {m.version for m in matches}
    if main in extra:
        raise BadRequest(_ROUTING, f"version {main} is the alias's main version and can't be the additional one too")
    rules = tuple(VersionMatch(m.version, m.key.removeprefix(HEADER), m.method, m.expression) for m in matches)
    return Route(weights[0].version, weights[0].weight, rules) if weights else Route(matches=rules)


def describe_route(alias: AliasRecord) -> dict[str, Any]:
    """Structure RoutingConfig of an answer."""
    weights = [{"Version": alias.additional, "Weight": alias.weight}] if alias.additional else []
    matches = [
        {"Version": m.version, "Key": HEADER + m.header, "Method": m.method, "Expression": m.expression}
        for m in alias.matches
    ]
    return {"AdditionalVersionWeights": weights, "AddtionVersionMatchs": matches}


def check_routing_key(text: str) -> Mapping[str, str] | None:
    """The headers that a call's RoutingKey gives; None when there is none. Raises BadRequest."""
    if not text:
        return None
    try:
        headers = json.loads(text)
    except (ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise BadRequest("InvalidParameter.RoutingConfig", "RoutingKey must be a JSON object whose values are texts")
    if len(text.encode()) > ROUTING_KEY_BYTES:
        raise BadRequest("InvalidParameter.RoutingConfig", f"RoutingKey has more than {ROUTING_KEY_BYTES} bytes")
    return headers


def version_for(
    services: Services,
    key: FunctionKey,
    qualifier: str,
    headers: Mapping[str, str] | None = None,
    *,
    code: str = "ResourceNotFound.Qualifier",
) -> VersionRecord | None:
    """The version that a call by `qualifier` goes to; None is `$LATEST`. An alias with a weight divides by chance.

    Raises BadRequest with `code` for a qualifier that the function does not have.
    """
    if qualifier in (LATEST, ""):
        return None
    alias = alias_named(services.aliases, key, qualifier)
    if alias is not None:
        version = chosen(alias, headers=headers, share=random.random())
    else:
        version = LATEST if qualifier == DEFAULT_ALIAS else qualifier
    if version == LATEST:
        return None
    record = services.versions.get(f"{key}/{version}")
    if record is None:
        raise BadRequest(code, f"function {key.name!r} has no version or alias {short(qualifier)}")
    return record


def main_version(services: Services, key: FunctionKey, qualifier: str, *, code: str) -> VersionRecord | None:
    """The version that stands behind `qualifier`, of an alias its main one; None is `$LATEST`. Raises BadRequest with `code`."""
    alias = alias_named(services.aliases, key, qualifier)
    return version_for(services, key, qualifier if alias is None else alias.version, code=code)


def check_qualifier(services: Services, key: FunctionKey, qualifier: str) -> None:
    """Raises BadRequest (ResourceNotFound.Qualifier) when the function has no such version or alias."""
    main_version(services, key, qualifier, code="ResourceNotFound.Qualifier")


def as_function(record: FunctionRecord, version: VersionRecord | None) -> FunctionRecord:
    """The function as one of its versions shows it; None is `$LATEST`."""
    if version is None:
        return record
    return FunctionRecord(
        version.seq, record.appid, version.uin, record.namespace, record.name, record.function_id, "Active",
        version.description, version.created_unix_ms, version.created_unix_ms, version.applied, version.command_id,
        serving=version.config,
    )  # fmt: skip
