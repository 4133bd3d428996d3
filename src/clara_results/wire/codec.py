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
def _names(kind: Any) -> list[tuple[str, str]] | None:
    """Return a dataclass's fields and what JSON calls them; None: it is none."""
    if not dataclasses.is_dataclass(kind):
        return None
    return [(f.name, camel(f.name)) for f in dataclasses.fields(kind)]


def _plain(value: object) -> object:
    kind: Any = type(value)
    if kind is str or kind is int:
        return value
    if kind is list or kind is tuple:
        return [_plain(item) for item in value]  # type: ignore[attr-defined]
    names = _names(kind)
    if names is not None:
        return {
            key: _plain(item) for name, key in names if (item := getattr(value, name)) is not None
        }
    return timestamp(value) if isinstance(value, datetime) else value


def from_json(kind: type[T], value: Any) -> T:
    """Build a wire dataclass from decoded JSON; names that it does not have are passed over.

    Raises:
        TypeError: A field without a default is missing, or a value is not of its field's type.
        ValueError: A value is no time, or none of an enumeration's.
    """
    return cast("T", _reader(cast("Any", kind))(value))


Reader = Callable[[Any], Any]


@functools.cache
def _reader(kind: Any) -> Reader:
    """Return what builds a value of a type from decoded JSON: made once, since it takes longer than to run it."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if len(options) != 1:
            return lambda value: value
        one = _reader(options[0])
        return lambda value: None if value is None else one(value)
    if origin in (list, tuple):
        return _list_reader(_reader(typing.get_args(kind)[0]))
    if origin is dict:
        return _dict_reader(_reader(typing.get_args(kind)[1]))
    if kind is Any:
        return lambda value: value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _body_reader(kind)
    if issubclass(kind, datetime):
        return datetime.fromisoformat
    if issubclass(kind, enum.Enum):
        return cast("Reader", kind)
    return _plain_reader((int, float) if kind is float else kind)


def _list_reader(item: Reader) -> Reader:
    def read(value: Any) -> list[Any]:
        _expect(list, value)
        return [item(each) for each in value]

    return read


def _dict_reader(item: Reader) -> Reader:
    def read(value: Any) -> dict[str, Any]:
        _expect(dict, value)
        return {key: item(each) for key, each in value.items()}

    return read


def _body_reader(kind: type) -> Reader:
    hints = typing.get_type_hints(kind)
    fields = [(f.name, camel(f.name), _reader(hints[f.name])) for f in dataclasses.fields(kind)]

    def read(value: Any) -> Any:
        _expect(dict, value)
        return kind(**{name: item(value[key]) for name, key, item in fields if key in value})

    return read


def _plain_reader(kind: type | tuple[type, ...]) -> Reader:
    def read(value: Any) -> Any:
        _expect(kind, value)
        return value

    return read


def _expect(kind: type | tuple[type, ...], value: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} is not what belongs here")
