"""Avro for the records of `schemas.records`: schemas derived from the dataclasses, single-object encoding.

A message is `C3 01`, the 8-byte CRC-64-AVRO fingerprint of the writer's schema (little endian), then the Avro body
(Avro specification 1.11, "Single-object encoding"). A reader resolves an older writer's schema by its fingerprint
among `known` ones, so old records stay readable after a field was added.
"""

from __future__ import annotations

import dataclasses
import io
import operator
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin

import fastavro
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

from schemas.errors import WireError

_MAGIC = b"\xc3\x01"
_NAMESPACE = "penstock"
_PRIMITIVES: dict[type, str] = {str: "string", int: "long", float: "double", bool: "boolean", bytes: "bytes"}

T = TypeVar("T")
Turn = Callable[[Any], Any]


def schema_of(record: type) -> dict[str, Any]:
    """The Avro schema of a dataclass, as plain data (not yet parsed)."""
    return _record_schema(record, seen=set())


def _record_schema(record: type, *, seen: set[str]) -> dict[str, Any]:
    seen.add(record.__name__)
    hints = typing.get_type_hints(record)
    return {
        "type": "record",
        "name": record.__name__,
        "namespace": _NAMESPACE,
        "fields": [_field_schema(f, hints[f.name], seen) for f in dataclasses.fields(record)],
    }


def _full_name(record: type) -> str:
    return f"{_NAMESPACE}.{record.__name__}"


def _field_schema(field: dataclasses.Field[Any], hint: Any, seen: set[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"name": field.name, "type": _type_schema(hint, seen)}
    if field.default is not dataclasses.MISSING:
        schema["default"] = _default(field.default)
    elif field.default_factory is not dataclasses.MISSING:
        schema["default"] = field.default_factory()
    return schema


def _default(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


def _type_schema(hint: Any, seen: set[str]) -> Any:
    if hint in _PRIMITIVES:
        return _PRIMITIVES[hint]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _full_name(hint) if hint.__name__ in seen else _record_schema(hint, seen=seen)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union) and type(None) in args and len(args) == 2:
        return ["null", _type_schema(next(a for a in args if a is not type(None)), seen)]
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return {"type": "array", "items": _type_schema(args[0], seen)}
    if origin is dict and args[0] is str:
        return {"type": "map", "values": _type_schema(args[1], seen)}
    raise TypeError(f"no Avro type for {hint!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    parsed: Any
    header: bytes
    plain: Turn
    typed: Turn


_SHAPES: dict[type, _Shape] = {}


def _shape(record: type) -> _Shape:
    shape = _SHAPES.get(record)
    if shape is None:
        shape = _SHAPES[record] = _make_shape(record)
    return shape


def _make_shape(record: type) -> _Shape:
    schema = schema_of(record)
    digest = fingerprint(to_parsing_canonical_form(parse_schema(schema)), "CRC-64-AVRO")
    header = _MAGIC + bytes.fromhex(digest)
    return _Shape(parse_schema(schema), header, _plain_record(record), _typed_record(record))


def encode(record: Any) -> bytes:
    """One dataclass of `schemas.records` as a single-object Avro message."""
    shape = _shape(type(record))
    out = io.BytesIO()
    out.write(shape.header)
    fastavro.schemaless_writer(out, shape.parsed, shape.plain(record))
    return out.getvalue()


def decode(record: type[T], message: bytes, *, known: Mapping[bytes, Any] | None = None) -> T:
    """Inverse of `encode`.

    Args:
        record: the class that the topic carries.
        message: magic, fingerprint, body.
        known: parsed schemas of older writers by their 8-byte fingerprint.

    Raises:
        WireError: not this encoding, an unknown writer, or a damaged body.
    """
    shape = _shape(record)
    header, body = message[:10], io.BytesIO(message[10:])
    if header == shape.header:
        writer: Any = shape.parsed
    elif header[:2] == _MAGIC and known and header[2:] in known:
        writer = known[header[2:]]
    else:
        raise WireError(f"message is no {record.__name__}: unknown schema fingerprint {header[2:].hex()!r}")
    try:
        data = fastavro.schemaless_reader(body, writer, shape.parsed)
    except Exception as exc:  # fastavro raises many kinds on damaged bytes
        raise WireError(f"message is a damaged {record.__name__}: {exc}") from exc
    return cast(T, shape.typed(data))


def _plain_of(hint: Any) -> Turn | None:
    """How a value of this type becomes what fastavro writes; None: it is that already."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _plain_record(hint)
    inner, is_tuple = _inner(hint)
    turn = None if inner is None else _plain_of(inner)
    if is_tuple:
        return list if turn is None else lambda value: [turn(v) for v in value]
    if turn is None:
        return None
    if not isinstance(inner, type):
        return lambda value: None if value is None else turn(value)
    name = _full_name(inner)
    return lambda value: None if value is None else (name, turn(value))  # named, else fastavro tries every branch


@cache
def _plain_record(record: type) -> Turn:
    fields = [(name, _plain_of(hint)) for name, hint in _hints(record).items()]
    names = [name for name, _turn in fields]
    turns = [(name, turn) for name, turn in fields if turn is not None]
    get = operator.attrgetter(*names) if len(names) > 1 else lambda value: (getattr(value, names[0]),)

    def plain(value: Any) -> dict[str, Any]:
        data = dict(zip(names, get(value), strict=True))
        for name, turn in turns:
            data[name] = turn(data[name])
        return data

    return plain


def _typed_of(hint: Any) -> Turn | None:
    """How what fastavro read becomes a value of this type; None: it is that already."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _typed_record(hint)
    inner, is_tuple = _inner(hint)
    turn = None if inner is None else _typed_of(inner)
    if is_tuple:
        return tuple if turn is None else lambda value: tuple(turn(v) for v in value)
    return None if turn is None else lambda value: None if value is None else turn(value)


@cache
def _typed_record(record: type) -> Turn:
    turns = [(name, turn) for name, hint in _hints(record).items() if (turn := _typed_of(hint)) is not None]

    def typed(data: Any) -> Any:
        for name, turn in turns:
            data[name] = turn(data[name])
        return record(**data)

    return typed


def _inner(hint: Any) -> tuple[Any, bool]:
    """What an optional or a tuple holds, and whether it is a tuple; None for anything else."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return next(a for a in args if a is not type(None)), False
    return (args[0], True) if origin is tuple else (None, False)


@cache
def _hints(record: type) -> dict[str, Any]:
    hints = typing.get_type_hints(record)
    return {f.name: hints[f.name] for f in dataclasses.fields(record)}
