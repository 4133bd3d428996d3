"""Delivers tasks to DIMSE destinations by C-STORE; only the receiver's own answer makes a file delivered."""

import json
import mmap
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pydicom.uid import UID

from clara_results.agents.dicom.association import (
    CONTEXT_LIMIT,
    Association,
    AssociationSettings,
    Context,
    Peer,
)
from clara_results.agents.dicom.connection import AssociationAborted
from clara_results.agents.dicom.plan import Instance, check_unchanged, plan, reject, unread
from clara_results.agents.dicom.status import Kind, Verdict, judge
from clara_results.agents.exporter import Delivery, FileRejected, TaskRejected
from clara_results.agents.secrets import Secrets
from clara_results.domain import names
from clara_results.domain.clock import Clock
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable, LeaseLost, Stopping, UnreadableInput
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FileOutcome

ABORT_LIMIT = 3
"""Times that an instance may break its association before it is rejected, so that it can't hold the rest up; and
different instances in a row that may, before it is the receiver that counts as broken."""
REMEMBERED_TASKS = 1000
"""Tasks whose troublesome instances are remembered from one attempt to the next."""
TICK = 0.1
"""Seconds between the checkpoints of a pause."""
QUICK_RELEASE = 1.0
"""Seconds for the receiver's part in a release when the agent must end, or has lost the task."""
_OUTCOMES = {
    Kind.DELIVERED: Outcome.DELIVERED,
    Kind.RETRY: Outcome.RETRY,
    Kind.REJECTED: Outcome.REJECTED,
}


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
        self._secrets = secrets
        self._destinations = destinations
        self._calling_ae_title = calling_ae_title
        self.settings = settings
        self.clock = clock
        self._troubles: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()

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
        task_id = delivery.task.task_id
        breaks = self._breaks(task_id)
        instances = sorted(plan(delivery), key=lambda one: one.file.uri in breaks)
        _Sending(self, delivery, destination, deque(instances), breaks).run()
        with self._lock:
            self._troubles.pop(task_id, None)

    def _breaks(self, task_id: str) -> Counter[str]:
        """Return how often which files of a task broke an association, or ended an attempt (0).

        Kept from attempt to attempt: a receiver that an instance brings down ends the attempt too, and must not
        meet that instance first, time and again, in each that follows.
        """
        with self._lock:
            breaks = self._troubles.setdefault(task_id, Counter())
            if len(self._troubles) > REMEMBERED_TASKS:
                del self._troubles[next(iter(self._troubles))]
            return breaks

    def associate(self, destination: Destination, contexts: Sequence[Context]) -> Association:
        """Open an association to a destination.

        Raises:
            DestinationUnavailable: It can't be reached, refuses, or does not answer; the message says which.
        """
        peer = Peer.of(destination, self._calling_ae_title, self._secrets)
        return Association(peer, contexts, self.settings, self.clock).open()

    def _destination(self, parameters: str | None) -> Destination:
        known = [item for item in self._destinations() if item.kind == "dicom"]
        listing = ", ".join(item.name for item in known) or "none"
        name = _name(parameters, listing)
        for item in known:
            if names.name_key(item.name) == names.name_key(name):
                return item
        raise TaskRejected(
            f"there is no DICOM destination of the name that the task's data gives; there are: {listing}. "
            "Add it (clara-results destinations add) and retry the task",
            code="unknown-destination",
        )


def _name(parameters: str | None, known: str) -> str:
    """Return the destination that a task's parameters name; ``known`` lists those there are, for the message."""
    if parameters is None:
        what = "the task has no parameters"
    else:
        try:
            name = json.loads(parameters)
        except ValueError:
            name = None
        if isinstance(name, str):
            return name
        # Not shown: they may hold anything, a patient's name too.
        what = (
            "the task's parameters are a whole array, as an older release made them, not one of its elements"
            if isinstance(name, list)
            else "the task's parameters are no JSON string"
        )
    raise TaskRejected(
        f"{what}; they must name a destination. There are: {known}. Register with "
        "--data '[\"NAME\"]', which makes one task for each name",
        code="unusable-parameters",
    )


@dataclass(slots=True)
class _Sending:
    """The sending of one task: what is left, and which instances broke associations."""

    exporter: DicomExporter
    delivery: Delivery
    destination: Destination
    left: deque[Instance]
    breaks: Counter[str]
    broke_in_a_row: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Send all that is left, over one association after the other."""
        while self.left:
            count, contexts = _batch(self.left)
            self.delivery.checkpoint()
            association = self.exporter.associate(self.destination, contexts)
            try:
                broken = self._over(association, count)
            except (LeaseLost, Stopping):
                association.release(QUICK_RELEASE)
                raise
            except BaseException:
                association.release()
                raise
            association.release()
            if broken is not None:
                self._pause(broken)

    def _over(self, association: Association, count: int) -> Instance | None:
        """Send the first ``count`` instances; return the one that broke the association, if one did."""
        for _ in range(count):
            instance = self.left[0]
            if not association.accepts(instance.context):
                self._no_context(instance, association.refused[instance.context])
                self.left.popleft()
                continue
            self.delivery.checkpoint()
            try:
                self._send(association, instance)
            except AssociationAborted as error:
                self.left.popleft()
                self._broke(instance, error)
                return instance
            except DestinationUnavailable:
                self.breaks.setdefault(instance.file.uri, 0)
                raise
            self.left.popleft()
            if association.ended:
                return None
        return None

    def _send(self, association: Association, instance: Instance) -> None:
        try:
            with self.delivery.open(instance.file) as opened:
                check_unchanged(opened, instance)
                # Unmapped when the last view of it goes: a traceback may hold one for a while.
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                data = memoryview(mapped)[instance.header.data_offset :]
                status = association.store(instance.header.sop_instance_uid, instance.context, data)
        except (FileRejected, UnreadableInput, OSError) as error:
            unread(self.delivery, instance.file, error)
            return
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
            clock, settings = self.exporter.clock, self.exporter.settings
            end = clock.monotonic() + settings.pause * self.breaks[instance.file.uri]
            while (left := end - clock.monotonic()) > 0:
                self.delivery.checkpoint()
                time.sleep(min(left, TICK))


def _batch(instances: Iterable[Instance]) -> tuple[int, list[Context]]:
    """Return how many instances, from the first on, one association can negotiate for, and its contexts."""
    contexts: dict[Context, None] = {}
    count = 0
    for instance in instances:
        if instance.context not in contexts and len(contexts) == CONTEXT_LIMIT:
            break
        contexts[instance.context] = None
        count += 1
    return count, list(contexts)


def _named(uid: str) -> str:
    """Return a UID with its name, where it has one."""
    name = UID(uid).name
    return uid if name == uid else f"{name} ({uid})"
