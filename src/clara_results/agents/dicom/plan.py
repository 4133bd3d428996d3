"""What of a task is sent, and in which order."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

from clara_results.agents.dicom.part10 import (
    WINDOW,
    DicomUnreadable,
    Header,
    NotForReceivers,
    read_header,
)
from clara_results.agents.exporter import Delivery, FileRejected
from clara_results.domain.tasks import Outcome
from clara_results.errors import UnreadableInput
from clara_results.wire.tasks import FileOutcome, ResultFile

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


CHUNK = 1 << 20
HELD_BYTES = 8 << 20
"""Bytes of a task's small files that are held from their reading to their sending, so that each is opened once."""
Stamp = tuple[int, int]
"""A file's size in bytes, and its time of last change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance that is to be sent.

    Attributes:
        file: Its file, as registered.
        header: What is known of it.
        stamp: Its file's size and time when that was read; another stamp, another file.
        sha256: Digest of its data set, 64 lower-case hex digits, where the file was small enough to be read whole.
        data: Its data set, where it was so small, and not too many before it: up to HELD_BYTES of a task.
    """

    file: ResultFile
    header: Header
    stamp: Stamp
    sha256: str | None = None
    data: memoryview | None = field(default=None, repr=False, compare=False)

    @property
    def context(self) -> tuple[str, str]:
        """Return what has to be negotiated for it: SOP class and transfer syntax."""
        return self.header.sop_class_uid, self.header.transfer_syntax_uid

    @property
    def stage(self) -> int:
        """Return after what it is sent: 0 images; 1 segmentations and the like; 2 reports; 3 key objects."""
        for prefix, stage in _LATER:
            if self.header.sop_class_uid.startswith(prefix):
                return stage
        return 0


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


def check_unchanged(file: BinaryIO, instance: Instance) -> None:
    """Check that an instance's file, opened again, is what was read when the sending was planned.

    Raises:
        FileRejected: It is not.
    """
    if _stamp(file) != instance.stamp:
        raise FileRejected("the file changed between being read and being sent")


def _stamp(file: BinaryIO) -> Stamp:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def data_set_digest(delivery: Delivery, instance: Instance) -> str:
    """Return the SHA-256 of an instance's data set, without preamble and file meta information, in hex digits.

    Raises:
        FileRejected: The file is gone, or not what was read before.
        OSError: It can't be read.
        ServiceUnavailable: It has to be fetched from the service, which does not answer.
    """
    if instance.sha256 is not None:
        return instance.sha256
    with delivery.open(instance.file) as opened:
        check_unchanged(opened, instance)
        digest, position = hashlib.sha256(), instance.header.data_offset
        piece = bytearray(CHUNK)
        while count := os.preadv(opened.fileno(), [piece], position):
            digest.update(memoryview(piece)[:count])
            position += count
        return digest.hexdigest()


def reject(
    delivery: Delivery,
    file: ResultFile,
    code: str,
    message: str,
    uid: str | None = None,
    *,
    doubt: bool = False,
) -> None:
    """Tell that a file can't be delivered; with ``doubt``, that the receiver may have it all the same."""
    delivery.told(
        FileOutcome(
            uri=file.uri,
            outcome=Outcome.REJECTED,
            code=code,
            message=message,
            sop_instance_uid=uid or None,
            doubt=doubt,
        )
    )


def unread(
    delivery: Delivery, file: ResultFile, error: FileRejected | UnreadableInput | OSError
) -> None:
    """Tell that a file is not what was registered (it won't be again), or can't be read (it may be, later)."""
    if isinstance(error, OSError):
        error = UnreadableInput(f"the file can't be read: {error.strerror or error}")
    changed = isinstance(error, FileRejected) and error.code != "missing-file"
    outcome = Outcome.REJECTED if changed else Outcome.RETRY
    delivery.told(FileOutcome(uri=file.uri, outcome=outcome, code=error.code, message=str(error)))


def _readable(delivery: Delivery) -> Iterator[Instance]:
    room = HELD_BYTES
    for file in delivery.task.files or ():
        delivery.checkpoint()
        try:
            with delivery.open(file) as opened:
                now = _stamp(opened)
                header, digest, data = _read(opened.fileno(), now[0], file.uri)
        except (FileRejected, OSError) as error:
            unread(delivery, file, error)
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
                if data is not None:
                    data = data if len(data) <= room else None
                    room -= len(data or b"")
                yield Instance(file, header, now, digest, data)


def _read(descriptor: int, size: int, uri: str) -> tuple[Header, str | None, memoryview | None]:
    """Return a file's header and, if all of the file was read for it, its data set and that one's digest."""
    if size > WINDOW:
        return read_header(partial(os.pread, descriptor), size, uri), None, None
    whole = os.pread(descriptor, size, 0)
    header = read_header(lambda count, offset: whole[offset : offset + count], len(whole), uri)
    data = memoryview(whole)[header.data_offset :]
    return header, hashlib.sha256(data).hexdigest(), data


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
    """Pass each SOP Instance UID once."""
    by_uid: dict[str, list[Instance]] = {}
    for instance in instances:
        by_uid.setdefault(instance.header.sop_instance_uid, []).append(instance)
    for alike in by_uid.values():
        if len(alike) == 1:
            yield alike[0]
        else:
            yield from _of_one_content(delivery, sorted(alike, key=lambda one: one.file.uri))


def _of_one_content(delivery: Delivery, alike: list[Instance]) -> Iterator[Instance]:
    """Pass one of the files that share a SOP Instance UID and skip the rest, if they hold the same.

    If not, all are rejected: nobody can tell which one the UID is meant for, and the receiver would keep one and
    lose the others without a word. That holds as well when a person has the task tried again.
    """
    contents = {}
    for instance in alike:
        try:
            contents[instance] = instance.context, data_set_digest(delivery, instance)
        except (FileRejected, OSError) as error:
            unread(delivery, instance.file, error)
    uid = alike[0].header.sop_instance_uid
    if len(set(contents.values())) > 1:
        for instance in contents:
            reject(
                delivery,
                instance.file,
                "uid-reused",
                f"{len(contents)} files of the task have SOP Instance UID {uid}, with different "
                "content; none of them is sent",
                uid,
            )
        return
    for index, instance in enumerate(contents):
        if index == 0:
            yield instance
            continue
        delivery.told(
            FileOutcome(
                uri=instance.file.uri,
                outcome=Outcome.SKIPPED,
                code="duplicate-instance",
                message="another file of the task holds the very same instance",
                sop_instance_uid=uid,
            )
        )


def _place(instance: Instance) -> tuple[int, str, int, str, int, str]:
    header = instance.header
    return (
        instance.stage,
        header.study_instance_uid,
        _last_if_none(header.series_number),
        header.series_instance_uid,
        _last_if_none(header.instance_number),
        instance.file.uri,
    )


def _last_if_none(number: int | None) -> int:
    return 1 << 31 if number is None else number
