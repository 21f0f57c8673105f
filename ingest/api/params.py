"""Fields and value rules that several actions share (SCF.md section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ingest.api.fields import param, short
from schemas.errors import BadRequest
from schemas.ids import DEFAULT_NAMESPACE, LATEST, is_function_name, is_namespace, is_trigger_name

PAGE_LIMIT: Final = 1_000
DEFAULT_PAGE: Final = 20
TRIGGER_TYPES: Final = ("ckafka", "timer", "cos", "cmq", "apigw", "http", "cls", "clb", "mps")


def must(predicate: Callable[[str], bool], shape: str) -> Callable[[Any], str | None]:
    """A check that complains with the shape that is wanted."""

    def check(value: Any) -> str | None:
        return None if predicate(value) else f"is {short(value)}; it must be {shape}"

    return check


def function_name() -> Any:
    """The required field FunctionName."""
    shape = "2 to 60 letters, digits, - or _, start with a letter and end with a letter or digit"
    return param(code="InvalidParameterValue.FunctionName", check=must(is_function_name, shape))


def namespace() -> Any:
    """The optional field Namespace; whether it exists is looked up by `Services.namespace`."""
    shape = "1 to 30 letters, digits, - or _, start with a letter and end with a letter or digit"
    return param(DEFAULT_NAMESPACE, code="InvalidParameterValue.Namespace", check=must(is_namespace, shape))


def trigger_name(default: Any = None, *, required: bool = True) -> Any:
    """The field TriggerName."""
    rule = {
        "code": "InvalidParameterValue.TriggerName",
        "check": must(is_trigger_name, "1 to 100 letters, digits, dots, - or _, and start with a letter or digit"),
    }
    return param(**rule) if required else param(default, **rule)


def qualifier(default: str = LATEST) -> Any:
    """The optional field Qualifier; whether it exists is looked up by `routing.version_for`."""
    return param(default, code="InvalidParameterValue.Qualifier", max_chars=64)


def offset() -> Any:
    """The optional field Offset of a listing."""
    return param(0, code="InvalidParameterValue.Offset", low=0)


def limit() -> Any:
    """The optional field Limit of a listing."""
    return param(DEFAULT_PAGE, code="InvalidParameterValue.Limit", low=0, high=PAGE_LIMIT)


def order() -> Any:
    """The optional field Order of a listing."""
    return param("DESC", code="InvalidParameterValue.Order", choices=("ASC", "DESC"))


def order_by() -> Any:
    """The optional field OrderBy of a listing by time."""
    return param(
        "AddTime", code="InvalidParameterValue.OrderBy", choices=("AddTime", "ModTime", "add_time", "mod_time")
    )


def utc_ms(name: str, text: str, code: str) -> int:
    """Unix ms of a request's time, to the second; raises BadRequest with `code`."""
    try:
        return int(datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()) * 1000
    except ValueError as exc:
        raise BadRequest(code, f"{name} is {short(text)}; it must be of the form 2026-01-31 23:59:59, in UTC") from exc


def description(default: str | None = "") -> Any:
    """The optional field Description; None is for updates, where an absent one leaves what was."""
    return param(default, code="InvalidParameterValue.Description", max_chars=1_000)


def switch(code: str, default: str = "FALSE", **rule: Any) -> Any:
    """A text boolean, TRUE or FALSE."""
    return param(default, code=code, choices=("TRUE", "FALSE"), **rule)


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of a listing; a state passes when its value is among `values`."""

    name: str = param(max_chars=64)
    values: tuple[str, ...] = param((), code="InvalidParameterValue.Filters")
