"""Delivers tasks to DIMSE destinations by C-STORE; only the receiver's own answer makes a file delivered."""

import json
from collections.abc import Callable, Sequence

from clara_results.agents.dicom.association import AssociationSettings, Peer
from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.plan import plan
from clara_results.agents.dicom.pool import AssociationPool
from clara_results.agents.dicom.sending import Sending
from clara_results.agents.exporter import Delivery
from clara_results.agents.named import named_destination
from clara_results.agents.secrets import Secrets
from clara_results.agents.troubles import Troubles
from clara_results.domain.clock import Clock
from clara_results.domain.receivers import DICOM
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import Task


class DicomExporter:
    """An Exporter (see ``agents.exporter``) for destinations of kind ``dicom``."""

    def __init__(
        self,
        destinations: Callable[[], Sequence[Destination]],
        calling_ae_title: str,
        settings: AssociationSettings,
        clock: Clock,
        secrets: Secrets,
    ) -> None:
        """Make an exporter.

        Args:
            destinations: Gives all destinations that are set up; asked for each task.
            calling_ae_title: The agent's own, for destinations that ask for no other.
            settings: How long to wait for what.
            clock: The time.
            secrets: Where certificates and passwords lie.
        """
        self._destinations = destinations
        self._calling_ae_title = calling_ae_title
        self._settings = settings
        self._clock = clock
        self._secrets = secrets
        self._pool = AssociationPool(settings.idle, clock)
        self._decoders = FrameDecoders()
        self._troubles = Troubles()

    @property
    def idle_seconds(self) -> float:
        """Return for how long an association is kept open that no task uses."""
        return self._settings.idle

    def idle(self, task: Task) -> int:
        """Return how many associations are kept open to a task's destination, and no task uses."""
        try:
            name = json.loads(task.parameters or "")
        except ValueError:
            return 0
        return self._pool.idle(name) if isinstance(name, str) else 0

    def close(self) -> None:
        """Release the associations that are kept open, and end the decoders."""
        self._pool.close()
        self._decoders.close()

    def deliver(self, delivery: Delivery) -> None:
        """Send every DICOM file of a task to the destination that its parameters name.

        Raises:
            TaskRejected: There is no such destination, or the parameters name none.
            DestinationUnavailable: It can't be reached, refuses the association, does not answer, has no room, or
                breaks every association; or the task took too long.
            LeaseLost: As the delivery raised it.
            Stopping: As the delivery raised it.
        """
        destination = named_destination(delivery.task.parameters, self._destinations(), DICOM)
        task_id = delivery.task.task_id
        breaks = self._troubles.of(task_id)

        instances = sorted(plan(delivery), key=lambda one: one.file.uri in breaks)
        if instances:
            peer = Peer.of(destination, self._calling_ae_title, self._secrets)
            Sending(
                delivery,
                destination,
                peer,
                self._pool,
                self._settings,
                self._clock,
                self._decoders,
                breaks,
            ).run(instances)
        self._troubles.forget(task_id)
