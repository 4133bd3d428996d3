"""One step of a destination's test, with its time."""

from collections.abc import Callable

from clara_results.agents.secrets import CODE as SECRET_UNAVAILABLE
from clara_results.domain.clock import Clock
from clara_results.errors import ClaraResultsError, DestinationUnavailable
from clara_results.wire.destinations import TestStep


def taken(
    name: str,
    act: Callable[[], str],
    clock: Clock,
    failures: tuple[type[ClaraResultsError], ...] = (DestinationUnavailable,),
) -> TestStep:
    """Take a step and tell how it went; one that fails for want of a secret is named ``secrets``.

    Args:
        name: Its name; see ``TestStep``.
        act: Takes it, and returns what was found, in words.
        clock: The time.
        failures: What it raises where it fails.
    """
    begun = clock.monotonic()
    try:
        message, ok = act(), True
    except failures as error:
        message, ok = str(error), False
        name = "secrets" if error.code == SECRET_UNAVAILABLE else name
    milliseconds = round((clock.monotonic() - begun) * 1000, 1)
    return TestStep(name=name, ok=ok, milliseconds=milliseconds, message=message)
