"""What of a task is sent, and in which order."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from clara_results.agents.dicom.part10 import DicomUnreadable, Header, NotForReceivers, read_header
from clara_results.agents.exporter import Delivery, FileRejected
from clara_results.domain.tasks import Outcome
from clara_results.wire.tasks import FileOutcome, ResultFile

CHUNK = 1 << 20
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KEY_OBJECTS = _STORAGE + "88.59"
_LATER = (
    (_KEY_OBJECTS, 3),
    (_STORAGE + "88.", 2),  # structured reports
    (_STORAGE + "66.", 1),  # segmentations
    (_STORAGE + "11.", 1),  # presentation states
    (_STORAGE + "481.3", 1),  # RT structure sets
)
"""Classes that refer to others come after what they refer to: the first prefix that fits tells the place."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance that is to be sent.

    Attributes:
        file: Its file, as registered.
        header: What is known of it.
        size: Bytes of its file.
    """

    file: ResultFile
    header: Header
    size: int

    @property
    def context(self) -> tuple[str, str]:
        """Return what has to be negotiated for it: SOP class and transfer syntax."""
        return self.header.sop_class_uid, self.header.transfer_syntax_uid


def plan(delivery: Delivery) -> list[Instance]:
    """Read all files of a task and return what is to be sent, in order; tell the outcome of the rest.

    Images go first, then segmentations, structure sets and presentation states, then reports, then key objects: a
    receiver that looks references up finds them. Within these by study, series and instance number.

    Raises:
        LeaseLost: As the delivery's checkpoint raised it.
        Stopping: As the delivery's checkpoint raised it.
        ServiceUnavailable: Files have to be fetched from the service, which does not answer.
    """
    found = list(_readable(delivery))
    rest = _of_one_patient(delivery, found)
    return sorted(_distinct(delivery, rest), key=_place)


def data_set_digest(file: BinaryIO, header: Header) -> bytes:
    """Return the SHA-256 of the data set in a file, without preamble and file meta information."""
    digest = hashlib.sha256()
    file.seek(header.data_offset)
    while piece := file.read(CHUNK):
        digest.update(piece)
    return digest.digest()


def reject(delivery: Delivery, file: ResultFile, code: str, message: str, uid: str | None = None) -> None:  # fmt: skip
    """Tell that a file can't be delivered."""
    delivery.told(
        FileOutcome(
            uri=file.uri,
            outcome=Outcome.REJECTED,
            code=code,
            message=message,
            sop_instance_uid=uid or None,
        )
    )


def unopened(delivery: Delivery, file: ResultFile, error: FileRejected) -> None:
    """Tell that a file is not there (it may come) or is not what was registered (it won't be again)."""
    outcome = Outcome.RETRY if error.code == "missing-file" else Outcome.REJECTED
    delivery.told(FileOutcome(uri=file.uri, outcome=outcome, code=error.code, message=str(error)))


def _readable(delivery: Delivery) -> Iterator[Instance]:
    for file in delivery.task.files or ():
        delivery.checkpoint()
        try:
            with delivery.open(file) as opened:
                number = opened.fileno()
                size = os.fstat(number).st_size
                header = read_header(
                    lambda count, offset, number=number: os.pread(number, count, offset),  # type: ignore[misc]
                    size,
                    file.uri,
                )
        except FileRejected as error:
            unopened(delivery, file, error)
        except NotForReceivers as error:
            delivery.told(
                FileOutcome(
                    uri=file.uri, outcome=Outcome.SKIPPED, code=error.code, message=str(error)
                )
            )
        except DicomUnreadable as error:
            reject(delivery, file, error.code, str(error))
        else:
            if _says_the_same(delivery, file, header):
                yield Instance(file, header, size)


def _says_the_same(delivery: Delivery, file: ResultFile, header: Header) -> bool:
    """Check that file meta information and data set name the same object; reject the file if not."""
    for name, meta, data in (
        ("SOP Class UID", header.media_sop_class_uid, header.sop_class_uid),
        ("SOP Instance UID", header.media_sop_instance_uid, header.sop_instance_uid),
    ):
        if meta != data:
            reject(
                delivery,
                file,
                "uid-mismatch",
                f"the {name} is {meta} in the file meta information, but {data or 'missing'} in the "
                "data set (PS3.10 7.1)",
                header.sop_instance_uid,
            )
            return False
    return True


def _of_one_patient(delivery: Delivery, instances: list[Instance]) -> list[Instance]:
    """Reject all files of a study that names more than one patient: nobody can tell which is right."""
    patients: dict[str, set[tuple[bytes, bytes]]] = {}
    for instance in instances:
        study = instance.header.study_instance_uid
        if study:
            patients.setdefault(study, set()).add(instance.header.patient)
    mixed = {study for study, names in patients.items() if len(names) > 1}
    kept = []
    for instance in instances:
        header = instance.header
        if header.study_instance_uid in mixed:
            reject(
                delivery,
                instance.file,
                "patient-mismatch",
                f"the files of study {header.study_instance_uid} name "
                f"{len(patients[header.study_instance_uid])} different patients (Patient ID and issuer); "
                "none of them is sent",
                header.sop_instance_uid,
            )
        else:
            kept.append(instance)
    return kept


def _distinct(delivery: Delivery, instances: Iterable[Instance]) -> Iterator[Instance]:
    """Pass each SOP Instance UID once: the same again is skipped, another object under it is rejected."""
    first: dict[str, Instance] = {}
    for instance in instances:
        uid = instance.header.sop_instance_uid
        known = first.setdefault(uid, instance)
        if known is instance:
            yield instance
        elif _same(delivery, known, instance):
            delivery.told(
                FileOutcome(
                    uri=instance.file.uri,
                    outcome=Outcome.SKIPPED,
                    code="duplicate-instance",
                    message="another file of the task holds the very same instance",
                    sop_instance_uid=uid,
                )
            )
        else:
            reject(
                delivery,
                instance.file,
                "uid-reused",
                f"another file of the task has SOP Instance UID {uid} too, with other content",
                uid,
            )


def _same(delivery: Delivery, one: Instance, other: Instance) -> bool:
    if one.context != other.context:
        return False
    digests = []
    for instance in (one, other):
        try:
            with delivery.open(instance.file) as opened:
                digests.append(data_set_digest(opened, instance.header))
        except FileRejected:
            return False  # whichever it is, it is told when its turn comes
    return digests[0] == digests[1]


def _place(instance: Instance) -> tuple[int, str, int, str, int, str]:
    header = instance.header
    group = next((place for prefix, place in _LATER if header.sop_class_uid.startswith(prefix)), 0)
    return (
        group,
        header.study_instance_uid,
        _last_if_none(header.series_number),
        header.series_instance_uid,
        _last_if_none(header.instance_number),
        instance.file.uri,
    )


def _last_if_none(number: int | None) -> int:
    return 1 << 31 if number is None else number
