"""What a request gives a route's function, as its parameters say.

FastAPI reads the parameters, and documents and validates them; here they are taken out of a request. FastAPI's own way
there is made for more than these routes ask for (dependencies of dependencies, on threads; cookies, forms; stacks of
what is to be closed) and costs several times what the rest of a call does.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

BODY_LIMIT = 16 << 20
"""Bytes of a body that is JSON. What is streamed is no argument."""
Faults = list[dict[str, Any]]
"""What pydantic found, each with its place in the request."""
_BODY = ("body",)


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter of a route's function.

    Attributes:
        name: Its name there.
        key: The name in the request.
        place: Where a fault in it is.
        validate: FastAPI's; returns the value, and the faults at the place given as ``loc``.
        required: Whether there must be one.
        default: What stands in for one that is not there.
    """

    name: str
    key: str
    place: tuple[str, ...]
    validate: Callable[..., tuple[Any, Any]]
    required: bool
    default: Any

    def take(self, value: Any, values: dict[str, Any], faults: Faults) -> None:
        """Add the value, or what is wrong with it."""
        if value is None:
            if self.required:
                faults.append({"type": "missing", "loc": self.place, "msg": "Field required"})
            values[self.name] = self.default
            return
        values[self.name], found = self.validate(value, {}, loc=self.place)
        if found:
            faults += found


class Arguments:
    """Takes the arguments of a route's function out of a request."""

    def __init__(self, route: APIRoute) -> None:
        """Look at a route's parameters."""
        declared = route.dependant
        if declared.cookie_params or len(declared.body_params) > 1:
            raise TypeError(f"{route.path}: parameters come by path, query, header, or as the body")
        self._path = [_parameter(field, "path") for field in declared.path_params]
        self._query = [_parameter(field, "query") for field in declared.query_params]
        self._headers = [_parameter(field, "header") for field in declared.header_params]
        self._body = [_parameter(field, "body") for field in declared.body_params]
        self._request = declared.request_param_name
        self._provided: list[tuple[Any, Any]] = [(d.name, d.call) for d in declared.dependencies]

    async def of(self, request: Request) -> dict[str, Any]:
        """Return the arguments by name.

        Raises:
            RequestValidationError: One is missing, or not as it should be.
            HTTPException: The body is too large, or can't be read.
        """
        values: dict[str, Any] = {}
        faults: Faults = []
        body = await _body(request) if self._body else None
        for name, provide in self._provided:
            values[name] = provide(request)
        if self._request:
            values[self._request] = request
        scope = request.scope
        _take(self._path, scope["path_params"], values, faults)
        if self._query:
            query = scope["query_string"].decode("latin-1")
            given = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
            _take(self._query, given, values, faults)
        if self._headers:
            headers = reversed(scope["headers"])  # the first of several counts
            given = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
            _take(self._headers, given, values, faults)
        for parameter in self._body:
            parameter.take(body, values, faults)
        if faults:
            raise RequestValidationError(faults)
        return values


def _parameter(field: Any, part: str) -> _Parameter:
    key = field.alias.lower() if part == "header" else field.alias
    required = field.field_info.is_required()
    return _Parameter(
        name=field.name,
        key=key,
        place=_BODY if part == "body" else (part, field.alias),
        validate=field.validate,
        required=required,
        default=None if required else field.default,
    )


def _take(
    parameters: list[_Parameter], given: Mapping[str, Any], values: dict[str, Any], faults: Faults
) -> None:
    for parameter in parameters:
        parameter.take(given.get(parameter.key), values, faults)


async def _body(request: Request) -> Any:
    """Return a body decoded from JSON; None if there is none.

    Raises:
        RequestValidationError: It is not JSON.
        HTTPException: It is too large (413), or not even text (400).
    """
    content = await _content(request)
    if not content:
        return None
    if not _is_json(request):
        return content  # no parameter is one of bytes: validation says what was to come
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        fault = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error"}
        raise RequestValidationError([fault]) from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400) from error


async def _content(request: Request) -> bytes:
    parts = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400)  # that nobody will read
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_LIMIT:
            raise HTTPException(413, f"a body has at most {BODY_LIMIT} bytes; register in parts")
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def header(request: Request, name: bytes) -> str | None:
    """Return a header, the first if there are several; its name in lower case."""
    for given, value in request.scope["headers"]:
        if given == name:
            text: str = value.decode("latin-1")
            return text
    return None


def _is_json(request: Request) -> bool:
    media_type = header(request, b"content-type")
    if media_type in {"application/json", "", None}:  # the original's clients may leave it out
        return True
    message = Message()
    message["content-type"] = media_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )
