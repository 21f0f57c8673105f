"""Requests as declarations: a frozen dataclass per action, its fields with rules; one converter for JSON and for flattened GET.

A field's API name is its attribute's in CamelCase. Types: str, int, float, bool, tuple[T, ...], another request dataclass. What is answered:

    unknown field                  UnknownParameter
    wrong type                     InvalidParameter
    required and absent            the rule's `required` code (MissingParameter)
    value breaks its rule          the rule's `code`
    known to SCF, not to Penstock  UnsupportedOperation, unless its value asks for nothing (see `Unsupported`)

JSON null is absence, as in all SDKs. In a flattened GET every value is text (`Name.0.Field=…`) and is converted by the field's type.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

from schemas.errors import BadRequest

R = TypeVar("R")
MAX_DEPTH: Final = 8
MAX_ITEMS: Final = 1_000
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}\Z")
_FLOAT: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?\Z")
_INDEX: Final = re.compile(r"[0-9]{1,4}\Z")
_INT_LIMIT: Final = 2**63
_BOOLEANS: Final = {"true": True, "false": False}

Check = Callable[[Any], str | None]
"""Looks at a converted value; returns what is wrong with it as the end of a sentence that starts with the field's name, or None."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field's value must be, and the codes to answer when it is not.

    `required` is the code for an absent field, empty when it is optional. `low`/`high` bound numbers; `choices` lists legal texts;
    `max_chars` bounds text; `check` is for the rest.
    """

    name: str = ""
    required: str = ""
    code: str = "InvalidParameterValue"
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    max_chars: int = 4_096
    check: Check | None = None

    @property
    def empty_is_absent(self) -> bool:
        """True when empty text can't be meant: an optional field that takes certain texts only."""
        return not self.required and (bool(self.choices) or self.check is not None)

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a converted value, or None."""
        if isinstance(value, str):
            if len(value) > self.max_chars:
                return f"is {len(value)} characters long; the limit is {self.max_chars}"
            if self.choices and value not in self.choices:
                return f"is {short(value)}; it must be one of {', '.join(self.choices)}"
        elif isinstance(value, int | float) and not self._in_range(value):
            return f"is {value}; it must be {self._range()}"
        return self.check(value) if self.check is not None else None

    def _in_range(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def _range(self) -> str:
        if self.high is None:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.low is None else f"from {self.low:g} to {self.high:g}"


def param(default: Any = dataclasses.MISSING, **rule: Any) -> Any:
    """A field of a request dataclass: `param(…)` is required, `param(default, …)` optional. Keywords are those of `Rule`."""
    if default is dataclasses.MISSING:
        rule.setdefault("required", "MissingParameter")
        return dataclasses.field(metadata={"rule": Rule(**rule)})
    return dataclasses.field(default=default, metadata={"rule": Rule(**rule)})


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A field that SCF has and Penstock does not act on.

    A value that asks for nothing is let pass (absent, empty text, list or structure, FALSE, false, or what `harmless` accepts);
    any other is refused by name, so that nobody takes an answer for more than it is.
    """

    name: str
    reason: str
    harmless: Callable[[Any], bool] | None = None
    code: str = "UnsupportedOperation"

    def refuse(self, path: str, value: Any) -> None:
        """Raises BadRequest when the value asks for something."""
        if asks_for_nothing(value) or (self.harmless is not None and self.harmless(value)):
            return
        raise BadRequest(self.code, f"{path} is not supported by Penstock: {self.reason}")


def asks_for_nothing(value: Any) -> bool:
    """True for null, empty text, FALSE, false, and lists and structures that hold nothing else."""
    if isinstance(value, Mapping):
        return all(asks_for_nothing(v) for v in value.values())
    if isinstance(value, list | tuple):
        return not value
    return value is None or value is False or (isinstance(value, str) and value.upper() in ("", "FALSE"))


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 80
_shortener.maxlevel = 3


def short(value: object) -> str:
    """A value for a message: quoted, cut to some 80 characters (never the whole of a large one)."""
    return _shortener.repr(value)


@dataclass(frozen=True, slots=True)
class _Field:
    attribute: str
    name: str
    convert: Callable[[Any, str, bool], Any]
    rule: Rule


