"""Errors as ``application/problem+json`` (RFC 9457). The one place where an error gets its HTTP status."""

import http
import logging
from collections.abc import Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from clara_results.errors import (
    ClaraResultsError,
    Conflict,
    FieldError,
    Gone,
    InvalidInput,
    NotFound,
    ServiceUnavailable,
    Unprocessable,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "5"
_STATUS: tuple[tuple[type[ClaraResultsError], int], ...] = (
    (InvalidInput, 422),
    (Unprocessable, 422),
    (NotFound, 404),
    (Conflict, 409),
    (Gone, 410),
    (ServiceUnavailable, 503),
)
_UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
"""Types of pydantic's faults whose place ends with a name that the caller made up."""
_BY_CODE = {"storage-full": 507}
_log = logging.getLogger(__name__)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def problem(
    status: int,
    code: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    """Return a problem as an answer."""
    body: dict[str, Any] = {
        "type": f"urn:clara-results:error:{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors:
        body["errors"] = [{"field": e.field, "message": e.message} for e in errors]
    if status in {503, 507}:
        headers = {"Retry-After": RETRY_AFTER} | (headers or {})
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def status_of(error: ClaraResultsError) -> int:
    """Return the HTTP status of an error of ours."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


Responses = dict[int | str, dict[str, Any]]
"""Answers of a route other than its first, for the OpenAPI document."""


def documented(*statuses: int) -> Responses:
    """Return these statuses' problems for the OpenAPI document."""
    return {
        status: {
            "description": http.HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": SCHEMA}},
        }
        for status in (*statuses, 401, 403, 422, 503)
    }


def install(app: FastAPI) -> None:
    """Have an app answer every error with a problem."""
    app.add_exception_handler(ClaraResultsError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)


def _ours(_request: Request, error: Exception) -> Response:
    ours = cast("ClaraResultsError", error)
    return problem(status_of(ours), ours.code, str(ours), ours.errors)


def _invalid(_request: Request, error: Exception) -> Response:
    # Only where and why: the value itself may be a patient's.
    faults = [
        FieldError(_place(fault["loc"], unknown=fault["type"] in _UNKNOWN), str(fault["msg"]))
        for fault in cast("RequestValidationError", error).errors()
    ]
    detail = "; ".join(f"{fault.field}: {fault.message}" for fault in faults[:5])
    return problem(422, "invalid-request", detail or "the request can't be read", faults)


def _place(location: Sequence[str | int], *, unknown: bool) -> str:
    if unknown and not str(location[-1]).isidentifier():
        location = [
            *location[:-1],
            "(another)",
        ]  # a misspelt field's name helps; other text could be anything
    head, *rest = location
    parts = rest if head in {"body", "query", "path", "header"} and rest else location
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _http(_request: Request, error: Exception) -> Response:
    plain = cast("HTTPException", error)
    codes = {
        404: "not-found",
        405: "method-not-allowed",
        413: "too-large",
        416: "range-not-satisfiable",
    }
    if plain.status_code == 400:  # the framework's, for a body that is not even text
        return problem(422, "invalid-request", "the body can't be read: is it JSON in UTF-8?")
    return problem(
        plain.status_code,
        codes.get(plain.status_code, "http-error"),
        str(plain.detail),
        headers=dict(plain.headers or {}),
    )


def _unforeseen(request: Request, error: Exception) -> Response:
    route = getattr(request.scope.get("route"), "path", "?")
    _log.error("%s %s failed", request.method, route, exc_info=error)
    return problem(500, "internal-error", "the service met a fault of its own; its log says more")
