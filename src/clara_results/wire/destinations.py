"""Bodies of ``/api/destinations``, ``/api/config/destinationaetitle`` and ``/api/agents``."""

from datetime import datetime
from typing import ClassVar

from clara_results.wire.codec import body


@body(strict=True)
class Destination:
    """A receiver that results are delivered to.

    Attributes:
        name: What ``--data`` names; compared without case.
        kind: ``dicom`` (DIMSE, C-STORE).
        ae_title: The called AE title, sent as written.
        host: DNS name, IPv4 or IPv6 address.
        port: TCP port.
        calling_ae_title: The calling AE title; None: the agent's own.
        max_tasks: Tasks in progress at the same time, over all agents; 1 to 1000.
    """

    name: str
    kind: str = "dicom"
    ae_title: str
    host: str
    port: int
    calling_ae_title: str | None = None
    max_tasks: int = 2


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
    """

    paused_at: datetime | None = None
    down_since: datetime | None = None
    down_reason: str | None = None
    probe_at: datetime | None = None
    pending: int = 0
    in_progress: int = 0


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
        name: ``connect`` (TCP), ``association`` or ``echo`` (C-ECHO).
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
class TestResult:
    """What a destination's test found: all steps up to the first that failed."""

    __test__: ClassVar = False

    destination: str
    ok: bool
    steps: list[TestStep]


@body()
class AgentInstance:
    """An agent process that has asked for tasks.

    Attributes:
        agent: Its name in lower case.
        instance: What it calls itself: host and process id.
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
