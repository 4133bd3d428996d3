"""The console's page of agents: which processes there are, and what each holds."""

from collections.abc import Mapping, Sequence

from fastapi import APIRouter, Request, Response

from clara_results.api.console.pages import PageRoute, render
from clara_results.api.dependencies import EngineDep
from clara_results.domain import names
from clara_results.domain.tasks import Outcome
from clara_results.service.overview import alive
from clara_results.store import overview as store
from clara_results.store.statements import Row

router = APIRouter(include_in_schema=False, route_class=PageRoute)
SHOWN = 20
"""Tasks of a process that are shown."""


@router.get("/agents")
async def agents(request: Request, engine: EngineDep) -> Response:
    """Show all agents' processes that were seen in the last day, and what each holds now."""
    overview = await engine.overseer.overview()
    held = await engine.read(store.held)
    return await render(
        request,
        "agents.html",
        agents=overview.agents,
        held=_by_holder(held),
        named={names.name_key(item.name): item.name for item in overview.destinations},
        alive=alive,
        total=_total,
        limit=SHOWN,
        service=str(request.base_url).rstrip("/"),
    )


def _by_holder(held: Sequence[Row]) -> Mapping[tuple[str, str], Sequence[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in held:
        found.setdefault((row.agent, row.instance or ""), []).append(row)
    return found


def _total(task: Row) -> int:
    """Return the number of a held task's files."""
    return sum(getattr(task, f"files_{outcome}") for outcome in Outcome)
