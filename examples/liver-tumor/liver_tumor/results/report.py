"""A measurement report (PS3.16 TID 1500) with the volume of each segment."""

from typing import Any

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from liver_tumor.description import Description
from liver_tumor.results.identity import UNSET, Origin, settle
from liver_tumor.results.segments import Labels, code, equipment

MILLILITRE = Code("mL", "UCUM", "milliliter")


def report(
    labels: Labels, described: Description, origin: Origin, segmentation: Any
) -> Comprehensive3DSR | None:
    """Return the report, which refers to a segmentation; None where no segment has a voxel.

    Args:
        labels: Segment numbers on the source's grid.
        described: What they mean.
        origin: The source and the job.
        segmentation: The SEG, settled.
    """
    millilitres = float(np.prod(origin.source.grid.spacing)) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(described.segments) + 1)
    groups = [
        _group(number, counts[number] * millilitres, described, origin, segmentation)
        for number in range(1, len(described.segments) + 1)
        if counts[number]
    ]
    if not groups:
        return None
    algorithm = described.algorithm
    observer = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=origin.uid("device", algorithm.name),
            name=algorithm.name,
            manufacturer_name=algorithm.manufacturer,
            model_name=algorithm.name,
            serial_number=equipment(described)["device_serial_number"],
        ),
    )
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    made = Comprehensive3DSR(
        evidence=[*origin.source.images(), segmentation],
        content=content,
        series_instance_uid=UNSET,
        sop_instance_uid=UNSET,
        series_number=origin.source.number + 3000,
        instance_number=1,
        is_complete=True,
        **equipment(described),
    )
    settle(made, origin, "report")
    return made


def _group(
    number: int, millilitres: float, described: Description, origin: Origin, segmentation: Any
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    segment, algorithm = described.segments[number - 1], described.algorithm
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=origin.uid("finding", str(segment.value)), identifier=segment.name
        ),
        referenced_segment=ReferencedSegment.from_segmentation(segmentation, number),
        finding_type=CodedConcept.from_code(code(segment.type)),
        finding_category=CodedConcept.from_code(code(segment.category)),
        algorithm_id=AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            parameters=[
                described.notice,
                *(f"{name}: {value}" for name, value in algorithm.parameters.items()),
            ],
        ),
        measurements=[
            Measurement(name=codes.SCT.Volume, value=round(millilitres, 3), unit=MILLILITRE)
        ],
    )
