"""What routes have in common: the engine, and how bodies go out."""

import functools
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from pydantic import TypeAdapter

from clara_results.service.engine import Engine


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


EngineDep = Annotated[Engine, Depends(_engine)]
"""The engine of this process."""
InstanceHeader = Annotated[
    str | None,
    Header(alias="Clara-Results-Instance", max_length=255, description="the agent process"),
]
UserAgentHeader = Annotated[str | None, Header(alias="User-Agent", include_in_schema=False)]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def answer(
    kind: Any, body: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a wire body as JSON, without a second validation of what is ours.

    Args:
        kind: Its type: a wire dataclass, or a list of one.
        body: What to send.
        status: HTTP status.
        headers: More headers.
    """
    content = _adapter(kind).dump_json(body, by_alias=True)
    return Response(content, status, headers, media_type="application/json")
