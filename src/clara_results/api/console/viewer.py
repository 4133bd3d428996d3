"""The console's page with a dataset: planes, volume, label maps, and what is known of them."""

from fastapi import APIRouter, Request, Response

from clara_results.api.console.pages import PageRoute, render
from clara_results.api.dependencies import EngineDep
from clara_results.wire.codec import to_json

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/viewer/{dataset_id}")
async def viewer(request: Request, engine: EngineDep, dataset_id: str) -> Response:
    """Show a dataset."""
    dataset = await engine.read(lambda connection: engine.datasets.find(connection, dataset_id))
    # Within a script element only "<" could end it or begin a comment (HTML, 4.12.1.3).
    data = to_json(dataset).decode().replace("<", "\\u003c")
    return await render(request, "viewer.html", dataset=dataset, data=data)
