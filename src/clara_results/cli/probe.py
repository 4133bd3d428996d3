"""The test of a destination, by its kind."""

from clara_results.agents.secrets import Secrets
from clara_results.domain.receivers import DICOMWEB
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
        if destination.kind == DICOMWEB:
            from clara_results.agents.dicomweb.connection import WebSettings
            from clara_results.agents.dicomweb.probe import probe_destination

            patience = WebSettings(connect=settings.connect_timeout, answer=settings.answer_timeout)
            return probe_destination(destination, secrets, patience)
        from clara_results.agents.dicom.association import AssociationSettings
        from clara_results.agents.dicom.echo import echo_destination

        waits = AssociationSettings(
            connect=settings.connect_timeout,
            association=settings.association_timeout,
            dimse=settings.dimse_timeout,
        )
        return echo_destination(destination, secrets, settings.ae_title, waits)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"destinations can't be tested here: {error.name} is missing; install clara-results[dicom]",
            code="not-installed",
        ) from error
