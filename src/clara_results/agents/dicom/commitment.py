"""Has receivers commit themselves to keep what they stored: the SCU of storage commitment (PS3.4 Annex J).

What is to be asked for, and under which transaction UID, comes from the service, and what a receiver says goes there, so
that it matters to nobody which agent asks and which one hears the answer. A receiver says it by N-EVENT-REPORT, over the
association that it was asked on or over one that it opens to our listener, at any time. Its report is answered with
success only when the service has it: one that is not is the receiver's to repeat.
"""

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pydicom.dataset import Dataset
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association

from clara_results.agents.dicom.association import VERIFICATION, AssociationSettings, Peer
from clara_results.agents.dicom.dimse import NothingAccepted, application_entity, associate
from clara_results.agents.exporter import TaskRejected
from clara_results.agents.named import named_destination
from clara_results.agents.secrets import Secrets
from clara_results.client import ResultsClient
from clara_results.domain.receivers import DICOM
from clara_results.errors import (
    ClaraResultsError,
    DestinationUnavailable,
    NotFound,
    ServiceUnavailable,
    UnreadableInput,
)
from clara_results.wire.destinations import Destination
from clara_results.wire.instances import (
    CommitmentFailure,
    CommitmentRequest,
    CommitmentResult,
    FailedInstance,
)

PUSH_MODEL = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class (PS3.4 J.3)."""
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Its one, well-known instance (PS3.4 J.3.5)."""
POLL = 1.5
"""Seconds between questions for what is to be asked for."""
PAUSE = 5.0
"""Seconds after the service could not be asked."""
ASKING = 4
"""Receivers asked at the same time."""
FAREWELL = 2.0
"""Seconds that an agent's end waits for receivers that are being asked."""
LINGER = 2.0
"""Seconds for which the association stays open for the receiver's report, where there is a listener to report to."""
LINGER_ALONE = 30.0
"""The same, where there is none."""

if TYPE_CHECKING:
    from pynetdicom.transport import ThreadedAssociationServer

_REQUEST_COMMITMENT = 1  # Action Type ID, PS3.4 J.3.2.1.1
_ALL_COMMITTED, _SOME_FAILED = 1, 2  # Event Type IDs, PS3.4 J.3.3.1.1
_SUCCESS = 0x0000
_PROCESSING_FAILURE, _NO_SUCH_EVENT, _INVALID_ARGUMENT = 0x0110, 0x0113, 0x0115  # PS3.7 Annex C
_UNSUPPORTED = {
    0x0118,
    0x0122,
    0x0211,
}  # no such class, class not supported, operation not recognized
_STATUSES = {
    0x0110: "processing failure",
    0x0112: "no such SOP instance",
    0x0118: "no such SOP class",
    0x0122: "SOP class not supported",
    0x0123: "no such action",
    0x0124: "not authorized",
    0x0211: "unrecognized operation",
    0x0213: "resource limitation",
}
_log = logging.getLogger(__name__)


class ListenerFailed(UnreadableInput):
    """The address that we are to listen on can't be had; the message says why."""

    code = "listener-failed"


