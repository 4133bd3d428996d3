"""The sending of one task over as many associations as it may have, each with a thread of its own."""

import logging
import mmap
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydicom.uid import UID

from clara_results.agents.custody import cleared
from clara_results.agents.dicom.association import (
    CONTEXT_LIMIT,
    Association,
    AssociationSettings,
    Context,
    Peer,
)
from clara_results.agents.dicom.connection import AssociationAborted, Interrupted
from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.part10 import DicomUnreadable, Header
from clara_results.agents.dicom.plan import Instance, check_unchanged, reject, unread
from clara_results.agents.dicom.pool import QUICK_RELEASE, AssociationPool, Negotiated
from clara_results.agents.dicom.status import OUTCOMES, Kind, Verdict, judge
from clara_results.agents.dicom.transcode import CannotTranscode, alternatives, transcode
from clara_results.agents.dicom.verify import Verification, Verifier
from clara_results.agents.exporter import Delivery, FileRejected
from clara_results.agents.order import TICK, SendingOrder
from clara_results.domain.clock import Clock
from clara_results.domain.receivers import Commit, Verify
from clara_results.domain.tasks import Outcome
from clara_results.errors import (
    ClaraResultsError,
    DestinationUnavailable,
    LeaseLost,
    Stopping,
    UnreadableInput,
)
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FileOutcome

ABORT_LIMIT = 3
"""Times that an instance may break its association before it is rejected, so that it can't hold the rest up; and
associations in a row that may break at different instances, before it is the receiver that counts as broken."""
PATIENCE = 5.0
"""Seconds for instances in hand to be answered once the agent is asked to end; then they are given up."""
SHORT_PATIENCE = 2.0
"""The same once the lease is lost, or the task has taken too long; it is enough for releases."""
_TASK_TIMEOUT = "task-timeout"
UNSURE = 0.02
"""Seconds without an instance after which it is worth a look whether the receiver has ended an association."""
RESTED = 1.0
"""Seconds without an instance after which an association may have been ended by the receiver."""
_log = logging.getLogger(__name__)

Encoded = tuple[memoryview, Callable[[int], None]]
"""A data set, and what is called with how many bytes of it have been sent."""
Adopt = Callable[[Association], None]
"""Takes an association before it is opened, so that it can be interrupted."""


