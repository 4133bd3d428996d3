"""What a DICOMweb service has of the instances that are sent to it."""

import tempfile
import threading
from collections.abc import Sequence
from enum import Enum, auto

from clara_results.agents.dicom.plan import Instance
from clara_results.agents.dicomweb.connection import WebConnection
from clara_results.agents.dicomweb.service import WebService, instance_path
from clara_results.agents.exporter import Delivery
from clara_results.domain.receivers import Verify


class Holding(Enum):
    """What a receiver has under an instance's UID."""

    ABSENT = auto()
    """Nothing."""
    OURS = auto()
    """That very instance."""
    OTHER = auto()
    """Another object."""
    UNKNOWN = auto()
    """It can't be asked, or does not say."""


class Holdings:
    """Asks a service what it has of a task's instances. Thread-safe; each call uses a connection of the caller's.

    Args:
        delivery: The task.
        service: Who is asked.
    """

    def __init__(self, delivery: Delivery, service: WebService) -> None:
        self._delivery = delivery
        self._service = service
        self._lock = threading.Lock()
        self._listed: dict[tuple[str, str], set[str] | None] = {}

    def listed(self, connection: WebConnection, instance: Instance) -> bool | None:
        """Tell whether the service lists an instance (QIDO-RS); None if it can't be asked.

        A series is asked for once, until ``forget``.

        Raises:
            DestinationUnavailable: The service does not answer, or fails.
        """
        series = _series(instance)
        with self._lock:
            known = series in self._listed
            found = self._listed.get(series)
        if not known:
            found = self._service.instances(connection, *series)
            with self._lock:
                self._listed[series] = found
        return None if found is None else instance.header.sop_instance_uid in found

    def forget(self, instances: Sequence[Instance]) -> None:
        """Ask for these instances' series again: the service may have got some of them meanwhile."""
        with self._lock:
            for instance in instances:
                self._listed.pop(_series(instance), None)

    def compared(self, connection: WebConnection, instance: Instance, how: Verify) -> Holding:
        """Fetch back what the service has of an instance, and compare it with the file that was to be delivered.

        Args:
            connection: To the service.
            instance: Which.
            how: ``metadata`` compares attributes, ``full`` the whole instance.

        Raises:
            DestinationUnavailable: The service does not answer, or fails.
            FileRejected: The file is not what it was.
            OSError: It can't be read.
        """
        header = instance.header
        path = instance_path(*_series(instance), header.sop_instance_uid)
        with tempfile.TemporaryFile() as got:
            there = self._service.retrieve(connection, path, instance.stamp[0], got)
            if not there:
                return Holding.UNKNOWN if there is None else Holding.ABSENT
            got.seek(0)
            with self._delivery.open(instance.file) as sent:
                return Holding.OURS if got.read()[-1000:] == sent.read()[-1000:] else Holding.OTHER


def _series(instance: Instance) -> tuple[str, str]:
    return instance.header.study_instance_uid, instance.header.series_instance_uid
