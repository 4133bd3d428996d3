"""What the agent and its child process tell each other: what is in a task's files, and what was made of it."""

from dataclasses import dataclass
from enum import StrEnum

from clara_results.agents.render.grid import Grid
from clara_results.wire.datasets import DatasetFile, LabelMap, LargestLabel, Previews, Volume


class Kind(StrEnum):
    """As what a source is read."""

    VOLUME = "volume"
    """A file of MetaImage or NIfTI."""
    SERIES = "series"
    """Images of a DICOM series, a slice each."""
    FRAMES = "frames"
    """A DICOM image of several frames, with a place each."""
    SEGMENTATION = "segmentation"
    """A DICOM SEG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A volume or label map.

    Attributes:
        kind: As what it is read.
        uris: Its files, in their order; it is known by the first.
        path: Of a VOLUME what SimpleITK reads, relative to the folder of the task's files; else empty.
        grid: Where its voxels are; a SEGMENTATION is brought from there onto its images' grid.
        name: What it is called.
        modality: DICOM's word; None: not known.
        unit: Of its values; None: not known.
        series: Series Instance UID of a DICOM one; of a SEGMENTATION that of the images that it segments.
        frame_of_reference: Frame of Reference UID of a DICOM one.
    """

    kind: Kind
    uris: list[str]
    path: str = ""
    grid: Grid | None = None
    name: str
    modality: str | None = None
    unit: str | None = None
    series: str | None = None
    frame_of_reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSource:
    """A label map of a group.

    Attributes:
        source: What it is.
        description: URI of the JSON file that names what it marks; None: there is none.
    """

    source: Source
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What becomes one dataset.

    Attributes:
        name: What it is called.
        density: The volume.
        labels: Label maps on its grid.
        others: URIs of further files that belong to it.
    """

    name: str
    density: Source
    labels: list[LabelSource]
    others: list[str]

    @property
    def uris(self) -> list[str]:
        """Return the URIs of all its files, each once, the density's first."""
        listed = [*self.density.uris, *self.others]
        for label in self.labels:
            listed += label.source.uris
            listed += [label.description] if label.description else []
        return list(dict.fromkeys(listed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A file that does not become part of a dataset.

    Attributes:
        uri: Which file.
        rejected: It was to be one, but can't; else it is not for this agent.
        code: Stable code of the reason.
        message: The reason for people.
    """

    uri: str
    rejected: bool
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be made of a task's files.

    Attributes:
        groups: Each becomes a dataset.
        verdicts: Files of none.
    """

    groups: list[Group]
    verdicts: list[Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file that was made: where it is in the output's folder, and as what it goes into the dataset."""

    path: str
    file: DatasetFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a dataset consists of, apart from its originals; fields as in ``wire.datasets.Publication``."""

    name: str
    modality: str | None = None
    unit: str | None = None
    volume: Volume
    first_look: Volume | None = None
    labels: list[LabelMap]
    largest_label: LargestLabel | None = None
    previews: Previews
    made: list[Made]
