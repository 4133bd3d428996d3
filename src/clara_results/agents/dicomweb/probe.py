"""Whether a DICOMweb destination answers: connection, credentials, a query, each with its time."""

from clara_results.agents.dicomweb.connection import WebConnection, WebSettings
from clara_results.agents.dicomweb.credentials import Credentials
from clara_results.agents.dicomweb.service import WebService
from clara_results.agents.secrets import Secrets
from clara_results.agents.steps import taken
from clara_results.domain.clock import Clock, SystemClock
from clara_results.errors import DestinationUnavailable
from clara_results.wire.destinations import Destination, TestResult, TestStep


def probe_destination(
    destination: Destination,
    secrets: Secrets,
    settings: WebSettings | None = None,
    clock: Clock | None = None,
) -> TestResult:
    """Test a destination of kind ``dicomweb``; what fails is told in the result, never raised. Nothing is stored.

    Args:
        destination: Which.
        secrets: Where what it names lies.
        settings: How long to wait.
        clock: The time.
    """
    waits = settings or WebSettings()
    time = clock or SystemClock()
    credentials = Credentials(destination, secrets, waits, time)
    service = WebService(destination, credentials, secrets, waits, time)
    opened: list[WebConnection] = []

    def connect() -> str:
        opened.append(service.connection())
        opened[0].connect()
        how = "by TLS; its certificate is trusted" if opened[0].secured else "without TLS"
        return f"{opened[0].place} takes connections {how}"

    def authenticate() -> str:
        credentials.headers()
        return "there are credentials to be shown"

    def query() -> str:
        if service.search(opened[0], "/studies?limit=1", nothing=frozenset({204})) is None:
            raise DestinationUnavailable(
                "it does not answer a query for studies (QIDO-RS) as it must: the destination's url must be that "
                "below which /studies is"
            )
        return "it answers a query for studies (QIDO-RS)"

    wanted = [("connect", connect), ("authentication", authenticate), ("query", query)]
    steps: list[TestStep] = []
    try:
        for name, step in wanted:
            if name == "authentication" and destination.auth is None:
                continue
            steps.append(taken(name, step, time))
            if not steps[-1].ok:
                break
    finally:
        for connection in opened:
            connection.close()
    return TestResult(destination=destination.name, ok=all(step.ok for step in steps), steps=steps)
