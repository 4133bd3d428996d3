"""The sending of one task: its instances in requests, several at a time, and what became of each."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO

from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.plan import Instance, check_unchanged, unread
from clara_results.agents.dicom.status import OUTCOMES, Kind, Verdict, judge
from clara_results.agents.dicomweb.answer import StoreAnswer, read_answer
from clara_results.agents.dicomweb.connection import (
    Answer,
    AnswerMissing,
    Interrupted,
    WebConnection,
    WebSettings,
)
from clara_results.agents.dicomweb.holdings import Found, Holding, Holdings
from clara_results.agents.dicomweb.multipart import (
    PIECE,
    InstancesMessage,
    Part,
    PartUnreadable,
)
from clara_results.agents.dicomweb.service import WebService, retry_after
from clara_results.agents.exporter import Delivery, FileRejected
from clara_results.agents.order import TICK, SendingOrder
from clara_results.domain.clock import Clock
from clara_results.domain.receivers import Verify
from clara_results.domain.tasks import Outcome
from clara_results.errors import (
    DestinationUnavailable,
    LeaseLost,
    Stopping,
)
from clara_results.wire.destinations import Destination
from clara_results.wire.tasks import FileOutcome

BREAK_LIMIT = 3
"""Times that an instance may break its connection before it is rejected, so that it can't hold the rest up; and
different requests in a row that may, before it is the receiver that counts as broken."""
WAIT_LIMIT = 60.0
"""Seconds that a receiver may ask us to wait (Retry-After) within an attempt; past it the task waits at the service."""
WAITS = 3
"""Times in a row that it may."""
LAST_ANSWERS = 2.0
"""Seconds for the answers to what is under way when the agent must end, or has lost the task."""
STORED = "stored"
ALREADY_STORED = "already-stored"
_WHOLE = frozenset({401, 403, 404, 405, 408, 410, 421, 501, 505, 507})
"""Statuses that concern the receiver as a whole; likewise 3xx."""
_FAILS = frozenset({500, 502, 504})
"""Statuses that an instance may have brought about."""
_DUPLICATES = frozenset({0x0111, 0xB00E})
"""Failure Reasons that say that an instance of that UID is there: PS3.7 C.5.15, and the one that Azure's service has for it."""
_BEING_CREATED = 0xB00F
_TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class Batch:
    """Instances that go in one request.

    Attributes:
        instances: At least one; all of one stage.
        doubt: The receiver may have some of them: it is asked before any of them is sent.
    """

    instances: Sequence[Instance]
    doubt: bool = False

    @property
    def stage(self) -> int:
        """Return after what it is sent."""
        return self.instances[0].stage


