"""``/health``: whether the process lives, can serve, and how its work stands."""

from typing import Any

from fastapi import APIRouter

from clara_results import __version__
from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep
from clara_results.api.problems import documented
from clara_results.domain.tasks import State
from clara_results.errors import ServiceUnavailable
from clara_results.store import tasks as store

router = APIRouter(tags=["Health"], prefix="/health", route_class=GuardedRoute)


@router.get("/live")
async def live() -> dict[str, str]:
    """Answer as long as the process does."""
    return {"status": "ok"}


@router.get("/ready", responses=documented())
async def ready(engine: EngineDep) -> dict[str, str]:
    """Answer 200 only while the database serves and the service is not about to end."""
    if engine.closing.is_set():
        raise ServiceUnavailable("the service is shutting down", code="shutting-down")
    await engine.read(store.state_counts)
    return {"status": "ok"}


@router.get("/status", responses=documented())
async def status(engine: EngineDep) -> dict[str, Any]:
    """Show the version and how many tasks stand where."""
    counts = await engine.read(store.state_counts)
    return {
        "status": "ok",
        "version": __version__,
        "tasks": {state: counts.get(state, 0) for state in State},
    }