class Schema(Generic[R]):
    """The compiled form of a request dataclass, which may have a class attribute `UNSUPPORTED: tuple[Unsupported, ...]`."""

    def __init__(self, request: type[R]) -> None:
        self.request = request
        hints = typing.get_type_hints(request)
        compiled = (_compile(f, hints[f.name]) for f in dataclasses.fields(cast(Any, request)))
        self._fields = {f.name: f for f in compiled}
        unsupported: Iterable[Unsupported] = getattr(request, "UNSUPPORTED", ())
        self._unsupported = {field.name: field for field in unsupported}
        self._required = tuple(f for f in self._fields.values() if f.rule.required)

    @property
    def names(self) -> frozenset[str]:
        """Every field name that is known, supported or not."""
        return frozenset(self._fields) | frozenset(self._unsupported)

    def parse(self, raw: Mapping[str, Any], *, text: bool, at: str = "") -> R:
        """A checked request.

        Args:
            raw: the JSON object, or the tree that `unflatten` made of a GET.
            text: True when leaves are text that must be converted.
            at: path of this structure, with a dot at its end, for messages.

        Raises:
            BadRequest: as the module's table says. Nothing else.
        """
        values: dict[str, Any] = {}
        fields = self._fields
        for name, value in raw.items():
            field = fields.get(name)
            if field is None:
                self._not_ours(name, value, at)
            elif value is not None and not (value == "" and field.rule.empty_is_absent):
                converted = values[field.attribute] = field.convert(value, at + name, text)
                if (complaint := field.rule.complaint(converted)) is not None:
                    raise BadRequest(field.rule.code, f"{at}{name} {complaint}")
        for field in self._required:
            if field.attribute not in values:
                raise BadRequest(field.rule.required, f"{at}{field.name} is required")
        return self.request(**values)

    def _not_ours(self, name: str, value: Any, at: str) -> None:
        refused = self._unsupported.get(name)
        if refused is None:
            raise BadRequest("UnknownParameter", f"{short(at + name)} is not a field of this action")
        refused.refuse(at + name, value)


def _compile(field: dataclasses.Field[Any], hint: Any) -> _Field:
    rule: Rule = field.metadata["rule"]
    name = rule.name or "".join(part.capitalize() for part in field.name.split("_"))
    return _Field(field.name, name, _converter(hint), rule)


def _converter(hint: Any) -> Callable[[Any, str, bool], Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _converter(next(a for a in args if a is not type(None)))
    if origin is tuple:
        return _sequence(_converter(args[0]))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _structure(Schema(hint))
    return _SCALARS[hint]


def _wrong(path: str, wanted: str, value: Any) -> BadRequest:
    return BadRequest("InvalidParameter", f"{path} must be {wanted}, not {short(value)}")


def _to_text(value: Any, path: str, text: bool) -> str:
    if not isinstance(value, str):
        raise _wrong(path, "text", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRequest("InvalidParameter", f"{path} holds half of a surrogate pair, which is no text") from None
    return value


def _to_int(value: Any, path: str, text: bool) -> int:
    if text and isinstance(value, str) and _INTEGER.match(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -_INT_LIMIT <= value < _INT_LIMIT:
        raise _wrong(path, "an integer", value)
    return value


def _to_float(value: Any, path: str, text: bool) -> float:
    if text and isinstance(value, str) and _FLOAT.match(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _INT_LIMIT:
        raise _wrong(path, "a number", value)
    return float(value)


def _to_bool(value: Any, path: str, text: bool) -> bool:
    if text and isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if not isinstance(value, bool):
        raise _wrong(path, "true or false", value)
    return value


_SCALARS: Final[dict[Any, Callable[[Any, str, bool], Any]]] = {
    str: _to_text,
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
}


def _sequence(item: Callable[[Any, str, bool], Any]) -> Callable[[Any, str, bool], tuple[Any, ...]]:
    def convert(value: Any, path: str, text: bool) -> tuple[Any, ...]:
        items = _numbered(value, path) if text and isinstance(value, dict) else value
        if not isinstance(items, list):
            raise _wrong(path, "a list", value)
        if len(items) > MAX_ITEMS:
            raise BadRequest("InvalidParameter", f"{path} has {len(items)} items; the limit is {MAX_ITEMS}")
        return tuple(item(v, f"{path}.{i}", text) for i, v in enumerate(items))

    return convert


def _numbered(tree: dict[str, Any], path: str) -> list[Any]:
    if not all(_INDEX.match(name) for name in tree) or {int(name) for name in tree} != set(range(len(tree))):
        raise BadRequest("InvalidParameter", f"{path} must be a list with items numbered from 0 without gaps")
    return [value for _, value in sorted(tree.items(), key=lambda item: int(item[0]))]


def _structure(schema: Schema[Any]) -> Callable[[Any, str, bool], Any]:
    def convert(value: Any, path: str, text: bool) -> Any:
        if not isinstance(value, dict):
            raise _wrong(path, "a structure", value)
        return schema.parse(value, text=text, at=path + ".")

    return convert


def unflatten(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The tree of `A.0.B=v` pairs: every node a dict by name or index, every leaf text. Raises BadRequest."""
    root: dict[str, Any] = {}
    for name, value in pairs:
        *path, leaf = name.split(".")
        if len(path) >= MAX_DEPTH or not all((*path, leaf)):
            raise BadRequest("InvalidParameter", f"{short(name)} is no field name")
        node = root
        for part in path:
            below = node.setdefault(part, {})
            if not isinstance(below, dict):
                raise BadRequest("InvalidParameter", f"{short(name)} is given both as a value and as a structure")
            node = below
        if leaf in node:
            raise BadRequest("InvalidParameter", f"{short(name)} is given twice")
        node[leaf] = value
    return root


@dataclass(frozen=True, slots=True)
class NoFields:
    """Request of an action without fields."""
