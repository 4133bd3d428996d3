"""The series that results belong to, and what they take from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from highdicom import SOPClass
from pydicom import Dataset
from pydicom.valuerep import DA, TM

from liver_tumor.series import Grid, Series, Slice, arrange
from liver_tumor.step import Refused

LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
"""What is made of a lossy image says so (PS3.3 C.7.6.1.1.5)."""

_KEPT = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "InstanceNumber",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    *LOSSY,
)
_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_MOMENTS = ("Content", "Acquisition", "Series", "Study")


@dataclass(frozen=True, slots=True)
class Source:
    """A series that is a volume.

    Attributes:
        slices: In the order of their places.
        grid: What they make.
        moment: Of the newest slice, or nothing where the series tells none.
    """

    slices: list[Slice]
    grid: Grid
    moment: datetime

    @property
    def header(self) -> Dataset:
        """Return the first slice's attributes."""
        return self.slices[0].header

    @property
    def uid(self) -> str:
        """Return the Series Instance UID."""
        return str(self.header.SeriesInstanceUID)

    @property
    def number(self) -> int:
        """Return the Series Number, 0 where it has none."""
        return int(self.header.get("SeriesNumber") or 0)

    def images(self) -> list[Dataset]:
        """Return the slices without what is the patient's.

        highdicom gets these: what people really wrote into names, dates and codes must not stop it, and reaches the
        results by ``inherit``, as it is.
        """
        return [_bare(each.header) for each in self.slices]


def source(series: Series) -> Source:
    """Take a series as the source of results.

    Raises:
        Refused: It makes no volume, or lacks what results must refer to.
    """
    slices, grid = arrange(series)
    for keyword in ("FrameOfReferenceUID", "StudyInstanceUID", "SOPClassUID"):
        if not slices[0].header.get(keyword):
            raise Refused(f"{series} has no {keyword}: no result can refer to it")
    return Source(slices, grid, _moment(slices))


def _moment(slices: list[Slice]) -> datetime:
    """Return when the newest slice was made, as its header tells; else when the newest file was written."""
    told = [moment for each in slices for moment in _told(each.header)]
    if told:
        return max(told)
    newest = max(each.path.stat().st_mtime for each in slices)
    return datetime.fromtimestamp(int(newest), UTC).replace(tzinfo=None)


def _told(header: Dataset) -> Iterator[datetime]:
    """Give the first of the header's moments that is one."""
    for name in _MOMENTS:
        if header.get(f"{name}Date"):
            try:
                date, time = (
                    DA(header[f"{name}Date"].value),
                    TM(header.get(f"{name}Time") or "0000"),
                )
            except ValueError:
                continue  # what is written there is no date
            yield datetime.combine(date, time)
            return


def _bare(header: Dataset) -> Dataset:
    bare = Dataset()
    for keyword in _KEPT:
        if keyword in header:
            bare[keyword] = header[keyword]
    for keyword in _EMPTY:
        setattr(bare, keyword, None)
    return bare


def inherit(instance: SOPClass, source: Source) -> None:
    """Give a result what is the source's: patient, study, trial and their character set; and the source's moment.

    A result's dates are the source's newest, not those of this run: run again, the operator makes the same bytes.
    """
    instance.pop("SpecificCharacterSet", None)
    for keyword in ("SpecificCharacterSet", "TimezoneOffsetFromUTC"):
        if keyword in source.header:
            instance[keyword] = source.header[keyword]
    instance.copy_patient_and_study_information(source.header)
    for keyword in (
        "InstanceCreationDate",
        "InstanceCreationTime",
        "DateOfSecondaryCapture",
        "TimeOfSecondaryCapture",
    ):
        instance.pop(keyword, None)
    for item in instance.get("ContributingEquipmentSequence", []):
        item.pop("ContributionDateTime", None)
    instance.ContentDate = DA(source.moment.date())
    instance.ContentTime = TM(source.moment.time())
