"""Which data set was sent to which receiver under which SOP Instance UID, and what people find results by.

A receiver that is sent two different objects under one UID may answer success to both and keep the first. So an
instance is announced, with the digest of its data set, before anything of it goes out; that stands until the receiver is
known not to have it. What is known goes by the receiver's own address: a destination's name may move to another.
"""

import re
from collections.abc import Sequence

import sqlalchemy as sa

from clara_results.domain.clock import Clock
from clara_results.domain.receivers import Clearance
from clara_results.domain.tasks import Outcome
from clara_results.errors import FieldError, InvalidInput
from clara_results.service import destinations, views
from clara_results.store import instances as store
from clara_results.store.statements import Row
from clara_results.wire.codec import camel
from clara_results.wire.instances import Announced, Cleared
from clara_results.wire.tasks import FileOutcome

ANNOUNCED_LIMIT = 1000
TEXT_LIMIT = 255
"""Characters of a UID, an accession number or a patient's id that are kept."""
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
_REFUSED = {Outcome.REJECTED, Outcome.RETRY}


class Custody:
    """Keeps account of what receivers were sent."""

    def __init__(self, clock: Clock, *, patient_columns: bool) -> None:
        """Make one.

        Args:
            clock: The time.
            patient_columns: Whether accession numbers and patients' ids are kept.
        """
        self._clock = clock
        self._patient_columns = patient_columns

    def announce(
        self, connection: sa.Connection, task: Row, receiver: int, announced: Sequence[Announced]
    ) -> list[Cleared]:
        """Note what a task is about to send to a receiver; return what of it may go out.

        Raises:
            InvalidInput: A file is none of the task's, a UID is announced twice, or a value is none.
        """
        _check(announced)
        self._describe(connection, task, announced)
        destination = destinations.setting(connection, task.destination)
        overwrite = destination is not None and destination.overwrite
        known = store.known(connection, receiver, [one.sop_instance_uid for one in announced])
        clearances = [
            _clearance(one, known.get(one.sop_instance_uid), task, overwrite=overwrite)
            for one in announced
        ]
        now = self._clock.now()
        store.announce(
            connection,
            [
                {
                    "receiver": receiver,
                    "sop_instance_uid": one.sop_instance_uid,
                    "sha256": one.sha256,
                    "task_id": task.task_id,
                    "attempt": task.attempt,
                    "doubtful": _doubtful(known.get(one.sop_instance_uid), task),
                    "updated_at": now,
                }
                for one, clearance in zip(announced, clearances, strict=True)
                if clearance is Clearance.SEND
            ],
        )
        return [
            Cleared(uri=one.uri, clearance=clearance)
            for one, clearance in zip(announced, clearances, strict=True)
        ]

    def told(self, connection: sa.Connection, task: Row, outcomes: Sequence[FileOutcome]) -> None:
        """Take note of what became of instances that a task announced."""
        ended = [
            one
            for one in outcomes
            if one.sop_instance_uid
            and (one.outcome is Outcome.DELIVERED or (one.outcome in _REFUSED and not one.doubt))
        ]  # fmt: skip
        if not ended or task.receiver is None:
            return
        delivered, refused = [], []
        for one in sorted(ended, key=lambda one: one.sop_instance_uid or ""):
            which = {
                "at_receiver": task.receiver,
                "at_sop_instance_uid": one.sop_instance_uid,
                "at_task_id": task.task_id,
            }
            if one.outcome is Outcome.DELIVERED:
                delivered.append(which | {"updated_at": self._clock.now()})
            else:
                refused.append(which)
        store.note_delivered(connection, delivered)
        store.forget(connection, refused)

    def _describe(
        self, connection: sa.Connection, task: Row, announced: Sequence[Announced]
    ) -> None:
        series: dict[tuple[str, ...], int] = {}
        rows = []
        for one in announced:
            subject = tuple(
                views.cut(getattr(one, name), TEXT_LIMIT) or "" for name in store.SUBJECT
            )
            if not self._patient_columns:
                subject = (*subject[: -len(store.PATIENT)], *[""] * len(store.PATIENT))
            if subject not in series:
                series[subject] = store.series_made(connection, task.id, subject)
            rows.append(
                {
                    "at_task": task.id,
                    "at_uri": one.uri,
                    "sop_instance_uid": one.sop_instance_uid,
                    "sop_class_uid": views.cut(one.sop_class_uid, TEXT_LIMIT),
                    "series": series[subject],
                }
            )
        if store.describe(connection, rows) != len(rows):
            raise InvalidInput(
                f"some of the files announced are none of task {task.task_id}", code="unknown-file"
            )


def _clearance(one: Announced, known: Row | None, task: Row, *, overwrite: bool) -> Clearance:
    if known is None or overwrite:
        return Clearance.SEND
    if known.sha256 != one.sha256:
        return Clearance.REUSED
    if known.delivered and task.redelivery_of is None:
        return Clearance.DELIVERED
    return Clearance.SEND


def _doubtful(known: Row | None, task: Row) -> bool:
    """Tell whether the receiver may have something under a UID from before this attempt."""
    if known is None:
        return False
    same_attempt = known.task_id == task.task_id and known.attempt == task.attempt
    return bool(known.doubtful) if same_attempt else True


def _check(announced: Sequence[Announced]) -> None:
    faults = []
    if len(announced) > ANNOUNCED_LIMIT:
        faults.append(
            FieldError("instances", f"more than {ANNOUNCED_LIMIT}: announce them in parts")
        )
    faults += [
        FieldError("instances", f"a {camel(name)} is there twice")
        for name in ("uri", "sop_instance_uid")
        if len({getattr(one, name) for one in announced}) < len(announced)
    ]
    for number, one in enumerate(announced):
        place = f"instances.{number}"
        if not _DIGEST.fullmatch(one.sha256):
            faults.append(FieldError(f"{place}.sha256", "not 64 lower-case hexadecimal digits"))
        if not _UID.fullmatch(one.sop_instance_uid):
            faults.append(FieldError(f"{place}.sopInstanceUid", "not 1 to 64 digits and dots"))
    if faults:
        raise InvalidInput(f"{faults[0].field}: {faults[0].message}", errors=faults)
