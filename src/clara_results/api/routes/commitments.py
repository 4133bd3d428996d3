"""``/api/commitments``: what receivers are asked to commit themselves to keep, and what they say (PS3.4 Annex J)."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from clara_results.api.access import GuardedRoute
from clara_results.api.dependencies import EngineDep, answer
from clara_results.api.problems import documented
from clara_results.domain import names
from clara_results.wire.instances import CommitmentFailure, CommitmentRequests, CommitmentResult
from clara_results.wire.tasks import Task

router = APIRouter(tags=["Storage commitment"], route_class=GuardedRoute)
ONE = "/api/commitments/{transaction_uid}"


@router.post("/api/commitments/{agent}/due", response_model=CommitmentRequests, responses=documented())  # fmt: skip
async def due(
    engine: EngineDep, agent: str, size: Annotated[int, Query(ge=1, le=100)] = 10
) -> Response:
    """Take commitments that an agent is to ask for now; each counts as asked."""
    name = names.agent_name(agent)
    items = await engine.commitments_due(name, size)
    return answer(CommitmentRequests, CommitmentRequests(items=items))


@router.put(ONE, response_model=Task, responses=documented(404))
async def result(engine: EngineDep, transaction_uid: str, body: CommitmentResult) -> Response:
    """Tell what a receiver said; an instance of which it said so before is passed over."""
    told = await engine.write(lambda tx: engine.commitments.result(tx, transaction_uid, body))
    return answer(Task, told)


@router.put(ONE + "/failure", response_model=Task, responses=documented(404))
async def failure(engine: EngineDep, transaction_uid: str, body: CommitmentFailure) -> Response:
    """Tell that a receiver could not be asked."""
    told = await engine.write(lambda tx: engine.commitments.failure(tx, transaction_uid, body))
    return answer(Task, told)
