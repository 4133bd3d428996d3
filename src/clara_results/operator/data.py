"""``--data``: a JSON array of which each element makes one task."""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from clara_results.errors import InvalidInput

EXAMPLE = """--data '["Orthanc","DCM4CHEE"]'"""
SIZE_LIMIT = 1 << 20
"""Bytes of JSON that the service takes."""
DEPTH_LIMIT = 64
"""Arrays and objects within each other (RFC 8259 section 9 lets a parser set one)."""

_SHOWN = 60
_STRING_OR = r'"(?:[^"\\]|\\.)*"|'
_ESCAPED = re.compile(r"\\([\"'\\])")
_KINDS = {dict: "an object", str: "a string", bool: "true or false", type(None): "null"}


class _Fault(Exception):
    """What is wrong, and at which character."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


def parse(text: str) -> list[Any]:
    r"""Read ``--data``: strict JSON (RFC 8259), an array, not empty.

    Pipeline definitions quote for a shell that is not there: ``[\"Orthanc\"]`` and ``"[\"Orthanc\"]"``
    arrive with their quoting. A text that is no JSON array but becomes one when a level of quoting is taken off
    is taken for that.

    Returns:
        The elements in their order. Objects have their names sorted: order does not matter in them, and so the
        same data always is the same text.

    Raises:
        InvalidInput: It is not such an array; the message shows the place and a right example. JSON that readers
            understand differently is refused too: a name twice in an object, a number beyond a double's range,
            half a surrogate pair.
    """
    try:
        return _array(text)
    except _Fault as fault:
        for unquoted in _unquoted(text):
            try:
                return _array(unquoted)
            except _Fault:
                continue  # the text as it was given is what the message is about
        raise InvalidInput(_explained(text, fault), code="invalid-data") from None


def destination(parameters: str | None) -> str | None:
    """Return what is printed of a task's parameters: a text as it is, as it names where the task goes.

    Other data may hold anything, a patient's name too, and what is printed ends up in logs.
    """
    return parameters if parameters is None or parameters.startswith('"') else "(data)"


def canonical(value: Any) -> str:
    """Return parsed data as JSON without insignificant space."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _unquoted(text: str) -> Iterator[str]:
    bare = text.strip()
    forms = [bare]
    if len(bare) >= 2 and bare[0] == bare[-1] and bare[0] in "\"'":
        forms.append(bare[1:-1])
    for form in forms:
        yield form
        yield _ESCAPED.sub(r"\1", form)


def _array(text: str) -> list[Any]:
    value = _parsed(text)
    if not isinstance(value, list):
        kind = _KINDS.get(type(value), "a number")
        raise _Fault(f"it is {kind}, not an array", len(text) - len(text.lstrip()))
    if not value:
        raise _Fault("the array is empty: without --data there is one task without parameters")
    _check_depth(value)
    try:
        size = len(canonical(value).encode())
    except UnicodeEncodeError:
        raise _Fault("half a surrogate pair is no character", _surrogate(text)) from None
    if size > SIZE_LIMIT:
        raise _Fault(f"it has {size} bytes; {SIZE_LIMIT} is the most")
    return value


def _parsed(text: str) -> Any:
    def constant(name: str) -> NoReturn:
        raise _Fault(f"{name} is not JSON", _find(text, name))

    def number(literal: str) -> float:
        value = float(literal)
        if value in (float("inf"), float("-inf")):
            raise _Fault(f"{literal} is beyond a double's range", _find(text, literal))
        return value

    try:
        return json.loads(
            text, parse_constant=constant, parse_float=number, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        raise _Fault(error.msg, error.pos) from None
    except RecursionError:
        raise _Fault(f"more than {DEPTH_LIMIT} levels deep") from None
    except ValueError as error:  # an integer with more digits than Python reads
        raise _Fault(str(error).split(";")[0]) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _Fault(f"the name {name!r} comes twice in one object")
    return dict(sorted(pairs))


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH_LIMIT + 1:
            raise _Fault(f"more than {DEPTH_LIMIT} levels deep")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, list):
                inner += item
            elif isinstance(item, dict):
                inner += item.values()
        level = inner


def _find(text: str, literal: str) -> int:
    """Return where a literal stands outside of strings."""
    found = re.finditer(_STRING_OR + f"({re.escape(literal)})", text, re.DOTALL)
    return next((match.start(1) for match in found if match[1]), 0)


def _surrogate(text: str) -> int:
    found = re.search(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]", text)
    return found.start() if found else 0


def _explained(text: str, fault: _Fault) -> str:
    before = text[: fault.position]
    line = before.count("\n") + 1
    column = fault.position - (before.rfind("\n") + 1)
    whole = (text.splitlines() or [""])[line - 1 : line] or [""]
    start = max(0, column - _SHOWN // 2)
    shown = "".join(c if c.isprintable() else "·" for c in whole[0][start : start + _SHOWN])
    return (
        f"--data: {fault} (line {line}, column {column + 1})\n"
        f"  {shown}\n  {' ' * (column - start)}^\n"
        f"a JSON array is wanted, such as {EXAMPLE}"
    )
