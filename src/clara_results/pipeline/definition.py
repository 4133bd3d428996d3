"""What a pipeline definition says, checked and resolved."""

from collections.abc import Mapping
from dataclasses import dataclass

from clara_results.pipeline.faults import Text

API_VERSION = "0.4.0"
PAYLOAD_FOLDER = "input"
"""The folder of a payload that holds the pipeline's own input."""
DEFAULT_OUTPUT = "output"
"""What an output without a name is called."""
PLATFORM_VALUES = {"dicom-input-from-adapter": "", "input-file-from-adapter": PAYLOAD_FOLDER}
"""The platform's own variables, and what they stand for: the pipeline's payload, and its name."""


@dataclass(frozen=True, slots=True)
class Container:
    """What an operator runs in.

    Attributes:
        image: Without tag.
        tag: ``latest`` unless given.
        command: Program and arguments; None: what the image runs by itself.
    """

    image: Text
    tag: Text
    command: tuple[Text, ...] | None

    @property
    def reference(self) -> str:
        """The image with its tag."""
        return f"{self.image}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Output:
    """A folder that an operator writes.

    Attributes:
        name: Its name; ``output`` unless given.
        path: Where it is mounted.
        folder: Its place in the payload.
    """

    name: Text
    path: Text
    folder: str


@dataclass(frozen=True, slots=True)
class Input:
    """A folder that an operator reads.

    Attributes:
        name: What it is called in the operator's environment; no two of an operator are alike.
        path: Where it is mounted.
        source: The operator that writes it; None: it is the pipeline's own input.
        folder: Its place in the payload.
    """

    name: str
    path: Text
    source: str | None
    folder: str


@dataclass(frozen=True, slots=True)
class Operator:
    """A step of a pipeline.

    Attributes:
        name: Unique in the pipeline, without regard to case.
        container: What it runs in.
        variables: Its own environment variables.
        requests: What it needs: ``gpu`` and ``cpu`` by number, ``memory`` in MiB.
        inputs: What it reads.
        outputs: What it writes.
        services: Names of the services that are to run beside it.
    """

    name: Text
    container: Container
    variables: Mapping[str, Text]
    requests: Mapping[str, float]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    services: tuple[Text, ...]

    @property
    def sources(self) -> set[str]:
        """The operators that must have ended before it."""
        return {each.source for each in self.inputs if each.source is not None}


@dataclass(frozen=True, slots=True)
class Definition:
    """A pipeline definition without fault.

    Attributes:
        name: The pipeline's.
        parameters: Names and values; those that were not given have their defaults.
        pull_secrets: Names of the secrets with which images are pulled.
        operators: Each after all that it reads from.
    """

    name: Text
    parameters: Mapping[str, str]
    pull_secrets: tuple[Text, ...]
    operators: tuple[Operator, ...]
