"""Storage commitment with an archive that does what a test tells it to; pynetdicom is its other side."""

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION

from clara_results.agents.dicom.association import VERIFICATION, AssociationSettings
from clara_results.agents.dicom.commitment import (
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    Commitments,
    ListenerFailed,
)
from clara_results.agents.secrets import Secrets
from clara_results.agents.tls import server_tls_context
from clara_results.client import ResultsClient
from clara_results.errors import NotFound, ServiceUnavailable
from clara_results.wire.destinations import Destination, Tls
from clara_results.wire.instances import (
    CommitmentFailure,
    CommitmentRequest,
    CommitmentResult,
    FailedInstance,
    InstanceReference,
)
from clara_results.wire.tasks import Task
from tests.conftest import eventually
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Mapping

CT = "1.2.840.10008.5.1.4.1.1.2"
UIDS = ["1.2.3.1", "1.2.3.2"]
SETTINGS = AssociationSettings(connect=2, association=5, dimse=5)


class FakeService(ResultsClient):
    """The service's part in storage commitment, in memory.

    Attributes:
        committed_results: What it was told, in order.
        failures: The failures that it was told.
        away: It can't be reached.
        told: Set whenever it is told something.
    """

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self._due: list[CommitmentRequest] = []
        self._known: set[str] = set()
        self.committed_results: list[tuple[str, CommitmentResult]] = []
        self.failures: list[tuple[str, CommitmentFailure]] = []
        self.away = False

    def add(self, transaction_uid: str, parameters: str | None = '"PACS"') -> None:
        """Have a commitment due."""
        self._known.add(transaction_uid)
        instances = [InstanceReference(sop_class_uid=CT, sop_instance_uid=uid) for uid in UIDS]
        self._due.append(
            CommitmentRequest(
                transaction_uid=transaction_uid,
                task_id="task-1",
                parameters=parameters,
                instances=instances,
            )
        )

    def commitments_due(self, agent: str, size: int = 10) -> list[CommitmentRequest]:
        assert agent == "ClaraSCU"
        taken, self._due = self._due[:size], self._due[size:]
        return taken

    def committed(self, transaction_uid: str, body: CommitmentResult) -> Task:
        if self.away:
            raise ServiceUnavailable("it is away")
        if transaction_uid not in self._known:
            raise NotFound("no such transaction", code="commitment-not-found")
        self.committed_results.append((transaction_uid, body))
        return None  # type: ignore[return-value]

    def commitment_failed(self, transaction_uid: str, body: CommitmentFailure) -> Task:
        self.failures.append((transaction_uid, body))
        return None  # type: ignore[return-value]


