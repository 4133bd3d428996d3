"""``/health``: whether the process lives, can serve, and how its work stands."""

import asyncio
import time

import sqlalchemy as sa
from fastapi import APIRouter, Response

from clara_results import __version__
from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep, answer
from clara_results.api.problems import documented
from clara_results.domain.tasks import State
from clara_results.errors import ServiceUnavailable
from clara_results.service.engine import Engine
from clara_results.store import tasks as store
from clara_results.store.database import silent
from clara_results.wire.health import DatabaseHealth, DiskHealth, Health

router = APIRouter(tags=["Health"], prefix="/health", route_class=GuardedRoute)
PATIENCE = 2.0
"""Seconds that the database has to answer: less than a probe waits."""


@router.get("/live", response_model=dict[str, str])
async def live() -> Response:
    """Answer as long as the process does."""
    return answer(dict[str, str], {"status": "ok"})


@router.get("/ready", response_model=dict[str, str], responses=documented())
async def ready(engine: EngineDep) -> Response:
    """Answer 200 only while the database serves and the service is not about to end."""
    if engine.closing.is_set():
        raise ServiceUnavailable("the service is shutting down", code="shutting-down")
    await _ask(engine)
    return answer(dict[str, str], {"status": "ok"})


@router.get("/status", response_model=Health, responses=documented())
async def status(engine: EngineDep) -> Response:
    """Show the version, how the database answers, and how many tasks stand where."""
    seconds = await _ask(engine)
    counts = await engine.read(store.state_counts)
    disks = await asyncio.to_thread(engine.disks)
    rescued_at = engine.rescued_at
    body = Health(
        status="ok",
        version=__version__,
        database=DatabaseHealth(kind=engine.database_kind, milliseconds=round(seconds * 1000, 3)),
        tasks={state: counts.get(state, 0) for state in State},
        rescued_seconds_ago=None
        if rescued_at is None
        else round(engine.clock.monotonic() - rescued_at, 3),
        disks=[DiskHealth(folder=d.folder, free_bytes=d.free, size_bytes=d.size) for d in disks],
    )
    return answer(Health, body)


async def _ask(engine: Engine) -> float:
    """Ask the database something trivial; return the seconds that it took.

    Raises:
        ServiceUnavailable: It does not answer in time.
    """
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE):
            await engine.read(lambda connection: connection.scalar(sa.select(1)))
    except TimeoutError:
        raise silent() from None
    return time.perf_counter() - begun
