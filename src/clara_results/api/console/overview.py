"""The console's first page: what needs a person now, and how the work goes."""

import json

from fastapi import APIRouter, Request, Response

from clara_results.api.console.pages import PageRoute, number, render, seconds
from clara_results.api.dependencies import EngineDep
from clara_results.domain import names
from clara_results.domain.tasks import State
from clara_results.service.trend import Course

router = APIRouter(include_in_schema=False, route_class=PageRoute)
DATASETS = 8
"""Datasets that are shown."""
SPANS = {"hour": "Last hour", "day": "Last day"}
"""For what time one may see how the work went."""


@router.get("/")
async def overview(request: Request, engine: EngineDep) -> Response:
    """Show what needs a person now, and how the work goes."""
    found = await engine.overseer.overview()
    datasets = await engine.read(
        lambda connection: engine.datasets.page(connection, where={}, cursor=None, limit=DATASETS)
    )
    span = request.query_params.get("span")
    span = span if span in SPANS else "hour"
    course: Course = getattr(found, span)
    silent = [agent for agent in found.agents if not agent.alive]
    return await render(
        request,
        "overview.html",
        overview=found,
        down=[item for item in found.destinations if item.down_since and not item.paused_at],
        paused=[item for item in found.destinations if item.paused_at],
        silent=silent,
        stuck=[lane for lane in found.stuck if lane.agent not in {agent.name for agent in silent}],
        named={names.name_key(item.name): item.name for item in found.destinations},
        fresh=not any(found.counts.values()),
        states=list(State),
        datasets=datasets.items,
        spans=SPANS,
        span=span,
        course=_drawn(course),
        told=_told(course),
        service=str(request.base_url).rstrip("/"),
    )


def _drawn(course: Course) -> str:
    """Return what the charts draw, as JSON: seconds since 1970, then a row for each of their lines."""
    since, step = course.since.timestamp(), course.step.total_seconds()
    times = [since + step * place for place in range(len(course.delivered))]
    lines = (course.delivered, course.failed, course.median, course.slowest)
    return json.dumps({"step": step, "data": [times, *map(list, lines)]})


def _told(course: Course) -> tuple[str, str]:
    """Return the charts in words."""
    ended = f"{number(sum(course.delivered))} delivered, {number(sum(course.failed))} failed"
    median, slowest = course.whole
    if median is None or slowest is None:
        return ended, "nothing was delivered in this time"
    return ended, f"half within {seconds(median)}, 95 of 100 within {seconds(slowest)}"
