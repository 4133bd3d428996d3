"""Key images: the slices where each segment is largest, with outlines, as secondary captures (PS3.3 A.8.1)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
from highdicom import CoordinateSystemNames, PhotometricInterpretationValues
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from liver_tumor.description import Description
from liver_tumor.results.identity import UNSET, Origin, settle
from liver_tumor.results.segments import Labels, equipment
from liver_tumor.results.source import LOSSY

Pixels = npt.NDArray[np.uint8]
SIDE = 512
"""Pixels that an image has at least along its longer side, so that the text on it can be read."""
TEXT = 14
"""Height of the text in pixels."""


def key_images(
    volume: npt.NDArray[np.int16],
    labels: Labels,
    described: Description,
    origin: Origin,
    content: str,
) -> list[SCImage]:
    """Return a secondary capture of each slice where a segment is largest, with outlines, names and notice.

    Args:
        volume: The source's values, slices x rows x columns.
        labels: Segment numbers on the same grid.
        described: What they mean.
        origin: The source and the job.
        content: Digest of the segmentation: the series is that of its key images.
    """
    numbers = range(1, len(described.segments) + 1)
    areas = {number: (labels == number).sum(axis=(1, 2)) for number in numbers}
    chosen = sorted({int(area.argmax()) for area in areas.values() if area.any()})
    low, high = _window(origin.source.header, volume)
    made = []
    for instance_number, index in enumerate(chosen, 1):
        grey = np.clip((volume[index] - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
        image = _capture(
            _drawn(grey, labels[index], described), index, instance_number, described, origin
        )
        settle(image, origin, "key image", content)
        made.append(image)
    return made


def _window(header: Dataset, volume: npt.NDArray[np.int16]) -> tuple[float, float]:
    """Return the values that are black and white: the source's first window, else nearly all values."""
    centers, widths = header.get("WindowCenter"), header.get("WindowWidth")
    if centers is not None and widths is not None:
        center, width = (float(np.atleast_1d(each)[0]) for each in (centers, widths))
        if width > 1:
            return center - width / 2, center + width / 2
    low, high = np.percentile(volume, (0.5, 99.5))
    return float(low), float(max(high, low + 1))


def _drawn(grey: Pixels, labels: Labels, described: Description) -> Pixels:
    """Return a slice in colour, with the outlines of its segments, their names and the notice."""
    factor = -(-SIDE // max(grey.shape))
    large = grey.repeat(factor, 0).repeat(factor, 1)
    outlined: Any = SimpleITK.GetArrayFromImage(
        SimpleITK.LabelContour(
            SimpleITK.GetImageFromArray(labels.repeat(factor, 0).repeat(factor, 1))
        )
    )
    colours = np.stack([large] * 3, axis=-1)
    for number, segment in enumerate(described.segments, 1):
        colours[outlined == number] = segment.rgb
    image = Image.fromarray(colours)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(TEXT)
    lines = [(segment.name, segment.rgb) for segment in described.segments]
    lines.append((described.notice, (255, 255, 0)))
    for line, (text, colour) in enumerate(lines):
        place = (4, image.height - (len(lines) - line) * (TEXT + 4))
        draw.text(place, text, colour, font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(image)


def _capture(
    pixels: Pixels, index: int, instance_number: int, described: Description, origin: Origin
) -> SCImage:
    reference = origin.source.images()[index]
    image = SCImage.from_ref_dataset(
        ref_dataset=reference,
        pixel_array=pixels,
        photometric_interpretation=PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        coordinate_system=CoordinateSystemNames.PATIENT,
        patient_orientation=_orientation(origin.source.grid.direction),
        series_instance_uid=UNSET,
        sop_instance_uid=UNSET,
        series_number=origin.source.number + 2000,
        instance_number=instance_number,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **equipment(described),
    )
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.BurnedInAnnotation = "NO"
    image.ConversionType = "WSD"
    if origin.source.header.get("BodyPartExamined"):
        image.BodyPartExamined = origin.source.header.BodyPartExamined
    else:
        image.Laterality = ""  # not known (PS3.3 C.7.3.1: Type 2C where no body part is told)
    image.DerivationDescription = described.notice
    for keyword in LOSSY:
        if keyword in reference:
            image[keyword] = reference[keyword]
    item = Dataset()
    item.ReferencedSOPClassUID = reference.SOPClassUID
    item.ReferencedSOPInstanceUID = reference.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [
        CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    image.SourceImageSequence = [item]
    return image


def _orientation(direction: npt.NDArray[np.float64]) -> tuple[str, str]:
    """Return where rows and columns run to: the nearest of left, right, posterior, anterior, head, feet (PS3.3 C.7.6.1.1.1)."""
    letters = [("L", "R"), ("P", "A"), ("H", "F")]
    nearest = [
        letters[int(np.abs(axis).argmax())][int(axis[np.abs(axis).argmax()] < 0)]
        for axis in (direction[:, 0], direction[:, 1])
    ]
    return nearest[0], nearest[1]
