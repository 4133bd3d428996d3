"""The DICOM Segmentation of a label map (PS3.3 A.51)."""

from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code as PydicomCode

from liver_tumor import description
from liver_tumor.description import Description, Segment
from liver_tumor.results.identity import UNSET, Origin, settle

Labels = npt.NDArray[np.uint8]
SERIAL_NUMBER = "1"


def segmentation(labels: Labels, described: Description, origin: Origin) -> tuple[Any, str]:
    """Return a binary SEG with one segment for each that is described.

    A segment without voxels is described and has no frame: it was looked for and not found. Where no segment has any,
    every slice has an empty frame.

    Args:
        labels: Segment numbers, slices x rows x columns, on the source's grid; 0: nothing.
        described: What the numbers mean; the first segment is number 1.
        origin: The source and the job.

    Returns:
        The SEG, and the digest of its content.
    """
    made = Segmentation(
        source_images=origin.source.images(),
        pixel_array=labels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _described(number, segment, described, origin)
            for number, segment in enumerate(described.segments, 1)
        ],
        omit_empty_frames=bool(labels.any()),
        series_instance_uid=UNSET,
        sop_instance_uid=UNSET,
        series_number=origin.source.number + 1000,
        instance_number=1,
        content_label="SEGMENTATION",
        content_description=described.notice,
        **equipment(described),
    )
    dimensions = origin.uid("dimension organization")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return made, settle(made, origin, "segmentation")


def equipment(described: Description) -> dict[str, Any]:
    """Return what highdicom writes of the equipment, the same for all results (PS3.3 C.7.5.1, C.7.5.2)."""
    algorithm = described.algorithm
    return {
        "manufacturer": algorithm.manufacturer,
        "manufacturer_model_name": algorithm.name,
        "software_versions": algorithm.version,
        "device_serial_number": SERIAL_NUMBER,
        "series_description": described.series_description,
    }


def code(described: description.Code) -> PydicomCode:
    """Return a coded term as highdicom takes it."""
    return PydicomCode(described.value, described.scheme, described.meaning)


def _described(
    number: int, segment: Segment, described: Description, origin: Origin
) -> SegmentDescription:
    algorithm = described.algorithm
    return SegmentDescription(
        segment_number=number,
        segment_label=segment.name,
        segmented_property_category=code(segment.category),
        segmented_property_type=code(segment.type),
        algorithm_type=algorithm.type,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm.name,
            family=CodedConcept.from_code(code(algorithm.family)),
            version=algorithm.version,
            source=algorithm.manufacturer,
            parameters=dict(algorithm.parameters) or None,
        ),
        tracking_uid=origin.uid("finding", str(segment.value)),
        tracking_id=segment.name,
        display_color=CIELabColor.from_rgb(*segment.rgb),
    )
