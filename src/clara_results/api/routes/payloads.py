"""``/api/payloads``: files in and out."""

import asyncio
import base64
import binascii
import os
import re
from functools import partial
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep, answer
from clara_results.api.problems import Responses, documented
from clara_results.domain import names
from clara_results.errors import ClaraResultsError, Gone, InvalidInput, NotFound
from clara_results.payloads import Upload
from clara_results.service.engine import Engine
from clara_results.store import retention as store
from clara_results.wire.payloads import Payload, PayloadFile

router = APIRouter(tags=["Payloads"], route_class=GuardedRoute)
PIECE = 1 << 20
"""Bytes gathered before they are written: a thread's hop costs more than the copy."""
FILE = "/api/payloads/{payload_id}/files/{uri:path}"
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_AGAIN: Responses = {
    200: {"model": PayloadFile, "description": "The same content is there already"}
}
_CONTENT: Responses = {200: {"content": _BINARY}}


@router.put(FILE, status_code=201, response_model=PayloadFile, responses=_AGAIN | documented(409, 507), openapi_extra={"requestBody": {"required": False, "content": _BINARY}})  # fmt: skip
async def put(
    request: Request,
    engine: EngineDep,
    payload_id: str,
    uri: str,
    content_digest: Annotated[str | None, Header(description="RFC 9530, sha-256")] = None,
    content_length: Annotated[int, Header(ge=0, include_in_schema=False)] = 0,
) -> Response:
    """Upload a file: written aside, checked, then put in place in one step."""
    wanted = _sha256(content_digest)
    receive = partial(engine.payloads.receive, payload_id, uri, content_length)
    with await asyncio.to_thread(receive) as upload:
        await _take(request, upload)
        if wanted is not None and upload.sha256 != wanted:
            raise InvalidInput(
                f"{upload.size} bytes came whose SHA-256 is not that of Content-Digest; send them again",
                code="digest-mismatch",
            )
        new = await _put_in_place(engine, payload_id, uri, upload)
        sha256 = upload.sha256
    there = await asyncio.to_thread(engine.payloads.stat, payload_id, uri)
    body = PayloadFile(uri=uri, size=there.size, modified=there.modified)
    return answer(PayloadFile, body, 201 if new else 200, {"ETag": f'"{sha256}"'})


@router.head(FILE, response_class=FileResponse, responses=_CONTENT | documented(404, 410))
@router.get(FILE, response_class=FileResponse, responses=_CONTENT | documented(404, 410))
async def get(request: Request, engine: EngineDep, payload_id: str, uri: str) -> Response:
    """Download a file (``Range`` allowed)."""
    try:
        file = await asyncio.to_thread(engine.payloads.open, payload_id, uri)
    except NotFound as error:
        raise await _gone(engine, payload_id, error) from error
    try:
        known = await engine.read(partial(store.upload, payload_id=payload_id, uri=uri))
        status = os.fstat(file.fileno())
        tag = known.sha256 if known is not None else f"{status.st_size:x}-{status.st_mtime_ns:x}"
        _look_at_range(request, status.st_size)
    except BaseException:
        file.close()
        raise
    return _Download(file, status, f'"{tag}"')


class _Download(FileResponse):
    """An open file, closed once it is sent or the client has left."""

    def __init__(self, file: BinaryIO, status: os.stat_result, tag: str) -> None:
        # The very file that was opened, not its name again.
        path = f"/proc/self/fd/{file.fileno()}"
        media_type = "application/octet-stream"
        super().__init__(path, stat_result=status, media_type=media_type, headers={"ETag": tag})
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)


def _look_at_range(request: Request, size: int) -> None:
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


@router.get("/api/payloads/{payload_id}", response_model=Payload, responses=documented(404, 410))
async def listing(engine: EngineDep, payload_id: str) -> Response:
    """List a payload's files by URI."""
    try:
        files = await asyncio.to_thread(engine.payloads.files, payload_id)
    except NotFound as error:
        raise await _gone(engine, payload_id, error) from error
    shown = [PayloadFile(uri=f.uri, size=f.size, modified=f.modified) for f in files]
    return answer(Payload, Payload(payload_id=payload_id, files=shown))


@router.delete("/api/payloads/{payload_id}", status_code=204, responses=documented(404, 409))
async def delete(engine: EngineDep, payload_id: str) -> Response:
    """Remove a payload that no unfinished task needs."""
    name = names.payload_id(payload_id)
    await asyncio.to_thread(engine.payloads.require, name)
    await engine.write(partial(engine.retention.mark, payload_id=name))
    aside = await engine.write(partial(engine.retention.take, payload_id=name))
    await asyncio.to_thread(engine.payloads.clear, aside)
    return Response(status_code=204)


async def _put_in_place(engine: Engine, payload_id: str, uri: str, upload: Upload) -> bool:
    """Commit an upload so that retention knows of it whenever it is there; say whether it is new."""
    look = partial(store.upload, payload_id=payload_id, uri=uri)
    known = await engine.read(look)
    if known is None and await asyncio.to_thread(engine.payloads.holds, payload_id, uri):
        return await asyncio.to_thread(upload.commit)  # the platform's file, and it stays that
    note = partial(
        engine.retention.note_upload,
        payload_id=payload_id,
        uri=uri,
        size=upload.size,
        sha256=upload.sha256,
    )
    await engine.write(partial(note, in_place=False))
    new = await asyncio.to_thread(upload.commit)
    known = await engine.read(look)
    if known is None or (new and known.sha256 != upload.sha256):
        await engine.write(partial(note, in_place=True))
    return new


async def _gone(engine: Engine, payload_id: str, error: NotFound) -> ClaraResultsError:
    """Return what to say of something that is not there: that it was removed, if so."""
    removed_at = await engine.read(partial(store.removed_at, payload_id=payload_id))
    if removed_at is None:
        return error
    return Gone(
        f"{error}: files of payload {payload_id} were removed on {removed_at:%Y-%m-%d at %H:%M} UTC",
        code="payload-gone",
    )


async def _take(request: Request, upload: Upload) -> None:
    gathered = bytearray()
    async for chunk in request.stream():
        gathered += chunk
        if len(gathered) >= PIECE:
            await asyncio.to_thread(upload.write, bytes(gathered))
            gathered.clear()
    await asyncio.to_thread(upload.write, bytes(gathered))


def _sha256(header: str | None) -> str | None:
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