class Sending:
    """One task's instances on their way to one receiver.

    Args:
        delivery: The task.
        destination: Where to.
        peer: Who that is.
        pool: Associations that are open already.
        settings: Time limits.
        clock: Where time comes from.
        decoders: What transcoding decodes by.
        breaks: How often which file, by URI, has broken an association; what happens now is added.
    """

    def __init__(
        self,
        delivery: Delivery,
        destination: Destination,
        peer: Peer,
        pool: AssociationPool,
        settings: AssociationSettings,
        clock: Clock,
        decoders: FrameDecoders,
        breaks: Counter[str],
    ) -> None:
        self.decoders = decoders
        self.delivery = delivery
        self.destination = destination
        self.settings = settings
        self.clock = clock
        self.breaks = breaks
        self.peer = peer
        # One that stores; and one that asks back, where that is to be done.
        self._each = 1 if destination.verify is Verify.OFF else 2
        self._pool = pool
        self._deadline = clock.monotonic() + settings.task
        self._changed = threading.Condition()
        self._senders: set[_Sender] = set()
        self._open = 0
        self._room: int | None = None
        self._fault: BaseException | None = None
        self._refused: dict[Context, str] = {}
        self._round = 0
        self._broke_in_a_row: set[str] = set()
        self.answers = 0
        self.answers_at_break = -1

    def run(self, instances: Sequence[Instance]) -> None:
        """Send instances, in the order given, and tell the outcome of each.

        Raises:
            DestinationUnavailable: The receiver as a whole is not to be had, or the task took too long.
            LeaseLost: As the delivery raised it.
            Stopping: As the delivery raised it.
            ServiceUnavailable: Files have to be fetched from the service, which does not answer.
        """
        contexts = _contexts(instances)
        troubled = frozenset(self.breaks)
        with (
            cleared(self.delivery, self.destination, instances) as ready,
            tempfile.TemporaryDirectory(prefix="clara-results-") as scratch,
        ):
            self.scratch = Path(scratch)
            self.contexts = contexts
            self.order = SendingOrder(
                ready,
                lambda one: (one.file.uri in troubled, id(contexts[one.file.uri]), one.stage),
            )
            self._supervise(len(instances))
        if self._fault is not None:
            raise self._fault

    # The task's own thread

    def _supervise(self, count: int) -> None:
        """Have as many senders as the task may have associations, until there is nothing left or one has failed."""
        while self._fault is None and self._staffed(count):
            try:
                self.before_each()
            except (LeaseLost, Stopping, DestinationUnavailable, Interrupted) as error:
                self.fail(error)
        with self._changed:
            self._changed.wait_for(lambda: not self._senders, self._patience())
            for sender in self._senders:
                sender.interrupt()
            self._changed.wait_for(lambda: not self._senders)

    def _staffed(self, count: int) -> bool:
        """Start senders that are missing, wait a moment, and tell whether any is at work."""
        with self._changed:
            wanted = min(self._limit(), self._room or count, count)
            while len(self._senders) < wanted and not self.order.over:
                sender = _Sender(self)
                self._senders.add(sender)
                sender.start()
            self._changed.wait_for(lambda: not self._senders or self._fault is not None, TICK)
            return bool(self._senders)

    def _limit(self) -> int:
        """Return how many senders there may be at this moment."""
        return max(1, self.delivery.associations // self._each)

    def _patience(self) -> float | None:
        """Return the seconds for which instances in hand may still be answered; None: their own time limits hold."""
        if isinstance(self._fault, Stopping):
            return PATIENCE
        expired = getattr(self._fault, "code", None) == _TASK_TIMEOUT
        return SHORT_PATIENCE if expired or isinstance(self._fault, LeaseLost) else None

    # What the senders call

    def before_each(self) -> None:
        """Return if the next instance may go out.

        Raises:
            LeaseLost: As the delivery raised it.
            Stopping: As the delivery raised it.
            DestinationUnavailable: The task has taken too long.
            Interrupted: A sender has failed.
        """
        self.delivery.checkpoint()
        if self._fault is not None:
            raise Interrupted("the sending was ended")
        if self.clock.monotonic() > self._deadline:
            raise DestinationUnavailable(
                f"the task was not sent to {self.destination.name} within {self.settings.task:g} s; what is left "
                "is sent in another attempt (task_timeout)",
                code=_TASK_TIMEOUT,
            )

    def fail(self, error: BaseException) -> None:
        """Have all senders stop at their next instance; ``run`` raises the first error."""
        with self._changed:
            if self._fault is None:
                self._fault = error
            self._changed.notify_all()
        self.order.end()

    def wants(self, sender: "_Sender") -> bool:
        """Tell whether a sender is not one too many; if it is, it does not count any more."""
        with self._changed:
            if len(self._senders) > self._limit():
                self._senders.discard(sender)
            return sender in self._senders

    def does_without(self, sender: "_Sender") -> bool:
        """Tell, when a sender can't have an association, whether others have one; then there are no more than those."""
        with self._changed:
            if self._open:
                self._senders.discard(sender)
                self._room = self._open
            return bool(self._open)

    def left(self, sender: "_Sender") -> None:
        """Note that a sender has ended."""
        with self._changed:
            self._senders.discard(sender)
            self._changed.notify_all()

    def uses(self, more: int) -> None:
        """Note that so many associations more (or, with -1, one less) are open."""
        with self._changed:
            self._open += more
            self.delivery.uses(self._open)

    def part(self, negotiated: Negotiated) -> None:
        """Take an association that its sender has no more use for."""
        fault = self._fault
        if self.order.over and fault is None:
            self._pool.keep(
                negotiated
            )  # it goes on counting: what is kept is told with the task's end
            return
        if isinstance(fault, LeaseLost | Stopping):
            negotiated.association.release(QUICK_RELEASE)
        else:
            negotiated.association.release()
        self.uses(-1)

    def negotiate(self, contexts: Sequence[Context], adopt: Adopt) -> Negotiated:
        """Return an association for contexts: one that is open already, or a fresh one.

        Contexts that the receiver refuses are replaced by what they can be transcoded to, on an association anew.

        Raises:
            DestinationUnavailable: There is none to be had.
            Interrupted: As the association raised it.
        """
        found = self._pool.take(self.destination, contexts)
        if found is None:
            found = self._negotiated(contexts, adopt)
        else:
            adopt(found.association)
            self._refused |= found.refused
        found.round = self._round
        return found

    def _associate(self, contexts: Sequence[Context], adopt: Adopt) -> Association:
        association = Association(self.peer, contexts, self.settings, self.clock)
        adopt(association)
        return association.open()

    def _negotiated(self, contexts: Sequence[Context], adopt: Adopt) -> Negotiated:
        offered = self._offer(contexts)
        association = self._associate(offered, adopt)
        while True:
            self._refused |= association.refused
            better = self._offer(contexts)
            if {*better} <= {*offered}:
                break
            association.release(QUICK_RELEASE)
            offered = better
            association = self._associate(offered, adopt)
        refused = dict(self._refused)
        return Negotiated(
            association, self.destination, refused, frozenset([*contexts, *offered, *refused])
        )

    def _offer(self, contexts: Sequence[Context]) -> Sequence[Context]:
        """Return what to propose: what is not known to be refused, and for the rest what it can be transcoded to."""
        found = dict.fromkeys(each for each in contexts if each not in self._refused)
        if self.destination.transcode:
            ways = [
                [(sop_class, other) for other in alternatives(syntax)]
                for sop_class, syntax in contexts
                if (sop_class, syntax) in self._refused
            ]
            for nth in range(max(map(len, ways), default=0)):  # the best for each class first
                some = (way[nth] for way in ways if nth < len(way))
                found |= dict.fromkeys(each for each in some if each not in self._refused)
        return list(found)[:CONTEXT_LIMIT] or contexts

    def answered(
        self,
        instance: Instance,
        verdict: Verdict,
        size: int,
        transcoded: str | None,
        verification: Verification | None,
    ) -> None:
        """Tell what a receiver's answer means.

        Args:
            instance: What was sent.
            verdict: The answer, judged.
            size: Bytes of its data set.
            transcoded: In words, that it was not sent as it was.
            verification: What asking back found, if that was done.
        """
        outcome, code, words, doubt = _meaning(verdict, verification)
        delivered = outcome is Outcome.DELIVERED
        if delivered and self.destination.commitment is not Commit.OFF:
            outcome = Outcome.AWAITING
        self.answers += 1
        if self._broke_in_a_row:
            self._broke_in_a_row.clear()
        self.delivery.told(
            FileOutcome(
                uri=instance.file.uri,
                outcome=outcome,
                code=code,
                message="; ".join(filter(None, (words, transcoded))) or None,
                sop_instance_uid=instance.header.sop_instance_uid,
                doubt=doubt or (not delivered and self.in_doubt(instance)),
            ),
            size if delivered else 0,
        )

    def in_doubt(self, instance: Instance) -> bool:
        """Tell whether the receiver may have an instance from a sending before that it did not answer."""
        return instance.file.uri in self.breaks

    def broke(self, instance: Instance, negotiated: Negotiated, error: AssociationAborted) -> bool:
        """Note that an association broke at an instance; tell whether that is to be sent again.

        Associations that were open together may break together, when the receiver ends: that counts once.

        Raises:
            DestinationUnavailable: It is the receiver that breaks all of them.
        """
        uri = instance.file.uri
        with self._changed:
            self.breaks[uri] += 1
            self.answers_at_break = self.answers
            if negotiated.round == self._round:
                self._round += 1
                self._broke_in_a_row.add(uri)
            in_a_row = len(self._broke_in_a_row)
        if in_a_row >= ABORT_LIMIT:
            raise DestinationUnavailable(
                f"{self.destination.name} broke the association at {ABORT_LIMIT} different instances in "
                f"a row; the last time: {error}",
                code="association-aborted",
            )
        if self.breaks[uri] < ABORT_LIMIT:
            return True
        reject(
            self.delivery,
            instance.file,
            "aborts-association",
            f"the association broke {ABORT_LIMIT} times while it was sent; the last time: {error}",
            instance.header.sop_instance_uid,
            doubt=True,
        )
        return False


class _Sender:
    """Sends instances over one association after the other, on a thread of its own."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self._negotiated: Negotiated | None = None
        self._association: Association | None = None
        self._verifier: Verifier | None = None
        self._interrupted = False
        self._lock = threading.Lock()
        self._last = 0.0
        task = sending.delivery.task.task_id
        self._thread = threading.Thread(target=self._run, name=f"association {task}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def interrupt(self) -> None:
        """End what it waits for, whatever that is."""
        with self._lock:
            self._interrupted = True
            if self._association is not None:
                self._association.interrupt()

    def _adopt(self, association: Association) -> None:
        with self._lock:
            self._association = association
            if self._interrupted:
                association.interrupt()

    def _run(self) -> None:
        sending = self._sending
        try:
            while (instance := sending.order.take(lambda: sending.wants(self))) is not None:
                sending.before_each()
                self._pause(instance)
                if not self._deliver(instance):
                    break
        except BaseException as error:  # noqa: BLE001  (raised again in the task's own thread)
            sending.fail(error)
        finally:
            try:
                self._leave()
                self._ask_no_more()
            finally:
                sending.left(self)

    def _deliver(self, instance: Instance) -> bool:
        """Send an instance and settle it; False: it is handed back, as there is no association for it here."""
        sending = self._sending
        while True:
            try:
                one = self._associated(sending.contexts[instance.file.uri])
            except DestinationUnavailable as error:
                if not sending.does_without(self):
                    raise
                _log.info("task %s: fewer associations: %s", sending.delivery.task.task_id, error)
                sending.order.hand_back(instance)
                return False
            again: list[Instance] = []
            try:
                self._send(one, instance)
            except AssociationAborted as error:
                if one.rested:  # it had ended before, as it seems; the instance has no part in that
                    sending.breaks.setdefault(instance.file.uri, 0)
                    self._leave()
                    continue
                if sending.broke(instance, one, error):
                    again.append(instance)
            except DestinationUnavailable:
                sending.breaks.setdefault(instance.file.uri, 0)
                raise
            if one.association.ended:
                self._leave()
            sending.order.settle(again)
            return True

    def _associated(self, contexts: Sequence[Context]) -> Negotiated:
        """Return an association for contexts that is open, as far as is known."""
        one = self._negotiated
        now = self._sending.clock.monotonic()
        if one is not None:
            one.rested = one.rested or now - self._last > RESTED
            unsure = one.used and now - self._last > UNSURE
            if one.settled.issuperset(contexts) and not (unsure and not one.association.idles()):
                return one
            self._leave()
        self._sending.uses(+1)
        try:
            self._negotiated = self._sending.negotiate(contexts, self._adopt)
        except BaseException:
            self._sending.uses(-1)
            raise
        self._last = self._sending.clock.monotonic()
        return self._negotiated

    def _leave(self) -> None:
        one, self._negotiated = self._negotiated, None
        if one is not None:
            self._sending.part(one)

    def _send(self, one: Negotiated, instance: Instance) -> None:
        """Send an instance, and tell what became of it."""
        sending = self._sending
        try:
            with self._encoded(one, instance) as (context, (data, passed), transcoded):
                size = len(data)
                uid = instance.header.sop_instance_uid
                status = one.association.store(uid, context, data, passed)
        except CannotBeSent as error:
            reject(
                sending.delivery,
                instance.file,
                error.code,
                str(error),
                instance.header.sop_instance_uid,
                doubt=sending.in_doubt(instance),
            )
        except (FileRejected, UnreadableInput, OSError) as error:
            unread(sending.delivery, instance.file, error)
        else:
            one.used = True
            one.rested = False
            self._last = sending.clock.monotonic()
            verdict = judge(status, sending.destination.statuses or {})
            if verdict.kind is Kind.UNAVAILABLE:
                raise DestinationUnavailable(
                    f"{sending.destination.name} answered {verdict.code}: {verdict.words}",
                    code="out-of-resources",
                )
            verification = self._asked_back(instance, verdict.kind)
            sending.answered(instance, verdict, size, transcoded, verification)

    def _asked_back(self, instance: Instance, kind: Kind) -> Verification | None:
        """Ask the receiver back for an instance, where that is to be done; within the associations that there may be."""
        sending, how = self._sending, self._sending.destination.verify
        if kind is Kind.DUPLICATE:
            how = Verify.FULL
        elif kind is not Kind.DELIVERED or how is Verify.OFF:
            return None
        only = sending.delivery.associations < 2 or sending.destination.verify is Verify.OFF
        if only:
            self._leave()
        if self._verifier is None:
            sending.uses(+1)
            self._verifier = Verifier(
                sending.peer, sending.settings, sending.decoders, sending.scratch
            )
        try:
            with sending.delivery.open(instance.file) as opened:
                check_unchanged(opened, instance)
                return self._verifier.verify(opened, instance.header, how)
        except (FileRejected, OSError) as error:
            return Verification(
                Outcome.RETRY, "verify-unavailable", f"it could not be verified: {error}"
            )
        finally:
            if only:
                self._ask_no_more()

    def _ask_no_more(self) -> None:
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
            self._sending.uses(-1)

    @contextmanager
    def _encoded(
        self, one: Negotiated, instance: Instance
    ) -> Iterator[tuple[Context, Encoded, str | None]]:
        """Give an instance's data set in a transfer syntax that the receiver takes, its context, and what was done to it.

        Raises:
            CannotBeSent: There is no such transfer syntax, or it can't be transcoded to it.
            FileRejected: The file is gone, or not what was read before.
            UnreadableInput: There is no room to transcode it, or it can't be read.
            OSError: It can't be read.
        """
        sop_class, syntax = instance.context
        accepted = one.association.accepts(instance.context)
        if accepted and instance.data is not None:
            yield instance.context, _held(instance.data), None
            return
        sending, out = self._sending, self._sending.scratch / f"{id(self)}.dcm"
        with sending.delivery.open(instance.file) as opened:
            check_unchanged(opened, instance)
            if accepted:
                yield instance.context, _mapped(opened, instance.header), None
                return
            target = self._target(one, instance)
            try:
                header = transcode(
                    opened, instance.header, target, out, sending.decoders, sending.before_each
                )
            except (CannotTranscode, DicomUnreadable) as error:
                raise CannotBeSent(str(error), code=error.code) from error
            except OSError as error:
                raise UnreadableInput(
                    f"it can't be transcoded: {error.strerror or error}"
                ) from error
        try:
            with out.open("rb") as opened:
                told = f"sent as {UID(target).name}; it was {UID(syntax).name}"
                yield (sop_class, target), _mapped(opened, header), told
        finally:
            out.unlink()

    def _target(self, one: Negotiated, instance: Instance) -> str:
        """Return the transfer syntax that an instance has to be transcoded to.

        Raises:
            CannotBeSent: There is none.
        """
        sop_class, syntax = instance.context
        destination = self._sending.destination
        others = alternatives(syntax) if destination.transcode else ()
        for other in others:
            if one.association.accepts((sop_class, other)):
                return other
        tried = "".join(f", nor in {_named(other)}" for other in others)
        why = one.refused.get(instance.context) or one.association.refused[instance.context]
        raise CannotBeSent(
            f"{destination.name} does not take {_named(sop_class)} in {_named(syntax)}{tried}: {why}",
            code="no-presentation-context",
        )

    def _pause(self, instance: Instance) -> None:
        """Wait before an instance that broke its association is sent again with nothing else in between."""
        sending = self._sending
        breaks = sending.breaks.get(instance.file.uri, 0)
        if not breaks or sending.answers_at_break != sending.answers:
            return
        end = sending.clock.monotonic() + sending.settings.pause * breaks
        while (left := end - sending.clock.monotonic()) > 0:
            sending.before_each()
            time.sleep(min(left, TICK))


def _meaning(
    verdict: Verdict, verification: Verification | None
) -> tuple[Outcome, str, str | None, bool]:
    """Return the outcome of an instance, its code, what it means, and whether the receiver may have it all the same."""
    found = verification.outcome if verification is not None else None
    if verdict.kind is Kind.DUPLICATE and found is Outcome.DELIVERED:
        return Outcome.DELIVERED, verdict.code, "the receiver had this very instance already", False
    if verdict.kind is Kind.DELIVERED and verification is not None and found is not Outcome.DELIVERED:  # fmt: skip
        return verification.outcome, verification.code or verdict.code, verification.message, True
    return OUTCOMES[verdict.kind], verdict.code, verdict.words, verdict.doubt


class CannotBeSent(ClaraResultsError):
    """An instance that a receiver can't be given in any transfer syntax that it takes."""

    code = "no-presentation-context"


def _held(data: memoryview) -> Encoded:
    return data, lambda _: None


def _mapped(opened: BinaryIO, header: Header) -> Encoded:
    """Return an open file's data set, mapped, so that it takes no memory; what was sent of it is let go."""
    # Unmapped when the last view of it goes: a traceback may hold one for a while.
    mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    data = memoryview(mapped)[header.data_offset :]
    return data, lambda sent: mapped.madvise(mmap.MADV_DONTNEED, 0, min(sent, len(mapped)))


def _contexts(instances: Iterable[Instance]) -> dict[str, tuple[Context, ...]]:
    """Return for each instance, by its file's URI, what one association is negotiated for with those around it."""
    bundles: list[tuple[dict[Context, None], list[str]]] = []
    for instance in instances:
        full = bundles and len(bundles[-1][0]) == CONTEXT_LIMIT
        if not bundles or (full and instance.context not in bundles[-1][0]):
            bundles.append(({}, []))
        contexts, uris = bundles[-1]
        contexts[instance.context] = None
        uris.append(instance.file.uri)
    return {
        uri: shared for contexts, uris in bundles for shared in [tuple(contexts)] for uri in uris
    }


def _named(uid: str) -> str:
    """Return a UID with its name, where it has one."""
    name = UID(uid).name
    return uid if name == uid else f"{name} ({uid})"
