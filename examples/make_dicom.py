"""Make a CT series of 61 slices, and a segmentation of its tumour, from the sample volume in ``examples/data``.

Every slice is a CT Image Storage instance (PS3.3 A.3), the segmentation a Segmentation Storage instance (PS3.3 A.51)
that references them. The patient is made up: DEMO^LUNG, DEMO-LUNG-2. UIDs are new at each run.

Usage: ``python -m examples.make_dicom FOLDER`` writes ``FOLDER/ct/001.dcm`` … and ``FOLDER/seg/tumour.dcm``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import SimpleITK
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

DATA = Path(__file__).parent / "data"
VOLUME = DATA / "lung-ct.nii.gz"
LABEL = DATA / "lung-tumour-label.nii.gz"

_CT: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 192",
    "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
    "DerivationDescription": "Resampled to a quarter of the in-plane resolution",
    "SOPClassUID": CTImageStorage,
    "StudyDate": "20260102",
    "StudyTime": "030405",
    "AccessionNumber": "",
    "Modality": "CT",
    "Manufacturer": "Clara Results demo",
    "ReferringPhysicianName": "",
    "StudyDescription": "DEMO chest CT",
    "SeriesDescription": "DEMO axial 5 mm",
    "PatientName": "DEMO^LUNG",
    "PatientID": "DEMO-LUNG-2",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "Made from a public volume without patient data",
    "BodyPartExamined": "CHEST",
    "KVP": "",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "SeriesNumber": 1,
    "AcquisitionNumber": 1,
    "PositionReferenceIndicator": "",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 1,
    "BurnedInAnnotation": "NO",
    "WindowCenter": ["40", "-600"],
    "WindowWidth": ["400", "1500"],
    "WindowCenterWidthExplanation": ["SOFT TISSUE", "LUNG"],
    "RescaleIntercept": 0,
    "RescaleSlope": 1,
    "RescaleType": "HU",
}


@dataclass(frozen=True, slots=True)
class Study:
    """What was made.

    Attributes:
        study_instance_uid: The study of both series.
        series_instance_uids: The CT's and the segmentation's.
        files: All Part 10 files.
    """

    study_instance_uid: str
    series_instance_uids: tuple[str, ...]
    files: tuple[Path, ...]


def make_study(folder: Path) -> Study:
    """Write the CT series and its segmentation below a folder.

    Args:
        folder: Where to; it and its subfolders are made.

    Raises:
        RuntimeError: The sample volume can't be read.
        OSError: The folder can't be written.
    """
    images = ct_series(SimpleITK.ReadImage(str(VOLUME)))
    segmentation = tumour_segmentation(images, SimpleITK.ReadImage(str(LABEL)))
    named = {folder / "ct" / f"{image.InstanceNumber:03}.dcm": image for image in images}
    named[folder / "seg" / "tumour.dcm"] = segmentation
    for path, instance in named.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        instance.save_as(path, enforce_file_format=True)
    return Study(
        study_instance_uid=str(images[0].StudyInstanceUID),
        series_instance_uids=(
            str(images[0].SeriesInstanceUID),
            str(segmentation.SeriesInstanceUID),
        ),
        files=tuple(named),
    )


def ct_series(volume: Any) -> list[Dataset]:
    """Return the slices of a volume as CT instances, from its first slice to its last.

    Args:
        volume: A SimpleITK image of Hounsfield units that fit 16 bits; its geometry is in millimetres in DICOM's own
            patient coordinates (to the left, to the back, to the head: PS3.3 C.7.6.2.1.1).
    """
    slices = SimpleITK.GetArrayFromImage(volume).astype(np.int16)
    direction = np.array(volume.GetDirection()).reshape(3, 3)
    column_spacing, row_spacing, slice_spacing = volume.GetSpacing()
    same = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "ImageOrientationPatient": [*direction[:, 0], *direction[:, 1]],
        "PixelSpacing": [row_spacing, column_spacing],
        "SliceThickness": slice_spacing,
        "Rows": slices.shape[1],
        "Columns": slices.shape[2],
    }
    images = []
    for index, pixels in enumerate(slices):
        image = Dataset()
        for keyword, value in (_CT | same).items():
            setattr(image, keyword, value)
        image.SOPInstanceUID = generate_uid()
        image.InstanceNumber = index + 1
        image.ImagePositionPatient = list(volume.TransformIndexToPhysicalPoint((0, 0, index)))
        image.PixelData = pixels.astype("<i2").tobytes()
        image.file_meta = _meta(image)
        images.append(image)
    return images


def _meta(image: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian)
    return meta


def tumour_segmentation(images: list[Dataset], label: Any) -> Segmentation:
    """Return a segmentation of the tumour that references a CT series.

    Args:
        images: The series, one slice for each of the label map's.
        label: A SimpleITK label map on the same grid: 1 is tumour, 0 is not.
    """
    return Segmentation(
        source_images=images,
        pixel_array=SimpleITK.GetArrayFromImage(label),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            SegmentDescription(
                segment_number=1,
                segment_label="Tumour",
                segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                segmented_property_type=codes.SCT.Neoplasm,
                algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
            )
        ],
        series_instance_uid=generate_uid(),
        series_number=2,
        series_description="DEMO tumour",
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Clara Results demo",
        manufacturer_model_name="examples.make_dicom",
        software_versions=highdicom.__version__,
        device_serial_number="1",
        content_label="TUMOUR",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a CT series and its segmentation.")
    parser.add_argument("folder", type=Path, help="where to write them")
    study = make_study(parser.parse_args().folder)
    print(f"wrote {len(study.files)} instances of study {study.study_instance_uid}")
