"""Whether a destination answers: connection, association, C-ECHO, each with its time."""

from collections.abc import Callable

from pydicom.uid import ImplicitVRLittleEndian

from clara_results.agents.dicom.association import VERIFICATION, Association, AssociationSettings
from clara_results.agents.dicom.connection import AssociationAborted, connect
from clara_results.agents.dicom.exporter import associate
from clara_results.domain.clock import Clock, SystemClock
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Destination, TestResult, TestStep


def echo_destination(
    destination: Destination,
    calling_ae_title: str = "ClaraSCU",
    settings: AssociationSettings | None = None,
    clock: Clock | None = None,
) -> TestResult:
    """Test a destination; what fails is told in the result, never raised.

    Args:
        destination: Which.
        calling_ae_title: As whom, unless the destination says.
        settings: How long to wait.
        clock: The time.
    """
    waits = settings or AssociationSettings()
    time = clock or SystemClock()
    calling = destination.calling_ae_title or calling_ae_title
    steps: list[TestStep] = []
    opened: list[Association] = []

    def reach() -> str:
        connect(destination.host, destination.port, waits.connect, time).close()
        return f"{destination.host} port {destination.port} takes connections"

    def request() -> str:
        contexts = [(VERIFICATION, str(ImplicitVRLittleEndian))]
        opened.append(associate(destination, calling, contexts, waits, time))
        for why in opened[0].refused.values():
            raise DestinationUnavailable(f"it does not take C-ECHO: {why}")
        return f"{destination.ae_title} accepts an association from {calling}"

    def echo() -> str:
        status = opened[0].echo()
        if status != 0:
            raise DestinationUnavailable(f"it answers C-ECHO with status {status:04X}")
        return "it answers C-ECHO with success"

    try:
        for name, step in (("connect", reach), ("association", request), ("echo", echo)):
            if not _step(steps, name, step, time):
                break
    finally:
        for association in opened:
            association.release()
    return TestResult(destination=destination.name, ok=all(step.ok for step in steps), steps=steps)


def _step(steps: list[TestStep], name: str, act: Callable[[], str], clock: Clock) -> bool:
    begun = clock.monotonic()
    try:
        message, ok = act(), True
    except (DestinationUnavailable, AssociationAborted) as error:
        message, ok = str(error), False
    milliseconds = round((clock.monotonic() - begun) * 1000, 1)
    steps.append(TestStep(name=name, ok=ok, milliseconds=milliseconds, message=message))
    return ok
