"""Files that come with a call, and that go out as its answer."""

import asyncio
import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from clara_results.errors import InvalidInput
from clara_results.payloads import Upload

BINARY: dict[str, Any] = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
}
"""A body that is a file, for the OpenAPI document."""
PIECE = 1 << 20
"""Bytes gathered before they are written: a thread's hop costs more than the copy."""


class Download(FileResponse):
    """An open file, closed once it is sent or the client has left."""

    def __init__(
        self,
        file: BinaryIO,
        status: os.stat_result,
        headers: Mapping[str, str],
        media_type: str = "application/octet-stream",
    ) -> None:
        # The very file that was opened, not its name again.
        path = f"/proc/self/fd/{file.fileno()}"
        super().__init__(path, stat_result=status, media_type=media_type, headers=headers)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)


def look_at_range(request: Request, size: int) -> None:
    """Pass over a Range that is none, or several; refuse one past the end (RFC 9110 14.2, 15.5.17).

    Raises:
        HTTPException: 416.
    """
    header = request.headers.get("range")
    if header is None:
        return
    asked = _RANGE.fullmatch(header.strip())
    if asked is None or (asked[2] and int(asked[2]) < int(asked[1])):
        request.scope["headers"] = [h for h in request.scope["headers"] if h[0] != b"range"]
    elif "if-range" not in request.headers and (
        int(asked[1]) >= size if asked[1] else int(asked[3]) == 0 or not size
    ):
        raise HTTPException(
            416, f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )


async def take(request: Request, upload: Upload) -> None:
    """Write a call's body to an upload."""
    gathered = bytearray()
    async for chunk in request.stream():
        gathered += chunk
        if len(gathered) >= PIECE:
            await asyncio.to_thread(upload.write, bytes(gathered))
            gathered.clear()
    await asyncio.to_thread(upload.write, bytes(gathered))


def content_digest_of(header: str | None) -> str | None:
    """Return the hex digest in a Content-Digest header (RFC 9530 2), if it holds one."""
    for part in (header or "").split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "sha-256":
            try:
                digest = base64.b64decode(value.strip(":"), validate=True)
            except binascii.Error:
                digest = b""
            if len(digest) != 32 or not value.startswith(":") or not value.endswith(":"):
                raise InvalidInput(
                    "Content-Digest: give sha-256=:BASE64: (RFC 9530)", code="invalid-digest"
                )
            return digest.hex()
    return None
