"""The test of a destination, by its kind."""

from clara_results.agents.secrets import Secrets
from clara_results.errors import InvalidInput
from clara_results.settings import Settings
from clara_results.wire.destinations import Destination, TestResult


def probe(settings: Settings, destination: Destination) -> TestResult:
    """Test a destination from here, with the secrets that are here; what fails is told in the result.

    Raises:
        InvalidInput: What it takes is not installed.
    """
    secrets = Secrets(settings.secrets)
    try:
        if destination.kind == "dicomweb":
            from clara_results.agents.dicomweb.probe import probe_destination

            return probe_destination(destination, secrets)
        from clara_results.agents.dicom.echo import echo_destination

        return echo_destination(destination, secrets, settings.ae_title)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"destinations can't be tested here: {error.name} is missing; install clara-results[dicom]",
            code="not-installed",
        ) from error
