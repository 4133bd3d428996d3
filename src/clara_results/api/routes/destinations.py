"""``/api/destinations``, ``/api/config/destinationaetitle`` and ``/api/agents``."""

import asyncio

from fastapi import APIRouter, Request, Response

from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep, answer
from clara_results.api.problems import documented, problem
from clara_results.domain.receivers import DICOM
from clara_results.errors import InvalidInput
from clara_results.service import destinations
from clara_results.wire.destinations import (
    AgentPage,
    Destination,
    DestinationAeTitle,
    DestinationPage,
    DestinationView,
    TestResult,
)

router = APIRouter(tags=["Destinations and agents"], route_class=GuardedRoute)
ONE = "/api/destinations/{name}"
ORIGINAL = "/api/config/destinationaetitle"


@router.get("/api/destinations", response_model=DestinationPage, responses=documented())
async def listing(engine: EngineDep) -> Response:
    """List all destinations, by name."""
    return answer(DestinationPage, await engine.read(destinations.all_destinations))


@router.post("/api/destinations", status_code=201, response_model=DestinationView, responses=documented(409))  # fmt: skip
async def add(engine: EngineDep, body: Destination) -> Response:
    """Add a destination."""
    checked = destinations.checked(body)
    added = await engine.write(lambda tx: destinations.add(tx, checked, engine.clock))
    return answer(DestinationView, added, 201)


@router.get(ONE, response_model=DestinationView, responses=documented(404))
async def show(engine: EngineDep, name: str) -> Response:
    """Show one destination."""
    found = await engine.read(lambda connection: destinations.find(connection, name))
    return answer(DestinationView, found)


@router.put(ONE, response_model=DestinationView, responses=documented(404, 409))
async def replace(engine: EngineDep, name: str, body: Destination) -> Response:
    """Change a destination."""
    checked = destinations.checked(body)
    changed = await engine.write(lambda tx: destinations.replace(tx, name, checked, engine.clock))
    return answer(DestinationView, changed)


@router.delete(ONE, status_code=204, responses=documented(404))
async def remove(engine: EngineDep, name: str) -> Response:
    """Remove a destination."""
    await engine.write(lambda tx: destinations.remove(tx, name))
    return Response(status_code=204)


@router.post(ONE + "/test", response_model=TestResult, responses=documented(404))
async def test(request: Request, engine: EngineDep, name: str) -> Response:
    """Connect to a destination and see whether it answers."""
    found = await engine.read(lambda connection: destinations.find(connection, name))
    result = await asyncio.to_thread(request.app.state.test_destination, found)
    return answer(TestResult, result)


@router.post(ONE + "/pause", response_model=DestinationView, responses=documented(404))
async def pause(engine: EngineDep, name: str) -> Response:
    """Let no more tasks for a destination be claimed; what is in progress goes on."""
    paused = await engine.write(lambda tx: destinations.pause(tx, name, engine.clock))
    return answer(DestinationView, paused)


@router.post(ONE + "/resume", response_model=DestinationView, responses=documented(404))
async def resume(engine: EngineDep, name: str) -> Response:
    """Let tasks for a destination be claimed again."""
    return answer(DestinationView, await engine.write(lambda tx: destinations.resume(tx, name)))


@router.get("/api/agents", response_model=AgentPage, responses=documented())
async def agents(engine: EngineDep) -> Response:
    """List the agent processes seen in the last day."""
    shown = await engine.read(lambda connection: destinations.agents(connection, engine.clock))
    return answer(AgentPage, shown)


@router.get(ORIGINAL, response_model=list[DestinationAeTitle], responses=documented())
async def original_listing(engine: EngineDep) -> Response:
    """List DIMSE destinations in the original's shape."""
    page = await engine.read(destinations.all_destinations)
    return answer(list[DestinationAeTitle], [_original(item) for item in page.items if _is_dimse(item)])  # fmt: skip


@router.post(ORIGINAL, status_code=201, response_model=DestinationAeTitle, responses=documented(400, 409))  # fmt: skip
async def original_add(engine: EngineDep, body: DestinationAeTitle) -> Response:
    """Add a DIMSE destination in the original's shape; a bad value is a 400, as it was there."""
    try:
        checked = destinations.checked(
            Destination(name=body.name, ae_title=body.ae_title, host=body.host_ip, port=body.port)
        )
    except InvalidInput as error:
        return problem(400, error.code, str(error), error.errors)
    added = await engine.write(lambda tx: destinations.add(tx, checked, engine.clock))
    return answer(DestinationAeTitle, _original(added), 201)


@router.get(ORIGINAL + "/{name}", response_model=DestinationAeTitle, responses=documented(404))
async def original_show(engine: EngineDep, name: str) -> Response:
    """Show one DIMSE destination in the original's shape."""
    found = await engine.read(lambda connection: destinations.find(connection, name))
    return answer(DestinationAeTitle, _original(_dimse(found)))


@router.delete(ORIGINAL + "/{name}", response_model=DestinationAeTitle, responses=documented(404))
async def original_remove(engine: EngineDep, name: str) -> Response:
    """Remove a DIMSE destination and show what it was."""
    _dimse(await engine.read(lambda connection: destinations.find(connection, name)))
    gone = await engine.write(lambda tx: destinations.remove(tx, name))
    return answer(DestinationAeTitle, _original(gone))


def _is_dimse(item: Destination) -> bool:
    return item.kind == DICOM


def _dimse(item: Destination) -> Destination:
    if not _is_dimse(item):
        raise destinations.unknown()  # the original knows of no other kind
    return item


def _original(item: Destination) -> DestinationAeTitle:
    return DestinationAeTitle(
        name=item.name, ae_title=item.ae_title or "", host_ip=item.host or "", port=item.port or 0
    )