class Commitments:
    """Asks for commitments and takes what receivers say, until it is left as a context manager.

    Args:
        agent: Our name, which is our AE title.
        client: To the service.
        destinations: Gives all destinations that are set up.
        settings: How long to wait.
        secrets: What destinations need to be reached.
    """

    def __init__(
        self,
        agent: str,
        client: ResultsClient,
        destinations: Callable[[], Sequence[Destination]],
        settings: AssociationSettings,
        secrets: Secrets,
        *,
        poll: float = POLL,
        linger: float | None = None,
    ) -> None:
        self._agent = agent
        self._client = client
        self._destinations = destinations
        self._settings = settings
        self._secrets = secrets
        self._poll = poll
        self._linger = linger
        self._stop = threading.Event()
        self._free = threading.Semaphore(ASKING)
        self._asking: set[threading.Thread] = set()
        self._poller = threading.Thread(target=self._run, name="commitments", daemon=True)
        self._server: ThreadedAssociationServer | None = None

    def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Take reports over associations that receivers open to us; C-ECHO too.

        Whatever called AE title they use is taken, as destinations may want us to go by another than our own, and
        who knows a transaction UID was asked under it.

        Args:
            host: Address to listen on.
            port: TCP port; 0: any free one.
            tls: How connections are secured; None: not.

        Returns:
            The port.

        Raises:
            ListenerFailed: It can't be listened there.
        """
        entity = application_entity(self._agent, self._settings)
        entity.add_supported_context(VERIFICATION)
        # They are its SCP on an association that they open; some leave it to us to know that.
        entity.add_supported_context(PUSH_MODEL, scu_role=False, scp_role=True)
        try:
            server = entity.start_server(
                (host, port),
                block=False,
                ssl_context=tls,
                evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._reported)],
            )
        except OSError as cause:
            raise ListenerFailed(
                f"can't listen on {host} port {port} for storage commitment: "
                f"{(cause.strerror or str(cause)).lower()}"
            ) from cause
        if server is None or server.socket is None:
            raise ListenerFailed(f"can't listen on {host} port {port} for storage commitment")
        self._server = server
        found = int(server.socket.getsockname()[1])
        _log.info("%s takes storage commitment reports on %s port %d", self._agent, host, found)
        return found

    def __enter__(self) -> Self:
        self._poller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End. What is being asked now is given a moment; what is then unheard is asked for again, by any agent."""
        self._stop.set()
        if self._server is not None:
            self._server.shutdown()
        self._poller.join(FAREWELL)
        for thread in tuple(self._asking):
            thread.join(FAREWELL / ASKING)

    # Asking

    def _run(self) -> None:
        while not self._stop.is_set():
            wait = self._poll
            try:
                wait = self._take()
            except ServiceUnavailable as error:
                _log.warning("commitments that are due can't be asked for: %s", error)
                wait = PAUSE
            except ClaraResultsError as error:
                _log.error("commitments that are due can't be asked for: %s", error)
                wait = PAUSE
            except Exception:  # noqa: BLE001  (outermost loop of the thread: commitments must go on being asked for)
                _log.exception("asking for commitments failed")
                wait = PAUSE
            self._stop.wait(wait)

    def _take(self) -> float:
        """Take one commitment that is due, if a thread is free to ask for it; return how long to wait then."""
        if not self._free.acquire(timeout=self._poll):
            return 0
        taken = False
        try:
            for request in self._client.commitments_due(self._agent, size=1):
                thread = threading.Thread(
                    target=self._ask,
                    args=(request,),
                    name=f"commitment {request.task_id}",
                    daemon=True,
                )
                self._asking.add(thread)  # before it runs: at its end it takes itself out
                try:
                    thread.start()
                except RuntimeError:
                    self._asking.discard(thread)
                    raise
                taken = True
        finally:
            if not taken:
                self._free.release()
        return 0 if taken else self._poll

    def _ask(self, request: CommitmentRequest) -> None:
        try:
            failure = self._asked(request)
            if failure is not None:
                _log.warning("task %s: no commitment: %s", request.task_id, failure.message)
                self._client.commitment_failed(request.transaction_uid, failure)
        except ClaraResultsError as error:
            # The service takes the receiver to be silent, and has it asked again.
            _log.warning("task %s: %s", request.task_id, error)
        except Exception:  # noqa: BLE001  (outermost loop of the thread: what is silent is asked again)
            _log.exception("task %s: asking for the commitment failed", request.task_id)
        finally:
            self._asking.discard(threading.current_thread())
            self._free.release()

    def _asked(self, request: CommitmentRequest) -> CommitmentFailure | None:
        """Ask a receiver; return why that failed."""
        heard = threading.Event()
        try:
            destination = named_destination(request.parameters, self._destinations(), DICOM)
            peer = Peer.of(destination, self._agent, self._secrets)
            association = associate(
                peer,
                self._settings,
                [build_context(PUSH_MODEL)],
                [build_role(PUSH_MODEL, scu_role=True, scp_role=False)],
                [(evt.EVT_N_EVENT_REPORT, self._reported_here, [request.transaction_uid, heard])],
            )
        except NothingAccepted as error:
            message = f"it does not offer storage commitment: {error}"
            return CommitmentFailure(code=error.code, message=message, unsupported=True)
        except (DestinationUnavailable, TaskRejected) as error:
            return CommitmentFailure(code=error.code, message=str(error))
        try:
            failure = _request(association, request, destination.name)
            if failure is None:
                self._wait_for(heard, association)
            return failure
        finally:
            if association.is_established:
                association.release()

    def _wait_for(self, heard: threading.Event, association: Association) -> None:
        """Give the receiver a while to report over the association that it was asked on."""
        seconds = self._linger
        if seconds is None:
            seconds = LINGER if self._server is not None else LINGER_ALONE
        step = 0.05
        for _ in range(round(seconds / step)):
            if heard.wait(step) or self._stop.is_set() or not association.is_established:
                return

    # Hearing (PS3.4 J.3.3)

    def _reported_here(
        self, event: evt.Event, transaction_uid: str, heard: threading.Event
    ) -> tuple[int, None]:
        answer = self._reported(event)
        if answer == (_SUCCESS, None) and event.event_information.get("TransactionUID") == transaction_uid:  # fmt: skip
            heard.set()
        return answer

    def _reported(self, event: evt.Event) -> tuple[int, None]:
        """Tell the service what a receiver reports, and return the status to answer with (PS3.7 10.1.1.1.8)."""
        if event.event_type not in {_ALL_COMMITTED, _SOME_FAILED}:
            return _NO_SUCH_EVENT, None
        try:
            transaction_uid, result = _read(event.event_information)
        except (AttributeError, ValueError, TypeError):
            _log.warning("a storage commitment report that can't be read was refused")
            return _INVALID_ARGUMENT, None
        try:
            self._client.committed(transaction_uid, result)
        except NotFound:
            _log.warning("a report of storage commitment %s, which was never asked for", transaction_uid)  # fmt: skip
            return _INVALID_ARGUMENT, None
        except ClaraResultsError as error:
            _log.warning("a report of storage commitment %s is refused for now: %s", transaction_uid, error)  # fmt: skip
            return _PROCESSING_FAILURE, None
        _log.info(
            "storage commitment %s: %d committed, %d failed",
            transaction_uid,
            len(result.committed),
            len(result.failed),
        )
        return _SUCCESS, None


