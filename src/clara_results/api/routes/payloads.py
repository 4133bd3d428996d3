"""``/api/payloads``: files in and out."""

import asyncio
import base64
import binascii
import os
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep, answer
from clara_results.api.problems import Responses, documented
from clara_results.domain import names
from clara_results.errors import Conflict, InvalidInput
from clara_results.payloads import Upload
from clara_results.store import destinations as upload_store
from clara_results.store import tasks as task_store
from clara_results.store.database import Transaction
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


@router.put(FILE, status_code=201, response_model=PayloadFile, responses=_AGAIN | documented(409, 507), openapi_extra={"requestBody": {"required": True, "content": _BINARY}})  # fmt: skip
async def put(
    request: Request,
    engine: EngineDep,
    payload_id: str,
    uri: str,
    content_digest: Annotated[str | None, Header(description="RFC 9530, sha-256")] = None,
) -> Response:
    """Upload a file: written aside, checked, then put in place in one step."""
    wanted = _sha256(content_digest)
    with await asyncio.to_thread(engine.payloads.receive, payload_id, uri) as upload:
        await _take(request, upload)
        if wanted is not None and upload.sha256 != wanted:
            raise InvalidInput(
                f"{upload.size} bytes came whose SHA-256 is not that of Content-Digest; send them again",
                code="digest-mismatch",
            )
        new = await asyncio.to_thread(upload.commit)
        size, sha256 = upload.size, upload.sha256
    values = {
        "payload_id": payload_id,
        "uri": uri,
        "size": size,
        "sha256": sha256,
        "created_at": engine.clock.now(),
    }
    await engine.write(lambda tx: upload_store.insert_upload(tx.connection, values))
    there = await asyncio.to_thread(engine.payloads.stat, payload_id, uri)
    body = PayloadFile(uri=uri, size=there.size, modified=there.modified)
    return answer(PayloadFile, body, 201 if new else 200, {"ETag": f'"{sha256}"'})


@router.api_route(FILE, methods=["GET", "HEAD"], response_class=FileResponse, responses=_CONTENT | documented(404))  # fmt: skip
async def get(engine: EngineDep, payload_id: str, uri: str) -> Response:
    """Download a file (``Range`` allowed)."""
    file = await asyncio.to_thread(engine.payloads.open, payload_id, uri)
    status = os.fstat(file.fileno())
    known = await engine.read(lambda connection: upload_store.upload(connection, payload_id, uri))
    tag = known.sha256 if known is not None else f"{status.st_size:x}-{status.st_mtime_ns:x}"
    return FileResponse(
        f"/proc/self/fd/{file.fileno()}",  # the very file that was opened, not its name again
        stat_result=status,
        media_type="application/octet-stream",
        headers={"ETag": f'"{tag}"'},
        background=BackgroundTask(file.close),
    )


@router.get("/api/payloads/{payload_id}", response_model=Payload, responses=documented(404))
async def listing(engine: EngineDep, payload_id: str) -> Response:
    """List a payload's files by URI."""
    files = await asyncio.to_thread(engine.payloads.files, payload_id)
    shown = [PayloadFile(uri=f.uri, size=f.size, modified=f.modified) for f in files]
    return answer(Payload, Payload(payload_id=payload_id, files=shown))


@router.delete("/api/payloads/{payload_id}", status_code=204, responses=documented(404, 409))
async def delete(engine: EngineDep, payload_id: str) -> Response:
    """Remove a payload that no unfinished task needs."""
    name = names.payload_id(payload_id)

    def remove(transaction: Transaction) -> None:
        # Within the transaction: no task can be registered on it between the look and the removal.
        if task_store.payload_in_use(transaction.connection, name):
            raise Conflict(
                f"unfinished tasks need payload {name}; cancel them first", code="payload-in-use"
            )
        upload_store.delete_uploads(transaction.connection, name)
        engine.payloads.delete(name)

    await engine.write(remove)
    return Response(status_code=204)


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
