"""Whether a destination answers: connection, association, C-ECHO, each with its time."""

from collections.abc import Callable

from pydicom.uid import ImplicitVRLittleEndian

from clara_results.agents.dicom.association import (
    VERIFICATION,
    Association,
    AssociationSettings,
    Peer,
)
from clara_results.agents.dicom.connection import AssociationAborted, PduConnection, connect
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
    peer = Peer.of(destination, calling_ae_title)
    steps: list[TestStep] = []
    connections: list[PduConnection] = []
    opened: list[Association] = []

    def reach() -> str:
        reached = connect(peer.host, peer.port, waits.connect, time)
        connections.append(PduConnection(reached, waits.dimse, time))
        return f"{peer.host} port {peer.port} takes connections"

    def request() -> str:
        contexts = [(VERIFICATION, str(ImplicitVRLittleEndian))]
        opened.append(Association(connections[0], peer, contexts, waits, time))
        for why in opened[0].refused.values():
            raise DestinationUnavailable(f"it does not take C-ECHO: {why}")
        return f"{peer.called} accepts an association from {peer.calling}"

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
        for connection in connections:
            connection.close()
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
