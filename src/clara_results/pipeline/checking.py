"""A definition read and checked as a whole, without running anything."""

from collections.abc import Mapping
from pathlib import Path

from clara_results.pipeline import reading, wiring
from clara_results.pipeline.definition import Definition
from clara_results.pipeline.faults import Fault
from clara_results.pipeline.source import Source, read_text


def read_definition(
    path: Path, given: Mapping[str, str] | None = None
) -> tuple[Definition | None, list[Fault]]:
    """Read a pipeline definition of api-version 0.4.0.

    Args:
        path: The file.
        given: Values of parameters instead of their defaults.

    Returns:
        The definition, None where it has a fault; and all its faults.

    Raises:
        UnreadableInput: The file can't be read.
    """
    return parse_definition(str(path), read_text(path), given or {})


def parse_definition(
    file: str, text: str, given: Mapping[str, str]
) -> tuple[Definition | None, list[Fault]]:
    """Do the same with a text; ``file`` is what its faults call it."""
    source = Source(file, reading.ELSEWHERE)
    written = reading.read(source, text, given)
    definition = wiring.wire(written, source.faults)
    return definition, sorted(source.faults.found)
