"""Which destination a task is for: its parameters name one."""

import json
from collections.abc import Iterable

from clara_results.agents.exporter import TaskRejected
from clara_results.domain import names
from clara_results.domain.receivers import DICOM, DICOMWEB
from clara_results.wire.destinations import Destination

_KINDS = {DICOM: "DICOM", DICOMWEB: "DICOMweb"}


def named_destination(
    parameters: str | None, destinations: Iterable[Destination], kind: str
) -> Destination:
    """Return the destination that a task's parameters name.

    Args:
        parameters: The task's: a JSON string, compared without case.
        destinations: All that are set up.
        kind: Of which kind it must be: ``dicom`` or ``dicomweb``.

    Raises:
        TaskRejected: There is no such destination, or the parameters name none.
    """
    known = [item for item in destinations if item.kind == kind]
    listing = ", ".join(item.name for item in known) or "none"
    name = _name(parameters, listing)
    for item in known:
        if names.name_key(item.name) == names.name_key(name):
            return item
    raise TaskRejected(
        f"there is no {_KINDS[kind]} destination of the name that the task's data gives; there are: {listing}. "
        "Add it (clara-results destinations add) and retry the task",
        code="unknown-destination",
    )


def _name(parameters: str | None, known: str) -> str:
    """Return the name in a task's parameters; ``known`` lists those there are, for the message."""
    if parameters is None:
        what = "the task has no parameters"
    else:
        try:
            name = json.loads(parameters)
        except ValueError:
            name = None
        if isinstance(name, str):
            return name
        # Not shown: they may hold anything, a patient's name too.
        what = (
            "the task's parameters are a whole array, as an older release made them, not one of its elements"
            if isinstance(name, list)
            else "the task's parameters are no JSON string"
        )
    raise TaskRejected(
        f"{what}; they must name a destination. There are: {known}. Register with "
        "--data '[\"NAME\"]', which makes one task for each name",
        code="unusable-parameters",
    )
