"""Delivers tasks to DIMSE destinations by C-STORE; only the receiver's own answer makes a file delivered."""

import json
import logging
import mmap
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydicom.uid import UID

from clara_results.agents.dicom.association import (
    CONTEXT_LIMIT,
    Association,
    AssociationSettings,
    Context,
    Peer,
)
from clara_results.agents.dicom.connection import AssociationAborted, PduConnection, connect
from clara_results.agents.dicom.plan import Instance, plan, reject, unopened
from clara_results.agents.dicom.status import Kind, Verdict, judge
from clara_results.agents.exporter import Delivery, FileRejected, TaskRejected
from clara_results.domain import names
from clara_results.domain.clock import Clock
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable, UnreadableInput
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FileOutcome

ABORT_LIMIT = 3
"""Times that an instance may break its association before it is rejected, so that it can't hold the rest up; and
different instances in a row that may, before it is the receiver that counts as broken."""
_OUTCOMES = {
    Kind.DELIVERED: Outcome.DELIVERED,
    Kind.RETRY: Outcome.RETRY,
    Kind.REJECTED: Outcome.REJECTED,
}
_log = logging.getLogger(__name__)


class DicomExporter:
    """An Exporter (see ``agents.exporter``) for destinations of kind ``dicom``."""

    def __init__(
        self,
        destinations: Callable[[], Sequence[Destination]],
        calling_ae_title: str,
        settings: AssociationSettings,
        clock: Clock,
    ) -> None:
        """Make an exporter.

        Args:
            destinations: Gives all destinations that are set up; asked for each task.
            calling_ae_title: The agent's own, for destinations that ask for no other.
            settings: How long to wait for what.
            clock: The time.
        """
        self._destinations = destinations
        self._calling_ae_title = calling_ae_title
        self.settings = settings
        self._clock = clock

    def deliver(self, delivery: Delivery) -> None:
        """Send every DICOM file of a task to the destination that its parameters name.

        Raises:
            TaskRejected: There is no such destination, or the parameters name none.
            DestinationUnavailable: It can't be reached, refuses the association, does not answer, has no room, or
                breaks every association.
            LeaseLost: As the delivery's checkpoint raised it.
            Stopping: As the delivery's checkpoint raised it.
        """
        destination = self._destination(delivery.task.parameters)
        instances = plan(delivery)
        if instances:
            _Sending(self, delivery, destination, instances).run()

    def associate(self, destination: Destination, contexts: Sequence[Context]) -> Association:
        """Open an association to a destination."""
        calling = destination.calling_ae_title or self._calling_ae_title
        return associate(destination, calling, contexts, self.settings, self._clock)

    def _destination(self, parameters: str | None) -> Destination:
        known = [item for item in self._destinations() if item.kind == "dicom"]
        name = _name(parameters)
        for item in known:
            if names.name_key(item.name) == names.name_key(name):
                return item
        listing = ", ".join(item.name for item in known) or "none"
        raise TaskRejected(
            f"there is no DICOM destination {name!r}; there are: {listing}. Add it "
            f"(clara-results destinations add) and retry the task",
            code="unknown-destination",
        )


def associate(
    destination: Destination,
    calling_ae_title: str,
    contexts: Sequence[Context],
    settings: AssociationSettings,
    clock: Clock,
) -> Association:
    """Connect to a destination and negotiate an association.

    Args:
        destination: To whom.
        calling_ae_title: As whom.
        contexts: What is to be stored, at most CONTEXT_LIMIT.
        settings: How long to wait.
        clock: The time.

    Raises:
        DestinationUnavailable: It can't be reached, refuses, or does not answer; the message says which.
    """
    peer = Peer(destination.host, destination.port, destination.ae_title, calling_ae_title)
    opened = connect(destination.host, destination.port, settings.connect, clock)
    return Association(
        PduConnection(opened, settings.dimse, clock), peer, contexts, settings, clock
    )


def _name(parameters: str | None) -> str:
    """Return the destination that a task's parameters name."""
    example = "register with --data '[\"Orthanc\"]', one task for each destination"
    if parameters is None:
        raise TaskRejected(f"the task names no destination: {example}", code="unusable-parameters")
    try:
        name = json.loads(parameters)
    except ValueError:
        name = None
    if isinstance(name, list):
        raise TaskRejected(
            f"the task's parameters are a whole array, as an older release made them: {example}",
            code="unusable-parameters",
        )
    if not isinstance(name, str):
        raise TaskRejected(
            f"the task's parameters are no JSON string that names a destination: {example}",
            code="unusable-parameters",
        )
    return name