class Sending:
    """Sends a task's instances over as many connections as the task may use.

    Args:
        delivery: The task.
        destination: Where it goes.
        service: What is there.
        breaks: How often which files, by URI, have broken a connection; what happens now is added.
        settings: Time limits and sizes.
        clock: The time.
        decoders: Where compressed frames are decoded.
    """

    def __init__(
        self,
        delivery: Delivery,
        destination: Destination,
        service: WebService,
        breaks: Counter[str],
        settings: WebSettings,
        clock: Clock,
        decoders: FrameDecoders,
    ) -> None:
        self._delivery = delivery
        self._destination = destination
        self._service = service
        self._breaks = breaks
        self._settings = settings
        self._clock = clock
        self._holdings = Holdings(delivery, service, decoders)
        self._changed = threading.Condition()
        self._connections: dict[int, WebConnection] = {}
        self._fault: BaseException | None = None
        self._broke_in_a_row: set[str] = set()
        self._doubtful = set(breaks)
        self._waits = 0
        self._not_before = 0.0
        self._went_well = False
        self._deadline = clock.monotonic() + settings.task

    # The connections

    def run(self, source: Iterator[Instance]) -> None:
        """Send all that ``source`` gives, and tell the outcome of each.

        Args:
            source: Instances that may go out, stage after stage; it may raise.

        Raises:
            DestinationUnavailable: The receiver as a whole is not to be had now.
            LeaseLost: As the delivery's checkpoint raised it.
            Stopping: As the delivery's checkpoint raised it.
            ServiceUnavailable: As ``source`` raised it.
        """
        batches = _batches(source, self._settings, self._breaks, self._delivery.task.attempt > 1)
        self._order = SendingOrder(batches, lambda batch: batch.stage)
        while not self._over():
            for connection in list(self._connections.values()):
                connection.expire()
            self._look()
        if self._fault is not None:
            raise self._fault

    def _over(self) -> bool:
        """Open connections that the task may have, wait a moment, and tell whether all is done."""
        with self._changed:
            try:
                while not self._order.over and len(self._connections) < self._delivery.associations:
                    self._begin()
            except DestinationUnavailable as error:  # its secrets
                self._fail(error)
            self._changed.wait_for(lambda: not self._connections, TICK)
            return not self._connections and self._order.over

    def _begin(self) -> None:
        slot = next(n for n in range(len(self._connections) + 1) if n not in self._connections)
        self._connections[slot] = self._service.connection()
        self._delivery.uses(len(self._connections))
        threading.Thread(
            target=self._work,
            args=(slot,),
            name=f"stow {self._delivery.task.task_id} {slot}",
            daemon=True,
        ).start()

    def _look(self) -> None:
        """End all once the task may not be sent any more; answers that are due are waited for a moment."""
        if not isinstance(self._fault, LeaseLost | Stopping):
            try:
                self._delivery.checkpoint()
            except (LeaseLost, Stopping) as error:
                self._fail(error)
        if self._clock.monotonic() > self._deadline:
            words = f"{self._destination.name} did not take all within {self._settings.task:g} s"
            self._fail(DestinationUnavailable(words, code="task-timeout"))
        if isinstance(self._fault, LeaseLost | Stopping):
            with self._changed:
                self._changed.wait_for(lambda: not self._connections, LAST_ANSWERS)
                for connection in self._connections.values():
                    connection.interrupt()

    def _fail(self, error: BaseException) -> None:
        """Have nothing more sent, for this reason; the first one counts, but for an end that was asked for."""
        with self._changed:
            if self._fault is None or isinstance(error, LeaseLost | Stopping):
                self._fault = error
        self._order.end()

    def _work(self, slot: int) -> None:
        """Send batch after batch; the body of a connection's thread."""
        connection = self._connections[slot]
        try:
            while (
                batch := self._order.take(lambda: slot < self._delivery.associations)
            ) is not None:
                again: list[Batch] = []
                try:
                    again = self._send(connection, batch)
                finally:
                    self._order.settle(again)
        except Interrupted:
            pass  # by the fault that is known already
        except BaseException as error:  # noqa: BLE001  (raised again in the task's own thread)
            self._fail(error)
        finally:
            connection.close()
            with self._changed:
                del self._connections[slot]
                self._delivery.uses(len(self._connections))
                self._changed.notify_all()

    # A batch

    def _send(self, connection: WebConnection, batch: Batch) -> list[Batch]:
        """Send a batch and tell what became of it; return what of it has to be sent again."""
        self._wait_for_turn()
        instances = batch.instances
        if batch.doubt:
            instances = self._settled(connection, instances)
        with ExitStack() as opened:
            parts = self._opened(opened, instances)
            sent = [one for one in instances if one.file.uri in parts]
            if not sent:
                return []
            try:
                answer = self._service.store(connection, InstancesMessage(list(parts.values())))
            except PartUnreadable as error:
                return self._unread(sent, error)
            except AnswerMissing as error:
                return self._broke(connection, sent, error)
        return self._answered(connection, answer, sent)

    def _wait_for_turn(self) -> None:
        """Wait as long as the receiver asked for, or as one that broke off is left alone."""
        self._delivery.checkpoint()
        while (left := self._not_before - self._clock.monotonic()) > 0:
            if self._order.over:
                raise Interrupted("nothing more is sent")
            time.sleep(min(left, TICK))
            self._delivery.checkpoint()

    def _opened(self, opened: ExitStack, instances: Sequence[Instance]) -> dict[str, Part]:
        """Open the files of instances, by URI; tell of those that are not what they were."""
        parts = {}
        for instance in instances:
            uri, size = instance.file.uri, instance.stamp[0]
            try:
                with ExitStack() as own:
                    file = own.enter_context(self._delivery.open(instance.file))
                    check_unchanged(file, instance)
                    if size <= PIECE:  # many of them would take many file descriptors
                        file = BytesIO(file.read(size))
                    else:
                        opened.push(own.pop_all())
            except (FileRejected, OSError) as error:
                unread(self._delivery, instance.file, error)
            else:
                parts[uri] = Part(uri, file, size)
        return parts

    def _unread(self, sent: Sequence[Instance], error: PartUnreadable) -> list[Batch]:
        """Tell of a file that changed while it was sent; send the others again, once the receiver was asked."""
        self._doubt(sent)
        for instance in sent:
            if instance.file.uri == error.uri:
                self._tell(instance, Outcome.RETRY, error.code, str(error), doubt=True)
        rest = [one for one in sent if one.file.uri != error.uri]
        return [Batch(rest, doubt=True)] if rest else []

    # What the receiver said

    def _answered(
        self, connection: WebConnection, answer: Answer, sent: Sequence[Instance]
    ) -> list[Batch]:
        """Tell what an answer says of each instance; return what has to be sent again."""
        status = answer.status
        if status in {429, 503}:
            return self._left_alone(answer, sent)
        if status in _FAILS and self._went_well:
            failed = AnswerMissing(str(self._service.unavailable(status)))
            return self._broke(connection, sent, failed)
        if status >= 500 or status in _WHOLE or 300 <= status < 400:
            if status >= 500:
                self._remember(sent)
            raise self._service.unavailable(status)
        said = read_answer(answer.data)
        unmentioned = [one for one in sent if _uid(one) not in said.stored and _uid(one) not in said.failed]  # fmt: skip
        if status < 300 or len(unmentioned) < len(sent):
            with self._changed:
                self._waits = 0
                self._broke_in_a_row.clear()
        no_room = self._mentioned(connection, said, status, sent)
        again = []
        if unmentioned:
            again = self._unmentioned(connection, status, unmentioned, len(sent))
        if no_room is not None:
            raise DestinationUnavailable(
                f"{self._destination.name} answered {no_room.code}: {no_room.words}",
                code="out-of-resources",
            )
        return again

    def _mentioned(
        self, connection: WebConnection, said: StoreAnswer, status: int, sent: Sequence[Instance]
    ) -> Verdict | None:
        """Tell what became of the instances that the answer names; return why there is no room, if it says so."""
        no_room = None
        for instance in sent:
            uid = _uid(instance)
            if uid in said.stored:
                self._stored(connection, instance, said.stored[uid])
            elif uid in said.failed:
                verdict = self._failed(connection, instance, said.failed[uid], status)
                no_room = verdict or no_room
        return no_room

    def _stored(self, connection: WebConnection, instance: Instance, warning: int | None) -> None:
        """Tell of an instance that the receiver says it has stored; ask back, if that is wanted."""
        verdict = judge(warning or 0, self._destination.statuses or {})
        stored = judge(warning or 0).kind is Kind.DELIVERED
        if stored and verdict.kind is not Kind.DELIVERED:
            self._tell(instance, OUTCOMES[verdict.kind], verdict.code, verdict.words, doubt=True)
            return
        wanted = self._destination.verify
        if not stored:  # a failure's reason: whether it is there, and ours, is to be seen
            wanted = Verify.FULL
        if wanted is not Verify.OFF:
            found = self._holdings.compared(connection, instance, wanted)
            if found.holding is not Holding.OURS:
                self._not_confirmed(instance, found)
                return
        self._delivered(instance, verdict.code if warning else STORED, verdict.words)

    def _not_confirmed(self, instance: Instance, found: Found) -> None:
        if found.holding is Holding.OTHER:
            self._differs(instance, found, doubt=True)  # it may be ours, and damaged
        elif not found.offered:
            self._doubt([instance])
            raise DestinationUnavailable(
                f"{self._destination.name} can't be asked back for what it stored (WADO-RS): have it allowed there, or "
                "set the destination's verify to off",
                code="verify-unavailable",
            )
        else:
            what, code = "can't be asked back for it", "verify-unavailable"
            if found.holding is Holding.ABSENT:
                what, code = "does not have it", "verify-absent"
            words = f"{self._destination.name} answered that it stored the instance, but {what}"
            self._tell(instance, Outcome.RETRY, code, words, doubt=True)

    def _failed(
        self, connection: WebConnection, instance: Instance, reason: int | None, status: int
    ) -> Verdict | None:
        """Tell of an instance that the receiver says it has not stored; return the reason if it is want of room."""
        if reason is None:
            words = "the receiver did not store it, and gave no reason"
            self._tell(instance, Outcome.REJECTED, f"http-{status}", words)
            return None
        if reason == _BEING_CREATED:
            words = "the receiver is storing an instance of that UID for somebody else just now"
            self._tell(instance, Outcome.RETRY, f"{reason:04X}", words, doubt=True)
            return None
        verdict = judge(reason, self._destination.statuses or {})
        if verdict.kind is Kind.UNAVAILABLE:
            return verdict
        if reason in _DUPLICATES or verdict.doubt or verdict.kind is Kind.DELIVERED:
            self._duplicate(connection, instance, verdict)
        else:
            self._tell(instance, OUTCOMES[verdict.kind], verdict.code, verdict.words)
        return None

    def _duplicate(self, connection: WebConnection, instance: Instance, verdict: Verdict) -> None:
        """Tell of an instance that was not taken, and may be there already: delivered if it is, and is ours."""
        found = self._holdings.compared(connection, instance, Verify.FULL)
        if found.holding is Holding.OURS:
            self._there_already(instance)
        elif found.holding is Holding.OTHER:
            self._differs(instance, found)
        else:
            words = "the receiver did not take it: it says that it has one of this UID already, and does not show it"
            outcome = Outcome.RETRY if verdict.kind is Kind.RETRY else Outcome.REJECTED
            self._tell(instance, outcome, verdict.code, words, doubt=True)

    def _unmentioned(
        self, connection: WebConnection, status: int, left: Sequence[Instance], count: int
    ) -> list[Batch]:
        """Tell of instances that the answer to ``count`` does not name; return those to be tried in smaller requests."""
        if status == _TOO_LARGE:
            if len(left) > 1:
                return _halves(left)
            words = "the receiver takes no request of this size, and it is alone in it"
            self._tell(left[0], Outcome.REJECTED, "too-large", words)
            return []
        self._holdings.forget(left)
        absent = self._settled(connection, left)
        if status >= 300 and len(left) > 1:
            return _halves(absent)
        if status < 300 and len(absent) == count and (count > 1 or not self._went_well):
            # As Orthanc 1.10 answers whose disk is full.
            self._remember(absent)
            raise DestinationUnavailable(
                f"{self._destination.name} answered {status} and stored nothing of the request: look at its log, and "
                "whether it has room",
                code="nothing-stored",
            )
        for instance in absent:
            if status >= 300:
                self._tell(instance, Outcome.REJECTED, f"http-{status}", _refused(status))
            else:
                words = f"{self._destination.name} answered {status}, and does not say that it stored it"
                self._tell(instance, Outcome.RETRY, "not-stored", words, doubt=True)
        return []

    def _left_alone(self, answer: Answer, sent: Sequence[Instance]) -> list[Batch]:
        """Send again once the receiver has had its rest, if it says how long that is to be, and not too long."""
        seconds = retry_after(answer, self._clock.now())
        with self._changed:
            now = self._clock.monotonic()
            self._waits += now >= self._not_before  # else it is another answer of the same time
            if seconds is None or seconds > WAIT_LIMIT or self._waits > WAITS:
                raise self._service.unavailable(answer.status)
            self._not_before = max(self._not_before, now + seconds)
        if answer.status == 503:
            self._doubt(sent)
        return [Batch(sent, doubt=answer.status == 503)]

    # Doubt

    def _broke(
        self, connection: WebConnection, sent: Sequence[Instance], error: AnswerMissing
    ) -> list[Batch]:
        """See what the receiver has of a request that broke its connection; return the rest, one by one."""
        self._remember(sent)
        first = sent[0].file.uri
        with self._changed:
            self._broke_in_a_row.add(first)
            in_a_row = len(self._broke_in_a_row)
            rested = self._clock.monotonic() + self._settings.pause
            self._not_before = max(self._not_before, rested)
        if in_a_row >= BREAK_LIMIT:
            raise DestinationUnavailable(
                f"{self._destination.name} broke off {BREAK_LIMIT} different requests in a row; the last time: {error}",
                code="connection-broken",
            )
        if len(sent) == 1:
            self._breaks[first] += 1
        self._wait_for_turn()
        self._holdings.forget(sent)
        absent = self._settled(connection, sent)
        if absent and len(sent) == 1 and self._breaks[first] >= BREAK_LIMIT:
            words = f"sending it failed {BREAK_LIMIT} times; the last time: {error}"
            self._tell(absent[0], Outcome.REJECTED, "breaks-connection", words, doubt=True)
            return []
        return [Batch([one]) for one in absent]

    def _remember(self, sent: Sequence[Instance]) -> None:
        """Have these go last, each alone, in this attempt and the next: one of them may be what breaks the receiver."""
        for instance in sent:
            self._breaks.setdefault(instance.file.uri, 0)
        self._doubt(sent)

    def _doubt(self, instances: Sequence[Instance]) -> None:
        """Note that the receiver may have these by now, whatever it says of them later; ask it anew."""
        self._doubtful.update(instance.file.uri for instance in instances)
        self._holdings.forget(instances)

    def _settled(self, connection: WebConnection, instances: Sequence[Instance]) -> list[Instance]:
        """Ask what the receiver has of instances, tell of what it has, and return the rest."""
        left = []
        for instance in instances:
            found = Found(Holding.UNKNOWN)
            listed = self._holdings.listed(connection, instance)
            if listed:
                found = self._holdings.compared(connection, instance, Verify.FULL)
            if listed is not False and found.holding is Holding.UNKNOWN:
                self._doubtful.add(instance.file.uri)
            if found.holding is Holding.OURS:
                self._there_already(instance)
            elif found.holding is Holding.OTHER and not self._destination.overwrite:
                self._differs(instance, found)
            else:
                left.append(instance)
        return left

    # Outcomes

    def _delivered(self, instance: Instance, code: str, words: str | None) -> None:
        self._went_well = True
        self._tell(instance, Outcome.DELIVERED, code, words, size=instance.stamp[0])

    def _there_already(self, instance: Instance) -> None:
        words = "the receiver has it already: it was fetched back and is the same"
        self._delivered(instance, ALREADY_STORED, words)

    def _differs(self, instance: Instance, found: Found, *, doubt: bool = False) -> None:
        words = (
            f"{self._destination.name} has something else under this SOP Instance UID; it differs in "
            f"{', '.join(found.differs)}"
        )
        self._tell(instance, Outcome.REJECTED, "verify-mismatch", words, doubt=doubt)

    def _tell(
        self,
        instance: Instance,
        outcome: Outcome,
        code: str,
        words: str | None,
        *,
        size: int = 0,
        doubt: bool | None = None,
    ) -> None:
        if doubt is None:
            doubt = outcome is not Outcome.DELIVERED and instance.file.uri in self._doubtful
        told = FileOutcome(
            uri=instance.file.uri,
            outcome=outcome,
            code=code,
            message=words,
            sop_instance_uid=_uid(instance),
            doubt=doubt,
        )
        self._delivery.told(told, size)


