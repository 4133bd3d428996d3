"""JSON for the wire dataclasses: camelCase names, RFC 3339 times, nothing else."""

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")


def camel(name: str) -> str:
    """Return a Python field's name as JSON spells it: ``job_id`` → ``jobId``."""
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


_LENIENT = {"alias_generator": camel, "populate_by_name": False, "extra": "ignore"}
_STRICT = _LENIENT | {"extra": "forbid"}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def body(*, strict: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class a wire body: a frozen dataclass that pydantic knows under camelCase names.

    Args:
        strict: Only our clients send it: a misspelt field is an error, not a silence. Else what it does not know
            is passed over, as the original's clients may send more than we need.
    """

    def make(kind: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True, slots=True, kw_only=True)(kind)
        made.__pydantic_config__ = _STRICT if strict else _LENIENT
        return cast("type[T]", made)

    return make


def timestamp(moment: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC with microseconds: ``2026-11-22T08:30:00.000000Z``."""
    # not strftime: its %Y gives a year before 1000 fewer than four digits
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def to_json(body: object) -> bytes:
    """Return a wire dataclass (or a list of them) as JSON; fields that are None are left out."""
    return json.dumps(_plain(body), ensure_ascii=False, separators=(",", ":")).encode()


@functools.cache
def _names(kind: Any) -> list[tuple[str, str]]:
    return [(f.name, camel(f.name)) for f in dataclasses.fields(kind)]


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            key: _plain(item)
            for name, key in _names(type(value))
            if (item := getattr(value, name)) is not None
        }
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def from_json(kind: type[T], value: Any) -> T:
    """Build a wire dataclass from decoded JSON; names that it does not have are passed over.

    Raises:
        TypeError: A field without a default is missing, or a value is not of its field's type.
        ValueError: A value is no time, or none of an enumeration's.
    """
    return cast("T", _typed(kind, value))


@functools.cache
def _fields(kind: type) -> list[tuple[str, str, Any]]:
    hints = typing.get_type_hints(kind)
    return [(f.name, camel(f.name), hints[f.name]) for f in dataclasses.fields(kind)]


def _typed(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return value if value is None or len(options) != 1 else _typed(options[0], value)
    if origin in (list, tuple):
        _expect(list, value)
        return [_typed(typing.get_args(kind)[0], item) for item in value]
    if origin is dict:
        _expect(dict, value)
        return {key: _typed(typing.get_args(kind)[1], item) for key, item in value.items()}
    if kind is Any:
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        _expect(dict, value)
        return kind(
            **{name: _typed(hint, value[key]) for name, key, hint in _fields(kind) if key in value}
        )
    if issubclass(kind, datetime):
        return datetime.fromisoformat(value)
    if issubclass(kind, enum.Enum):
        return kind(value)
    _expect((int, float) if kind is float else kind, value)
    return value


def _expect(kind: type | tuple[type, ...], value: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} is not what belongs here")