class Archive:
    """An SCP of storage commitment.

    Args:
        report: Called with the association and the Action Information once the N-ACTION is answered, on a thread.
        status: What it answers the N-ACTION with.
        offers: What it offers.
        tls: How its connections are secured.

    Attributes:
        asked: The Action Information of each N-ACTION.
        callers: Their calling AE titles.
    """

    def __init__(
        self,
        report: Callable[[Association, Dataset], None] = lambda *_: None,
        status: int = 0,
        offers: str = PUSH_MODEL,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._report = report
        self._status = status
        self.asked: list[Dataset] = []
        self.callers: list[str] = []
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        entity = AE("PACS")
        entity.add_supported_context(offers, scu_role=True, scp_role=False)
        started = entity.start_server(
            ("127.0.0.1", 0),
            block=False,
            ssl_context=tls,
            evt_handlers=[(evt.EVT_N_ACTION, self._asked)],
        )
        assert started is not None
        assert started.socket is not None
        self._server = started
        self.port = int(started.socket.getsockname()[1])

    def _asked(self, event: evt.Event) -> tuple[int, None]:
        assert event.action_type == 1
        assert isinstance(event.request, N_ACTION)
        assert event.request.RequestedSOPInstanceUID == PUSH_MODEL_INSTANCE
        information = event.action_information
        self.asked.append(information)
        self.callers.append(event.assoc.requestor.ae_title)
        if self._status == 0:
            thread = threading.Thread(target=self._play, args=(event.assoc, information))
            self._threads.append(thread)
            thread.start()
        return self._status, None

    def _play(self, association: Association, information: Dataset) -> None:
        try:
            self._report(association, information)
        except BaseException as error:  # noqa: BLE001  (raised by stop, in the test's own thread)
            self.errors.append(error)

    def stop(self) -> None:
        for thread in self._threads:
            thread.join(20)
        self._server.shutdown()
        for error in self.errors:
            raise error


def report_of(asked: Dataset, failed: "Mapping[str, int] | None" = None) -> tuple[Dataset, int]:
    """Return Event Information and Event Type ID that tell what became of what was asked for."""
    report = Dataset()
    report.TransactionUID = asked.TransactionUID
    report.ReferencedSOPSequence, bad = [], []
    for item in asked.ReferencedSOPSequence:
        reason = (failed or {}).get(item.ReferencedSOPInstanceUID)
        if reason is None:
            report.ReferencedSOPSequence.append(item)
        else:
            item.FailureReason = reason
            bad.append(item)
    if bad:
        report.FailedSOPSequence = bad
    return report, 2 if bad else 1


def send(association: Association, report: Dataset, kind: int) -> int:
    """Report over an association and return the status that is answered."""
    status, _ = association.send_n_event_report(report, kind, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    return int(status.Status)


def call(port: int, report: Dataset, kind: int, tls: tuple[ssl.SSLContext, str] | None = None, title: str = "ClaraSCU") -> int:  # fmt: skip
    """Report over an association of the archive's own and return the status that is answered."""
    association = AE("PACS").associate(
        "127.0.0.1",
        port,
        [build_context(PUSH_MODEL)],
        ae_title=title,
        ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
        tls_args=tls,
    )
    assert association.is_established
    try:
        return send(association, report, kind)
    finally:
        association.release()


Start = Callable[..., Commitments]


@pytest.fixture
def service() -> FakeService:
    """Give the service's part."""
    return FakeService()


@pytest.fixture
def archive() -> Iterator[Callable[..., Archive]]:
    """Give a function that starts an archive for the time of the test."""
    with ExitStack() as running:

        def start(*arguments: Any, **named: Any) -> Archive:
            made = Archive(*arguments, **named)
            running.callback(made.stop)
            return made

        yield start


@pytest.fixture
def commitments(service: FakeService) -> Iterator[Start]:
    """Give a function that starts asking destinations; ``listen=True`` listens too, on ``port``."""
    with ExitStack() as running:

        def start(
            destinations: Sequence[Destination] = (),
            *,
            secrets: Path | None = None,
            linger: float = 3,
        ) -> Commitments:
            made = Commitments(
                "ClaraSCU",
                service,
                lambda: list(destinations),
                SETTINGS,
                Secrets(secrets),
                poll=0.02,
                linger=linger,
            )
            return running.enter_context(made)

        yield start


def pacs(port: int, **more: Any) -> Destination:
    return Destination(name="PACS", ae_title="PACS", host="127.0.0.1", port=port, **more)


ALL = CommitmentResult(committed=UIDS, failed=[])


def test_a_report_over_the_association_that_was_asked_on(
    service: FakeService, archive: Callable[..., Archive], commitments: Start
) -> None:
    statuses: list[int] = []
    peer = archive(lambda to, asked: statuses.append(send(to, *report_of(asked))))
    commitments([pacs(peer.port, calling_ae_title="OTHER")])
    service.add("2.25.1")
    eventually(lambda: bool(statuses), "the report's answer")
    assert service.committed_results == [("2.25.1", ALL)]
    assert statuses == [0]
    assert peer.callers == ["OTHER"]
    (asked,) = peer.asked
    assert asked.TransactionUID == "2.25.1"
    assert [
        (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
        for item in asked.ReferencedSOPSequence
    ] == [(CT, uid) for uid in UIDS]
    assert service.failures == []


def test_a_report_over_an_association_of_the_archives_own(
    service: FakeService, archive: Callable[..., Archive], commitments: Start
) -> None:
    statuses: list[int] = []
    ports: list[int] = []
    peer = archive(lambda _, asked: statuses.append(call(ports[0], *report_of(asked))))
    ports.append(commitments([pacs(peer.port)], linger=0.1).listen("127.0.0.1", 0))
    service.add("2.25.1")
    eventually(lambda: statuses == [0], "the report's answer")
    assert service.committed_results == [("2.25.1", ALL)]


def test_a_report_long_after_and_one_that_comes_twice(
    service: FakeService, archive: Callable[..., Archive], commitments: Start
) -> None:
    peer = archive()
    port = commitments([pacs(peer.port)], linger=0).listen("127.0.0.1", 0)
    service.add("2.25.1")
    eventually(lambda: bool(peer.asked), "the question")
    report = report_of(peer.asked[0])
    assert call(port, *report) == 0
    assert call(port, *report, title="SOMEBODY") == 0
    assert service.committed_results == [("2.25.1", ALL)] * 2  # the service knows what is new
    assert service.failures == []


def test_instances_that_are_not_committed_to_are_told_with_their_reasons(
    service: FakeService, archive: Callable[..., Archive], commitments: Start
) -> None:
    peer = archive(lambda to, asked: send(to, *report_of(asked, {UIDS[1]: 0x0112})))
    commitments([pacs(peer.port)])
    service.add("2.25.1")
    eventually(lambda: bool(service.committed_results), "the report")
    assert service.committed_results == [
        (
            "2.25.1",
            CommitmentResult(
                committed=UIDS[:1], failed=[FailedInstance(sop_instance_uid=UIDS[1], reason=0x0112)]
            ),
        )
    ]


def test_a_report_that_the_service_can_not_take_is_refused_so_that_it_is_repeated(
    service: FakeService, archive: Callable[..., Archive], commitments: Start
) -> None:
    peer = archive()
    port = commitments([pacs(peer.port)], linger=0).listen("127.0.0.1", 0)
    service.add("2.25.1")
    eventually(lambda: bool(peer.asked), "the question")
    service.away = True
    assert call(port, *report_of(peer.asked[0])) == 0x0110
    service.away = False
    assert call(port, *report_of(peer.asked[0])) == 0
    assert service.committed_results == [("2.25.1", ALL)]


def test_a_report_of_what_was_never_asked_for_is_an_invalid_argument(
    service: FakeService, commitments: Start
) -> None:
    port = commitments().listen("127.0.0.1", 0)
    report = Dataset()
    report.TransactionUID = "2.25.99"
    report.ReferencedSOPSequence = []
    assert call(port, report, 1) == 0x0115
    assert call(port, report, 7) == 0x0113
    del report.TransactionUID
    report.SOPInstanceUID = "1.2"
    assert call(port, report, 1) == 0x0115
    assert service.committed_results == []


def test_an_archive_that_says_nothing_is_not_held_against_anybody(
    service: FakeService, archive: Callable[..., Archive], commitments: Start
) -> None:
    peer = archive()
    commitments([pacs(peer.port)], linger=0.1)
    service.add("2.25.1")
    service.add("2.25.2")
    eventually(lambda: len(peer.asked) == 2, "both questions")
    assert service.failures == []
    assert service.committed_results == []


def test_an_archive_that_does_not_offer_to_commit_is_unsupported(
    service: FakeService, archive: Callable[..., Archive], commitments: Start
) -> None:
    peer = archive(offers=VERIFICATION)
    commitments([pacs(peer.port)])
    service.add("2.25.1")
    eventually(lambda: bool(service.failures), "the failure")
    ((uid, failure),) = service.failures
    assert (uid, failure.code, failure.unsupported) == ("2.25.1", "service-not-offered", True)


@pytest.mark.parametrize(
    ("status", "unsupported"), [(0x0110, False), (0x0213, False), (0x0122, True)]
)
def test_an_archive_that_answers_with_a_failure_is_told_with_it(
    status: int,
    unsupported: bool,
    service: FakeService,
    archive: Callable[..., Archive],
    commitments: Start,
) -> None:
    peer = archive(status=status)
    commitments([pacs(peer.port)])
    service.add("2.25.1")
    eventually(lambda: bool(service.failures), "the failure")
    ((_, failure),) = service.failures
    assert (failure.code, failure.unsupported) == (f"{status:04X}", unsupported)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# pynetdicom leaves a socket to the garbage collector where it can't connect.
def test_an_archive_that_is_away_and_a_destination_that_is_not_there_are_told(
    service: FakeService, commitments: Start, free_port: Callable[[], int]
) -> None:
    commitments([pacs(free_port())])
    service.add("2.25.1")
    service.add("2.25.2", '"Nowhere"')
    eventually(lambda: len(service.failures) == 2, "both failures")
    found = {uid: (failure.code, failure.unsupported) for uid, failure in service.failures}
    assert found == {
        "2.25.1": ("destination-unavailable", False),
        "2.25.2": ("unknown-destination", False),
    }


def test_the_listener_answers_an_echo_and_says_when_it_has_no_port(commitments: Start) -> None:
    port = commitments().listen("127.0.0.1", 0)
    association = AE("PACS").associate("127.0.0.1", port, [build_context(VERIFICATION)])
    assert association.is_established
    assert association.send_c_echo().Status == 0
    association.release()
    with pytest.raises(ListenerFailed, match=f"port {port}.*address already in use"):
        commitments().listen("127.0.0.1", port)


def test_both_directions_over_tls(
    service: FakeService,
    archive: Callable[..., Archive],
    commitments: Start,
    require_tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "secrets"
    authority = Authority(require_tool("openssl"), secrets)
    for name in ("ours", "theirs"):
        authority.issue(name)
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(secrets / "theirs.pem", secrets / "theirs.key")
    statuses: list[int] = []
    ports: list[int] = []
    peer = archive(
        lambda _, asked: statuses.append(call(ports[0], *report_of(asked), (context, "localhost"))),
        tls=authority.server(mutual=True),
    )
    tls = Tls(ca="ca.pem", certificate="ours.pem", key="ours.key")
    started = commitments([pacs(peer.port, tls=tls)], secrets=secrets, linger=0.1)
    listening = server_tls_context("ours.pem", "ours.key", "ca.pem", Secrets(secrets))
    ports.append(started.listen("127.0.0.1", 0, listening))
    service.add("2.25.1")
    eventually(lambda: statuses == [0], "the report's answer")
    assert service.committed_results == [("2.25.1", ALL)]
