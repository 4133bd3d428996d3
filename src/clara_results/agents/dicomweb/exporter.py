"""Delivers tasks to DICOMweb destinations by STOW-RS; only the receiver's word on an instance makes its file delivered."""

import threading
from collections.abc import Callable, Sequence

from clara_results.agents.custody import cleared
from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.plan import plan
from clara_results.agents.dicomweb.connection import WebSettings
from clara_results.agents.dicomweb.credentials import Credentials
from clara_results.agents.dicomweb.sending import Sending
from clara_results.agents.dicomweb.service import WebService
from clara_results.agents.exporter import Delivery
from clara_results.agents.named import named_destination
from clara_results.agents.secrets import Secrets
from clara_results.agents.troubles import Troubles
from clara_results.domain.clock import Clock
from clara_results.domain.receivers import DICOMWEB
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Task


class DicomWebExporter:
    """An Exporter (see ``agents.exporter``) for destinations of kind ``dicomweb``.

    Args:
        destinations: Gives all destinations that are set up; asked for each task.
        secrets: Where certificates, passwords and tokens lie.
        settings: Time limits and sizes.
        clock: The time.
    """

    def __init__(
        self,
        destinations: Callable[[], Sequence[Destination]],
        secrets: Secrets,
        settings: WebSettings,
        clock: Clock,
    ) -> None:
        self._destinations = destinations
        self._secrets = secrets
        self._settings = settings
        self._clock = clock
        self._troubles = Troubles()
        self._decoders = FrameDecoders()
        self._lock = threading.Lock()
        self._credentials: dict[str, tuple[Destination, Credentials]] = {}

    @property
    def idle_seconds(self) -> float:
        """Return for how long connections stay open that no task uses: they do not."""
        return 0.0

    def idle(self, task: Task) -> int:  # noqa: ARG002  (the same for all)
        """Return how many connections are open that no task uses: none."""
        return 0

    def close(self) -> None:
        """End the processes that decode frames; no connection is kept open."""
        self._decoders.close()

    def deliver(self, delivery: Delivery) -> None:
        """Send every DICOM file of a task to the destination that its parameters name.

        Raises:
            TaskRejected: There is no such destination, or the parameters name none.
            DestinationUnavailable: It can't be reached, does not answer, does not let us in, has no room, or breaks
                every connection.
            LeaseLost: As the delivery's checkpoint raised it.
            Stopping: As the delivery's checkpoint raised it.
            ServiceUnavailable: Files have to be fetched from the service, which does not answer.
        """
        task = delivery.task
        destination = named_destination(task.parameters, self._destinations(), DICOMWEB)
        service = WebService(
            destination, self._credentials_of(destination), self._secrets, self._settings, self._clock
        )  # fmt: skip
        breaks = self._troubles.of(task.task_id)
        instances = sorted(plan(delivery), key=lambda one: (one.stage, one.file.uri in breaks))
        if instances:
            sending = Sending(
                delivery, destination, service, breaks, self._settings, self._clock, self._decoders
            )
            with cleared(delivery, destination, instances) as source:
                sending.run(source)
        self._troubles.forget(task.task_id)

    def _credentials_of(self, destination: Destination) -> Credentials:
        """Return a destination's credentials; kept from task to task, for they may hold a token that is still good."""
        with self._lock:
            known = self._credentials.get(destination.name)
            if known is None or (known[0].auth, known[0].tls) != (
                destination.auth,
                destination.tls,
            ):
                made = Credentials(destination, self._secrets, self._settings, self._clock)
                known = self._credentials[destination.name] = destination, made
            return known[1]
