"""What a DICOMweb service has of the instances that are sent to it."""

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO

from clara_results.agents.dicom.compare import attributes, compare, compare_files, from_json
from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.part10 import DicomUnreadable, NotForReceivers
from clara_results.agents.dicom.plan import Instance, check_unchanged
from clara_results.agents.dicom.transcode import CannotTranscode
from clara_results.agents.dicomweb.connection import WebConnection
from clara_results.agents.dicomweb.service import WebService, instance_path
from clara_results.agents.exporter import Delivery, FileRejected
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


@dataclass(frozen=True, slots=True)
class Found:
    """What was found at a receiver.

    Attributes:
        holding: What it has.
        differs: The attributes in which it differs from what was sent, by keyword and tag.
        offered: False: it is unknown since the service does not offer to be asked for it.
    """

    holding: Holding
    differs: tuple[str, ...] = ()
    offered: bool = True


class Holdings:
    """Asks a service what it has of a task's instances. Thread-safe; each call uses a connection of the caller's.

    Args:
        delivery: The task.
        service: Who is asked.
        decoders: Where compressed frames are decoded, if that is what it takes to compare.
    """

    def __init__(self, delivery: Delivery, service: WebService, decoders: FrameDecoders) -> None:
        self._decoders = decoders
        self._delivery = delivery
        self._service = service
        self._lock = threading.Lock()
        self._forgotten = 0
        self._listed: dict[tuple[str, str], set[str] | None] = {}

    def listed(self, connection: WebConnection, instance: Instance) -> bool | None:
        """Tell whether the service lists an instance (QIDO-RS); None if it can't be asked.

        A series is asked for once, until ``forget``.

        Raises:
            DestinationUnavailable: The service does not answer, or fails.
        """
        series = _series(instance)
        with self._lock:
            known, asked = series in self._listed, self._forgotten
            found = self._listed.get(series)
        if not known:
            found = self._service.instances(connection, *series)
            with self._lock:
                if asked == self._forgotten:  # else it may be older than what was to be forgotten
                    self._listed[series] = found
        return None if found is None else instance.header.sop_instance_uid in found

    def forget(self, instances: Sequence[Instance]) -> None:
        """Ask for these instances' series again: the service may have got some of them meanwhile."""
        with self._lock:
            self._forgotten += 1
            for instance in instances:
                self._listed.pop(_series(instance), None)

    def compared(self, connection: WebConnection, instance: Instance, how: Verify) -> Found:
        """Fetch back what the service has of an instance, and compare it with the file that was to be delivered.

        Args:
            connection: To the service.
            instance: Which.
            how: ``metadata`` compares attributes, ``full`` the whole instance.

        Raises:
            DestinationUnavailable: The service does not answer, or fails.
        """
        path = instance_path(*_series(instance), instance.header.sop_instance_uid)
        try:
            with self._delivery.open(instance.file) as ours:
                check_unchanged(ours, instance)
                if how is Verify.METADATA:
                    return self._metadata_compared(connection, instance, path, ours)
                return self._file_compared(connection, instance, path, ours)
        except (
            FileRejected,
            NotForReceivers,
            DicomUnreadable,
            CannotTranscode,
            OSError,
            ValueError,
        ):
            return Found(Holding.UNKNOWN)

    def _metadata_compared(
        self, connection: WebConnection, instance: Instance, path: str, ours: BinaryIO
    ) -> Found:
        described = self._service.metadata(connection, path)
        if not described:
            return _none(described is not None)
        theirs, unseen = from_json(described)
        if theirs.get("SOPInstanceUID") != instance.header.sop_instance_uid:
            return Found(Holding.UNKNOWN)
        # An archive may show its most important attributes alone.
        return _found(compare(attributes(ours), theirs, partial=True, unseen=unseen))

    def _file_compared(
        self, connection: WebConnection, instance: Instance, path: str, ours: BinaryIO
    ) -> Found:
        with tempfile.TemporaryFile() as theirs:
            there = self._service.retrieve(connection, path, instance.stamp[0], theirs)
            if not there:
                return _none(there is not None)
            theirs.flush()
            scratch = Path(tempfile.gettempdir())
            return _found(compare_files(ours, theirs, self._decoders, scratch))


def _none(offered: bool) -> Found:
    return Found(Holding.ABSENT) if offered else Found(Holding.UNKNOWN, offered=False)


def _found(differs: list[str]) -> Found:
    return Found(Holding.OTHER, tuple(differs)) if differs else Found(Holding.OURS)


def _series(instance: Instance) -> tuple[str, str]:
    return instance.header.study_instance_uid, instance.header.series_instance_uid
