"""What goes out is noted first: the service knows of each DICOM instance, and of its digest, before it is sent.

So that one SOP Instance UID is one object at a receiver, whatever happens: the receiver's own answer does not tell a
duplicate from another object under the same UID.
"""

import queue
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from pydicom import charset

from clara_results.agents.dicom.part10 import Header
from clara_results.agents.dicom.plan import Instance, data_set_digest, reject, unread
from clara_results.agents.exporter import Delivery, FileRejected
from clara_results.domain.receivers import Clearance
from clara_results.domain.tasks import Outcome
from clara_results.wire.destinations import Destination, address
from clara_results.wire.instances import Announced
from clara_results.wire.tasks import FileOutcome

FIRST_BATCH = 16
"""Instances that are announced first, so that the sending begins soon; then twice as many each time."""
LARGEST_BATCH = 512
BATCH_BYTES = 64 << 20
"""Bytes past which a batch ends: what is to be sent must not wait for the digest of too much else."""
STEP = 0.1
"""Seconds between looks at whether the rest is wanted still."""


class Cleared(Iterator[Instance]):
    """The instances of a task that may go out, in the order given. As a context manager it ends its thread.

    A thread of its own works ahead of the senders: it takes the digests, announces the instances batch by batch, and
    tells the outcome of those that need no sending: the receiver has them (``already-delivered``), or has another
    object under their UID (``uid-reused``). It is at most two batches ahead.

    ``next`` may be called from any thread. It raises what stopped the work: LeaseLost, Stopping or
    ServiceUnavailable.
    """

    def __init__(
        self, delivery: Delivery, destination: Destination, instances: Sequence[Instance]
    ) -> None:
        self._delivery = delivery
        self._receiver = address(destination)
        self._left = deque(instances)
        self._ready: queue.Queue[list[Instance] | BaseException | None] = queue.Queue(maxsize=1)
        self._batch: Iterator[Instance] = iter(())
        self._lock = threading.Lock()
        self._unwanted = threading.Event()
        self._fault: BaseException | None = None
        self._ended = False
        self._thread = threading.Thread(
            target=self._work, name=f"custody {delivery.task.task_id}", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unwanted.set()
        self._thread.join()

    def __next__(self) -> Instance:
        with self._lock:
            while True:
                if self._fault is not None:
                    raise self._fault
                for instance in self._batch:
                    return instance
                if self._ended:
                    raise StopIteration
                found = self._ready.get()
                if found is None:
                    self._ended = True
                elif isinstance(found, BaseException):
                    self._fault = found
                else:
                    self._batch = iter(found)

    def _work(self) -> None:
        size = FIRST_BATCH
        try:
            while self._left and not self._unwanted.is_set():
                self._put(self._clear(self._next_batch(size)))
                size = min(2 * size, LARGEST_BATCH)
            self._put(None)
        except BaseException as error:  # noqa: BLE001  (raised again where the instances are taken)
            self._put(error)

    def _put(self, item: list[Instance] | BaseException | None) -> None:
        while not self._unwanted.is_set():
            try:
                self._ready.put(item, timeout=STEP)
            except queue.Full:
                continue
            return

    def _next_batch(self, size: int) -> dict[str, tuple[Instance, str]]:
        """Return the next instances with their digests, by URI; tell of those whose files can't be read."""
        batch: dict[str, tuple[Instance, str]] = {}
        room = BATCH_BYTES
        while self._left and len(batch) < size and room > 0 and not self._unwanted.is_set():
            instance = self._left.popleft()
            try:
                batch[instance.file.uri] = instance, data_set_digest(self._delivery, instance)
            except (FileRejected, OSError) as error:
                unread(self._delivery, instance.file, error)
            room -= instance.stamp[0]
        return batch

    def _clear(self, batch: Mapping[str, tuple[Instance, str]]) -> list[Instance]:
        """Announce instances; return those that may go out, and tell of the others."""
        if not batch or self._unwanted.is_set():
            return []
        answers = self._delivery.announce(
            self._receiver, [announced(*found) for found in batch.values()]
        )
        return [
            instance for uri, (instance, _) in batch.items() if self._may_go(instance, answers[uri])
        ]

    def _may_go(self, instance: Instance, clearance: Clearance) -> bool:
        if clearance is Clearance.DELIVERED:
            self._delivery.told(
                FileOutcome(
                    uri=instance.file.uri,
                    outcome=Outcome.DELIVERED,
                    code="already-delivered",
                    message="the receiver has this very data set already: it was delivered to it before",
                    sop_instance_uid=instance.header.sop_instance_uid,
                )
            )
        elif clearance is Clearance.REUSED:
            reject(
                self._delivery,
                instance.file,
                "uid-reused",
                "another data set was sent to this receiver under the same SOP Instance UID; it would keep one of "
                "them and lose the other. Give the new object a UID of its own, or let the destination overwrite",
                instance.header.sop_instance_uid,
            )
        return clearance is Clearance.SEND


def cleared(delivery: Delivery, destination: Destination, instances: Sequence[Instance]) -> Cleared:
    """Return the instances of a task that may go out, as they are cleared; to be used as a context manager.

    Args:
        delivery: The task.
        destination: Where they are to go.
        instances: As planned, in the order in which they are to go.
    """
    return Cleared(delivery, destination, instances)


def announced(instance: Instance, sha256: str) -> Announced:
    """Return what the service is told of an instance before it goes out."""
    header = instance.header
    return Announced(
        uri=instance.file.uri,
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid or None,
        study_instance_uid=header.study_instance_uid or None,
        series_instance_uid=header.series_instance_uid or None,
        accession_number=_text(header, header.accession_number),
        patient_id=_text(header, header.patient[0]),
        issuer_of_patient_id=_text(header, header.patient[1]),
        sha256=sha256,
    )


def _text(header: Header, value: bytes) -> str | None:
    """Return a value in its data set's character set (PS3.5 6.1); what can't be decoded is replaced."""
    if not value:
        return None
    names = header.character_set.decode("ascii", "replace").split("\\")
    encodings = [charset.python_encoding.get(name.strip(), "ascii") for name in names]
    if b"\x1b" not in value:
        text = value.decode(encodings[0], "replace")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # best effort: it serves to find the task again
            text = charset.decode_bytes(value, encodings, set(b"\\\r\n\t\f"))
    return text.replace("\0", "\ufffd").strip() or None
