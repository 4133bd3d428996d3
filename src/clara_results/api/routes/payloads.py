"""``/api/payloads``: files in and out."""

import asyncio
import os
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import FileResponse

from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep, answer
from clara_results.api.files import BINARY, Download, content_digest_of, look_at_range, take
from clara_results.api.problems import Responses, documented
from clara_results.domain import names
from clara_results.errors import ClaraResultsError, Gone, InvalidInput, NotFound
from clara_results.payloads import Upload
from clara_results.service.engine import Engine
from clara_results.store import retention as store
from clara_results.wire.payloads import Payload, PayloadFile

router = APIRouter(tags=["Payloads"], route_class=GuardedRoute)
FILE = "/api/payloads/{payload_id}/files/{uri:path}"
_AGAIN: Responses = {
    200: {"model": PayloadFile, "description": "The same content is there already"}
}
_CONTENT: Responses = {200: {"content": BINARY}}


@router.put(FILE, status_code=201, response_model=PayloadFile, responses=_AGAIN | documented(409, 507), openapi_extra={"requestBody": {"required": False, "content": BINARY}})  # fmt: skip
async def put(
    request: Request,
    engine: EngineDep,
    payload_id: str,
    uri: str,
    content_digest: Annotated[str | None, Header(description="RFC 9530, sha-256")] = None,
    content_length: Annotated[int, Header(ge=0, include_in_schema=False)] = 0,
) -> Response:
    """Upload a file: written aside, checked, then put in place in one step."""
    wanted = content_digest_of(content_digest)
    receive = partial(engine.payloads.receive, payload_id, uri, content_length)
    with await asyncio.to_thread(receive) as upload:
        await take(request, upload)
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
        look_at_range(request, status.st_size)
    except BaseException:
        file.close()
        raise
    return Download(file, status, {"ETag": f'"{tag}"'})


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
