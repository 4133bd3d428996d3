"""``/api/datasets``: what the viewer shows; and under a task's lease how an agent publishes it."""

import asyncio
import os
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse

from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep, answer
from clara_results.api.files import BINARY, Download, look_at_range, take
from clara_results.api.problems import Responses, documented
from clara_results.domain import names
from clara_results.errors import NotFound
from clara_results.service.datasets import file_missing
from clara_results.wire.datasets import Dataset, DatasetFile, DatasetPage, Publication

router = APIRouter(tags=["Datasets"], route_class=GuardedRoute)
MADE = "/api/tasks/{task_id}/datasets/{dataset_id}"
ONE = "/api/datasets/{dataset_id}"
FILE = ONE + "/files/{uri:path}"
PAGE_LIMIT = 1000
FOR_EVER = "private, max-age=31536000, immutable"
"""A file's URI bears its digest: a browser need never ask again."""
_MEDIA_TYPES = {".gz": "application/gzip", ".png": "image/png"}
_AGAIN: Responses = {200: {"description": "It is there already"}}
_REPLACED: Responses = {200: {"model": Dataset, "description": "It was published before"}}
_CONTENT: Responses = {200: {"content": BINARY}}


@router.put(MADE + "/files/{uri:path}", status_code=201, response_model=DatasetFile, responses=_AGAIN | documented(404, 409, 507), openapi_extra={"requestBody": {"required": False, "content": BINARY}})  # fmt: skip
async def put(
    request: Request,
    engine: EngineDep,
    task_id: UUID,
    dataset_id: str,
    uri: str,
    lease_token: Annotated[str, Header(alias="Clara-Results-Lease", max_length=255)],
    content_length: Annotated[int, Header(ge=0, include_in_schema=False)] = 0,
) -> Response:
    """Upload a file of a dataset to ``KIND/DIGEST/NAME``, under the task's lease; nobody sees it yet."""
    receive = partial(engine.datasets.files.receive, dataset_id, uri, content_length)
    with await asyncio.to_thread(receive) as upload:
        await take(request, upload)
        file = DatasetFile(uri=uri, size=upload.size, sha256=upload.sha256)
        note = partial(
            engine.datasets.note_file, dataset_id=dataset_id, token=lease_token, file=file
        )
        await engine.write(lambda tx: note(tx, str(task_id)))
        new = await asyncio.to_thread(upload.commit)
    return answer(DatasetFile, file, 201 if new else 200)


@router.put(MADE, status_code=201, response_model=Dataset, responses=_REPLACED | documented(404, 409))  # fmt: skip
async def publish(engine: EngineDep, task_id: UUID, dataset_id: str, body: Publication) -> Response:
    """Publish a dataset whose files are all there, under the task's lease."""
    made, new, strays = await engine.write(
        lambda tx: engine.datasets.publish(tx, str(task_id), dataset_id, body)
    )
    if strays:
        files = engine.datasets.files
        aside = await asyncio.to_thread(files.set_aside, dataset_id, strays)
        await asyncio.to_thread(files.clear, aside)
    return answer(Dataset, made, 201 if new else 200)


@router.get("/api/datasets", response_model=DatasetPage, responses=documented())
async def listing(
    engine: EngineDep,
    job_id: Annotated[str | None, Query(alias="jobId")] = None,
    task_id: Annotated[UUID | None, Query(alias="taskId")] = None,
    payload_id: Annotated[str | None, Query(alias="payloadId")] = None,
    cursor: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 100,
) -> Response:
    """List published datasets, newest first."""
    where = {
        "job_id": job_id,
        "task_id": None if task_id is None else str(task_id),
        "payload_id": payload_id,
    }
    page = partial(engine.datasets.page, where=where, cursor=cursor, limit=limit)
    return answer(DatasetPage, await engine.read(page))


@router.get(ONE, response_model=Dataset, responses=documented(404))
async def show(engine: EngineDep, dataset_id: str) -> Response:
    """Show a published dataset."""
    found = await engine.read(lambda connection: engine.datasets.find(connection, dataset_id))
    return answer(Dataset, found)


@router.head(FILE, response_class=FileResponse, responses=_CONTENT | documented(404))
@router.get(FILE, response_class=FileResponse, responses=_CONTENT | documented(404))
async def get(request: Request, engine: EngineDep, dataset_id: str, uri: str) -> Response:
    """Download a file of a published dataset (``Range`` allowed); what its URI names never changes."""
    names.file_uri(uri)
    known = await engine.read(lambda connection: engine.datasets.file(connection, dataset_id, uri))
    name = PurePosixPath(uri)
    media_type = _MEDIA_TYPES.get(name.suffix, "application/octet-stream")
    headers = {
        "ETag": f'"{known.sha256}"',
        "Cache-Control": FOR_EVER,
        "X-Content-Type-Options": "nosniff",
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    try:
        file = await asyncio.to_thread(engine.datasets.files.open, dataset_id, uri)
    except NotFound as error:
        raise file_missing(dataset_id) from error
    try:
        status = os.fstat(file.fileno())
        look_at_range(request, status.st_size)
    except BaseException:
        file.close()
        raise
    return Download(file, status, headers, media_type)


@router.put(ONE + "/view", response_model=Dataset, responses=documented(404))
async def save_view(engine: EngineDep, dataset_id: str, body: dict[str, Any]) -> Response:
    """Save the viewer's settings with a dataset: a JSON object of at most 64 KiB."""
    saved = await engine.write(lambda tx: engine.datasets.save_view(tx, dataset_id, body))
    return answer(Dataset, saved)


@router.delete(ONE, status_code=204, responses=documented(404))
async def remove(engine: EngineDep, dataset_id: str) -> Response:
    """Remove a dataset and its files."""
    aside = await engine.write(lambda tx: engine.datasets.remove(tx, dataset_id))
    if aside is not None:
        await asyncio.to_thread(engine.datasets.files.clear, aside)
    return Response(status_code=204)
