"""Named tuples as JSON objects and back, by their annotations: the form that snapshots and records have on disk.

Facts are named tuples because those cost next to nothing to define and to make, which is what ``scan`` needs. msgspec
alone would write them as bare arrays. So a struct of the same shape is derived from each one's annotations, msgspec
checks a file against that, and the tuples are built from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, reduce
from operator import or_
from types import EllipsisType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

T = TypeVar("T")


def plain(value: object) -> object:
    """*value* with each named tuple in it as a dict of its fields, and every other tuple as a list."""
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        items = [plain(item) for item in value]
        return items if names is None else dict(zip(names, items, strict=True))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def to_json(value: object) -> bytes:
    """*value* as JSON; bytes in it as base64."""
    return msgspec.json.encode(plain(value))


def from_json(raw: bytes, wanted: type[T]) -> T:
    """The value of that named tuple's type that JSON holds; unknown keys are passed over.

    :raise ValueError: if it is no JSON, or of another shape, or the type refuses it.
    """
    kind: Any = wanted
    try:
        built: T = _build(kind, msgspec.json.decode(raw, type=_shape(kind)))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return built


class _Field(NamedTuple):
    name: str
    kind: Any


@cache
def _fields(kind: Any) -> tuple[_Field, ...] | None:
    """The fields of a named tuple (the parameters of a generic one filled in), None for every other type."""
    tuple_type = get_origin(kind) or kind
    if not isinstance(tuple_type, type) or not hasattr(tuple_type, "_fields"):
        return None
    hints = get_type_hints(tuple_type)
    filled = ((name, hints[name]) for name in tuple_type._fields)
    return tuple(_Field(name, hint[get_args(kind)] if _is_open(hint) else hint) for name, hint in filled)


def _is_open(hint: Any) -> bool:
    return bool(getattr(hint, "__parameters__", ()))


@cache
def _shape(kind: Any) -> Any:
    """The type for msgspec: *kind* with a struct in place of each named tuple."""
    fields = _fields(kind)
    if fields is not None:
        tuple_type = get_origin(kind) or kind
        defaults = tuple_type._field_defaults
        return msgspec.defstruct(
            tuple_type.__name__,
            [
                (name, _shape(hint), defaults[name]) if name in defaults else (name, _shape(hint))
                for name, hint in fields
            ],
        )
    parts = tuple(part if isinstance(part, EllipsisType) else _shape(part) for part in get_args(kind))
    if not parts:
        return kind
    return reduce(or_, parts) if _is_union(kind) else get_origin(kind)[parts]


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _build(kind: Any, value: Any) -> Any:
    """The value of type *kind* from one of the type ``_shape(kind)``."""
    fields = _fields(kind)
    if fields is not None:
        tuple_type = get_origin(kind) or kind
        return tuple_type(*(_build(hint, getattr(value, name)) for name, hint in fields))
    if value is None or _shape(kind) == kind:
        return value
    parts = get_args(kind)
    if _is_union(kind):
        return _build(next(part for part in parts if part is not type(None)), value)
    if isinstance(value, dict):
        return {key: _build(parts[1], item) for key, item in value.items()}
    if parts[-1] is Ellipsis:
        return tuple(_build(parts[0], item) for item in value)
    return tuple(_build(part, item) for part, item in zip(parts, value, strict=True))