@dataclass(slots=True)
class _Sending:
    """The sending of one task: what is left, and which instances broke associations."""

    exporter: DicomExporter
    delivery: Delivery
    destination: Destination
    left: list[Instance]
    breaks: Counter[str] = field(default_factory=Counter)
    broke_in_a_row: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Send all that is left, over one association after the other."""
        while self.left:
            batch, contexts = _batch(self.left)
            self.delivery.checkpoint()
            association = self.exporter.associate(self.destination, contexts)
            try:
                broken = self._over(association, len(batch))
            except BaseException:
                association.release()
                raise
            if broken is None:
                association.release()
            else:
                self._pause(broken)

    def _over(self, association: Association, count: int) -> Instance | None:
        """Send the first ``count`` instances; return the one that broke the association, if one did."""
        for _ in range(count):
            instance = self.left[0]
            if not association.accepts(instance.context):
                self._no_context(instance, association.refused[instance.context])
            else:
                self.delivery.checkpoint()
                try:
                    self._send(association, instance)
                except AssociationAborted as error:
                    self.left.pop(0)
                    self._broke(instance, error)
                    return instance
            self.left.pop(0)
        return None

    def _send(self, association: Association, instance: Instance) -> None:
        header = instance.header
        try:
            with self.delivery.open(instance.file) as opened:
                # Unmapped when the last view of it goes: a traceback may hold one for a while.
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                data = memoryview(mapped)[header.data_offset :]
                status = association.store(header.sop_instance_uid, instance.context, data)
        except FileRejected as error:
            unopened(self.delivery, instance.file, error)
            return
        except UnreadableInput as error:
            raise AssociationAborted(
                str(error)
            ) from error  # opened again, it is found to be changed
        self.broke_in_a_row.clear()
        self._tell(instance, judge(status), len(data))

    def _tell(self, instance: Instance, verdict: Verdict, size: int) -> None:
        if verdict.kind is Kind.UNAVAILABLE:
            raise DestinationUnavailable(
                f"{self.destination.name} answered {verdict.code}: {verdict.words}",
                code="out-of-resources",
            )
        delivered = verdict.kind is Kind.DELIVERED
        self.delivery.told(
            FileOutcome(
                uri=instance.file.uri,
                outcome=_OUTCOMES[verdict.kind],
                code=verdict.code,
                message=verdict.words,
                sop_instance_uid=instance.header.sop_instance_uid,
            ),
            size if delivered else 0,
        )

    def _no_context(self, instance: Instance, why: str) -> None:
        abstract, syntax = instance.context
        reject(
            self.delivery,
            instance.file,
            "no-presentation-context",
            f"{self.destination.name} does not take {_named(abstract)} in {_named(syntax)}: {why}",
            instance.header.sop_instance_uid,
        )

    def _broke(self, instance: Instance, error: AssociationAborted) -> None:
        """Note that an instance broke its association; put it last, or reject it."""
        uri = instance.file.uri
        self.breaks[uri] += 1
        self.broke_in_a_row.add(uri)
        if len(self.broke_in_a_row) >= ABORT_LIMIT:
            raise DestinationUnavailable(
                f"{self.destination.name} broke the association at {ABORT_LIMIT} different instances in "
                f"a row; the last time: {error}",
                code="association-aborted",
            )
        if self.breaks[uri] >= ABORT_LIMIT:
            reject(
                self.delivery,
                instance.file,
                "aborts-association",
                f"the association broke {ABORT_LIMIT} times while it was sent; the last time: {error}",
                instance.header.sop_instance_uid,
            )
        else:
            self.left.append(instance)

    def _pause(self, instance: Instance) -> None:
        """Wait before an instance that broke its association is sent again with nothing else in between."""
        if self.left and self.left[0] is instance:
            pause = self.exporter.settings.pause * self.breaks[instance.file.uri]
            for _ in range(10):
                self.delivery.checkpoint()
                threading.Event().wait(pause / 10)


def _batch(instances: Sequence[Instance]) -> tuple[Sequence[Instance], list[Context]]:
    """Return as many instances from the first on as one association can negotiate for, and its contexts."""
    contexts: dict[Context, None] = {}
    for count, instance in enumerate(instances):
        if instance.context not in contexts and len(contexts) == CONTEXT_LIMIT:
            return instances[:count], list(contexts)
        contexts[instance.context] = None
    return instances, list(contexts)


def _named(uid: str) -> str:
    """Return a UID with its name, where it has one."""
    name = UID(uid).name
    return uid if name == uid else f"{name} ({uid})"
