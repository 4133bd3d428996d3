"""What an operator finds when it starts: its environment, the same on one machine and on a cluster."""

from collections.abc import Callable
from urllib.parse import urlsplit

from clara_results import settings
from clara_results.domain import platform
from clara_results.pipeline.definition import Definition, Input, Operator, Output

Place = Callable[[Input | Output], str]
"""Where an input or output is for the operator: where it is mounted, or the payload's folder itself."""


def platform_variables(
    definition: Definition,
    operator: Operator,
    *,
    job_id: str,
    payload_id: str,
    service: str,
    place: Place,
) -> dict[str, str]:
    """Return the variables that the platform gives an operator, and its own ones, which go before.

    Args:
        definition: Its pipeline.
        operator: The operator.
        job_id: The job's id.
        payload_id: The payload's id.
        service: URL of the Results Service.
        place: Where its inputs and outputs are.
    """
    url = urlsplit(service)
    port = url.port or (443 if url.scheme == "https" else 80)
    found = {
        platform.JOB_ID: job_id,
        platform.PIPELINE_ID: str(definition.name),
        platform.PAYLOAD_ID: payload_id,
        platform.OPERATOR_NAME: str(operator.name),
        platform.INPUT_PATHS: _joined(operator.inputs, place),
        platform.OUTPUT_PATHS: _joined(operator.outputs, place),
        settings.SERVICE_HOST: url.hostname or "",
        settings.SERVICE_PORT: str(port),
        settings.variable("service"): service,
    }
    return found | {name: str(value) for name, value in operator.variables.items()}


def input_uris(operator: Operator) -> str:
    """Return ``CLARA_RESULTS_INPUT_URIS``: which folder of the payload each input is."""
    return ";".join(f"{each.name}={each.folder}" for each in operator.inputs)


def _joined(mounts: tuple[Input, ...] | tuple[Output, ...], place: Place) -> str:
    return ";".join(f"{each.name}:{place(each)}" for each in mounts)
