"""What the values of a label map mean, and what made it: ``X.output.json`` beside ``X.output.mhd``.

This file is the interface between whatever segments and dicom-writer. Texts are ASCII, since they go into DICOM objects
in whatever character set the patient's name needs.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from liver_tumor.step import Refused

LongString = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")]
"""A text that DICOM takes as LO in any character set (PS3.5 6.2): no back-slash, no control characters."""


class _Model(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid"
    )


class Code(_Model):
    """A coded term (PS3.3 8.8): for SNOMED CT the scheme is SCT, for DICOM's own DCM."""

    value: Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x21-\x5b\x5d-\x7e]+$")]
    scheme: Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x21-\x5b\x5d-\x7e]+$")]
    meaning: LongString


class Segment(_Model):
    """One value of the label map.

    Attributes:
        value: The value, from 1.
        name: What a viewer calls it.
        color: ``#rrggbb``.
        category: Of what kind it is, of CID 7150: anatomical structure, morphologically abnormal structure….
        type: What it is: liver, neoplasm….
    """

    value: Annotated[int, Field(ge=1, le=255)]
    name: LongString
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
    category: Code
    type: Code

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Return red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self.color[1:])
        return red, green, blue


class Algorithm(_Model):
    """What made the label map (PS3.3 10.16).

    Attributes:
        name: Its name.
        version: Its version.
        family: Its kind, of CID 7162: 123110 DCM is artificial intelligence.
        type: Whether a person took part.
        parameters: What it was set to, by name.
        manufacturer: Who is answerable for it.
    """

    name: LongString
    version: LongString
    family: Code
    type: Literal["AUTOMATIC", "SEMIAUTOMATIC"]
    parameters: dict[LongString, LongString] = {}
    manufacturer: LongString


class Description(_Model):
    """All of the file.

    Attributes:
        algorithm: What made the label map.
        series_description: Title of the DICOM series that are made of it.
        notice: What whoever looks at it must know; it stands on key images and in the report.
        segments: What its values mean.
    """

    algorithm: Algorithm
    series_description: LongString
    notice: LongString
    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]


def read(path: Path) -> Description:
    """Read the description of a label map.

    Raises:
        Refused: It is missing or not valid; the message says all that is wrong.
    """
    try:
        description = Description.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise Refused(f"{path} is missing: it says what the label map's values mean") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise Refused(f"{path} is not valid: {faults}") from error
    values = [segment.value for segment in description.segments]
    if len(set(values)) < len(values):
        raise Refused(f"{path} describes a value twice: {values}")
    return description


def write(description: Description, path: Path) -> None:
    """Write a description as JSON.

    Raises:
        OSError: It can't be written.
    """
    path.write_text(description.model_dump_json(by_alias=True, indent=2) + "\n")