def _request(
    association: Association, request: CommitmentRequest, name: str
) -> CommitmentFailure | None:
    """Send the N-ACTION (PS3.4 J.3.2) and return why it failed, if it did."""
    information = Dataset()
    information.TransactionUID = request.transaction_uid
    information.ReferencedSOPSequence = []
    for instance in request.instances:
        item = Dataset()
        item.ReferencedSOPClassUID = instance.sop_class_uid
        item.ReferencedSOPInstanceUID = instance.sop_instance_uid
        information.ReferencedSOPSequence.append(item)
    try:
        status, _ = association.send_n_action(
            information, _REQUEST_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE
        )
    except (
        RuntimeError,
        ValueError,
    ):  # it ended just now; or the receiver wants to be the one who asks
        status = Dataset()
    code = status.get("Status")
    if code is None:
        return CommitmentFailure(
            code="no-answer",
            message=f"{name} was asked for its commitment, and broke the association or did not answer",
        )
    if code == _SUCCESS:
        return None
    words = _STATUSES.get(code, "a status of its own")
    return CommitmentFailure(
        code=f"{code:04X}",
        message=f"{name} does not take the question for its commitment: it answered {code:04X} ({words})",
        unsupported=code in _UNSUPPORTED,
    )


def _read(information: Dataset) -> tuple[str, CommitmentResult]:
    """Return a report's transaction UID and what it says (PS3.4 Table J.3-2).

    Raises:
        AttributeError, ValueError, TypeError: It is no such report.
    """
    failed = [
        FailedInstance(
            sop_instance_uid=str(item.ReferencedSOPInstanceUID), reason=int(item.FailureReason)
        )
        for item in information.get("FailedSOPSequence") or ()
    ]
    refused = {one.sop_instance_uid for one in failed}
    committed = [
        str(item.ReferencedSOPInstanceUID)
        for item in information.get("ReferencedSOPSequence") or ()
    ]
    result = CommitmentResult(
        committed=[uid for uid in committed if uid not in refused], failed=failed
    )
    return str(information.TransactionUID), result
