"""Bodies of ``/api/destinations``, ``/api/config/destinationaetitle`` and ``/api/agents``."""

from datetime import datetime
from typing import ClassVar

from clara_results.domain.receivers import DICOM, DICOMWEB, AuthKind, Commit, Verify
from clara_results.wire.codec import body


@body(strict=True)
class Tls:
    """How a connection is secured. All but ``check_host`` name files in the agent's folder of secrets.

    Attributes:
        ca: Certificates of the authorities that are trusted (PEM); None: the system's.
        certificate: Our own certificate (PEM), where the receiver wants one; with its key or beside ``key``.
        key: The key of our certificate (PEM).
        check_host: Whether the receiver's certificate must name the host.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    check_host: bool = True


@body(strict=True)
class Auth:
    """Who we say we are: HTTP authentication, or DIMSE's user identity (PS3.7 D.3.3.7).

    Attributes:
        kind: Which way.
        user_name: For ``basic``.
        secret: The file in the agent's folder of secrets that holds the password, the token or the client's secret.
        token_url: For ``oauth2``: where a token is asked for.
        client_id: For ``oauth2``.
        scope: For ``oauth2``, if the server wants one.
    """

    kind: AuthKind
    user_name: str | None = None
    secret: str | None = None
    token_url: str | None = None
    client_id: str | None = None
    scope: str | None = None


@body(strict=True)
class Destination:
    """A receiver that results are delivered to.

    Attributes:
        name: What ``--data`` names; compared without case.
        kind: ``dicom`` (DIMSE, C-STORE) or ``dicomweb`` (STOW-RS).
        ae_title: The called AE title, sent as written; ``dicom`` only, likewise host and port.
        host: DNS name, IPv4 or IPv6 address.
        port: TCP port.
        calling_ae_title: The calling AE title; None: the agent's own.
        url: The DICOMweb service's base URL, below which ``/studies`` is; ``dicomweb`` only.
        max_associations: Associations (``dicom``) or connections (``dicomweb``) open at the same time, over all tasks
            and agents; 1 to 1000.
        transcode: Whether an instance in a transfer syntax that the receiver refuses is sent in another, without loss.
        overwrite: Whether an instance may go out under the SOP Instance UID of another that was sent before.
        verify: Whether the receiver is asked back for what it stored.
        commitment: Whether the receiver is asked to commit itself to keep it (``dicom`` only).
        statuses: What statuses of this receiver mean where that is not the standard's: ``C000`` or ``Cxxx`` →
            ``retry`` or ``reject``.
        tls: How connections are secured; None: not (``dicom``), or as the URL says (``dicomweb``).
        auth: Who we say we are.
    """

    name: str
    kind: str = DICOM
    ae_title: str | None = None
    host: str | None = None
    port: int | None = None
    calling_ae_title: str | None = None
    url: str | None = None
    max_associations: int = 2
    transcode: bool = True
    overwrite: bool = False
    verify: Verify = Verify.OFF
    commitment: Commit = Commit.OFF
    statuses: dict[str, str] | None = None
    tls: Tls | None = None
    auth: Auth | None = None


def address(destination: Destination) -> str:
    """Return who and where a receiver is: what was sent to one address says nothing of another."""
    if destination.kind == DICOMWEB:
        return f"{DICOMWEB} {(destination.url or '').rstrip('/')}"
    return (
        f"{DICOM} {destination.ae_title} {(destination.host or '').lower()} port {destination.port}"
    )


@body()
class DestinationView(Destination):
    """A destination and how it stands.

    Attributes:
        paused_at: Since when a person has paused it; None: it is not paused.
        down_since: Since when it could not be reached; None: it is up, as far as is known.
        down_reason: What was said when it could not be reached last.
        probe_at: When it is tried next, if it is down.
        pending: Tasks that wait for it.
        in_progress: Tasks that are being delivered to it.
        awaiting_commitment: Tasks of which it is to commit itself to keep what it was sent.
        associations: Associations or connections that tasks may have open to it now.
    """

    paused_at: datetime | None = None
    down_since: datetime | None = None
    down_reason: str | None = None
    probe_at: datetime | None = None
    pending: int = 0
    in_progress: int = 0
    awaiting_commitment: int = 0
    associations: int = 0


@body()
class DestinationAeTitle:
    """A DIMSE destination in the original's shape."""

    name: str
    ae_title: str
    host_ip: str
    port: int


@body()
class DestinationPage:
    """All destinations, by name."""

    items: list[DestinationView]


@body()
class TestStep:
    """One step of a destination's test.

    Attributes:
        name: ``secrets`` (only if one is not there), ``connect`` (TCP), ``tls``, ``association``,
            ``echo`` (C-ECHO), ``contexts`` (what it takes), ``query`` and ``commitment`` (whether it can be asked back,
            and to commit itself, where that is set). A DICOMweb destination has steps of its own.
        ok: Whether it went well.
        milliseconds: How long it took.
        message: What the receiver said, or why it failed and what to do.
    """

    __test__: ClassVar = False  # not a test case, whatever pytest thinks of the name

    name: str
    ok: bool
    milliseconds: float
    message: str


@body()
class TestedContext:
    """Whether a receiver takes instances of a SOP class in a transfer syntax (PS3.8 9.3.3.2).

    Attributes:
        sop_class_uid: The storage SOP class, by UID and by name.
        transfer_syntax_uid: The transfer syntax, by UID and by name.
        accepted: Whether it takes them.
        reason: Why not, in words.
    """

    __test__: ClassVar = False

    sop_class_uid: str
    sop_class: str
    transfer_syntax_uid: str
    transfer_syntax: str
    accepted: bool
    reason: str | None = None


@body()
class TestResult:
    """What a destination's test found.

    Attributes:
        destination: Its name.
        ok: Whether all steps went well; that a context is not taken is no failure.
        steps: All up to the first that failed.
        contexts: What it takes, of a good many common ones; None: that was not tried.
    """

    __test__: ClassVar = False

    destination: str
    ok: bool
    steps: list[TestStep]
    contexts: list[TestedContext] | None = None


@body()
class AgentInstance:
    """An agent process that has asked for tasks.

    Attributes:
        agent: Its name in lower case.
        instance: What it calls itself: host and process id; empty: it does not say.
        version: Its User-Agent.
        last_seen_at: When it last asked or reported.
        holds: Tasks that it holds now.
    """

    agent: str
    instance: str
    version: str | None = None
    last_seen_at: datetime
    holds: list[str]


@body()
class AgentPage:
    """The agent processes seen in the last day, by name."""

    items: list[AgentInstance]