def _batches(
    source: Iterator[Instance], settings: WebSettings, alone: Mapping[str, int], doubt: bool
) -> Iterator[Batch]:
    """Yield instances in the order in which they come, in batches of one stage, as large as settings allow.

    Those of files that got in the way before are alone in theirs.
    """
    batch: list[Instance] = []
    size = 0
    for instance in source:
        size += instance.stamp[0]
        if batch and (
            size > settings.batch_bytes
            or len(batch) == settings.batch_files
            or instance.stage != batch[0].stage
            or instance.file.uri in alone
            or batch[0].file.uri in alone
        ):
            yield Batch(batch, doubt)
            batch, size = [], instance.stamp[0]
        batch.append(instance)
    if batch:
        yield Batch(batch, doubt)


def _uid(instance: Instance) -> str:
    return instance.header.sop_instance_uid


def _halves(instances: Sequence[Instance]) -> list[Batch]:
    half = (len(instances) + 1) // 2
    return [Batch(part) for part in (instances[:half], instances[half:]) if part]


def _refused(status: int) -> str:
    words = {
        400: "the receiver says that the request is bad",
        406: "the receiver gives no answer in DICOM JSON",
        409: "the receiver did not store it, and gave no reason",
        415: "the receiver does not take it: not of this SOP class, or not in this transfer syntax",
    }
    return words.get(status, f"the receiver refused it with status {status}, and gave no reason")
