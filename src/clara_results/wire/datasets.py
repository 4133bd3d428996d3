"""Bodies of ``/api/datasets`` and of what an agent calls to publish one.

All coordinates are in millimetres and RAS+, as in NIfTI-1: x grows from the patient's left to the right, y from the back
to the front, z from the feet to the head.
"""

from datetime import datetime
from typing import Any

from clara_results.wire.codec import body


@body(strict=True)
class DatasetFile:
    """A file of a dataset.

    Attributes:
        uri: Its path within the dataset; it bears the content's digest, so what is there never changes.
        size: Bytes.
        sha256: Digest of its content, 64 lower-case hex digits.
    """

    uri: str
    size: int
    sha256: str


@body(strict=True)
class Volume:
    """A volume as a NIfTI file (``.nii.gz``) for the browser.

    Attributes:
        uri: As in DatasetFile; likewise size and sha256.
        dims: Voxels along i, j and k.
        spacing: Millimetres between voxels along these.
        value_range: The least and the greatest value.
        dtype: The voxels' type, in numpy's words: ``int16``, ``uint8``, ``float32``, …
    """

    uri: str
    size: int
    sha256: str
    dims: list[int]
    spacing: list[float]
    value_range: list[float]
    dtype: str


@body(strict=True)
class LabelValue:
    """One thing that a label map marks.

    Attributes:
        value: The voxels' value in the map.
        name: What it is.
        color: ``#rrggbb``.
        volume_ml: Its volume in millilitres.
        voxels: Its number of voxels.
        centre: A point of it near its middle, [x, y, z] in millimetres.
    """

    value: int
    name: str
    color: str
    volume_ml: float
    voxels: int
    centre: list[float]


@body(strict=True)
class LabelMap:
    """A map on its dataset's volume's grid whose voxels say what is there; 0 is nothing.

    Attributes:
        uri: As in DatasetFile; likewise size and sha256. A NIfTI file like the volume's.
        name: What the map is called.
        first_look_uri: The same, reduced to the grid of the dataset's ``firstLook``; None where there is none.
        values: What it marks, by value.
    """

    uri: str
    size: int
    sha256: str
    name: str
    first_look_uri: str | None = None
    values: list[LabelValue]


@body(strict=True)
class LargestLabel:
    """Which label of a dataset has the greatest volume.

    Attributes:
        label: Index in the dataset's ``labels``.
        value: The value there.
    """

    label: int
    value: int


@body(strict=True)
class Previews:
    """URIs of PNG images through the middle of the largest label, or of the volume, with the labels over it."""

    axial: str
    coronal: str
    sagittal: str


@body(strict=True)
class Publication:
    """Body of ``PUT /api/tasks/{taskId}/datasets/{datasetId}``: a dataset whose files are all there.

    Attributes:
        lease_token: The claim's.
        density: URI, in the task's payload, of the file that the volume was made of; the dataset's id follows from it.
        files: URIs, there, of all files that the dataset was made of: they are delivered with it.
        name: What the dataset is called.
        modality: DICOM's word (``CT``, ``MR``, …; PS3.3 C.7.3.1.1.1); None: not known.
        unit: Of the volume's values, such as ``HU``; None: not known.
        volume: The volume.
        first_look: The same, reduced, where the volume is large.
        labels: Label maps.
        largest_label: Where the viewer opens; None without labels.
        previews: Images of it.
        originals: The files that it was made of, untouched.
    """

    lease_token: str
    density: str
    files: list[str]
    name: str
    modality: str | None = None
    unit: str | None = None
    volume: Volume
    first_look: Volume | None = None
    labels: list[LabelMap]
    largest_label: LargestLabel | None = None
    previews: Previews
    originals: list[DatasetFile]


@body()
class Dataset:
    """A published dataset.

    Attributes:
        dataset_id: Follows from the task and the file with the volume.
        name: What it is called; modality and the rest up to ``originals`` as in Publication.
        job_id: Of the task that it was published for; likewise task, payload and operator.
        created_at: When it was first published.
        view: The viewer's settings as a person saved them last; None: nobody did.
    """

    dataset_id: str
    name: str
    job_id: str
    task_id: str
    payload_id: str
    operator: str | None = None
    created_at: datetime
    modality: str | None = None
    unit: str | None = None
    volume: Volume
    first_look: Volume | None = None
    labels: list[LabelMap]
    largest_label: LargestLabel | None = None
    previews: Previews
    originals: list[DatasetFile]
    view: dict[str, Any] | None = None


@body()
class DatasetPage:
    """A page of datasets, newest first, and the cursor of the next one."""

    items: list[Dataset]
    next_cursor: str | None = None
