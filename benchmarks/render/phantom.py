"""A CT of a noisy body with organs, in the forms in which pipelines leave volumes."""

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (0.8, 0.8, 1.0)
NOISE = 15.0
"""Standard deviation in Hounsfield units: what makes a CT hard to compress."""


def volume(size: tuple[int, int, int]) -> tuple[Any, Any]:
    """Return Hounsfield units and labels (1 and 2), both [k, j, i], of a size in voxels along i, j and k."""
    columns, rows, slices = size
    random = np.random.default_rng(1)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    body = x**2 / 0.75 + y**2 / 0.4 < 1
    values = np.empty((slices, rows, columns), np.int16)
    labels = np.zeros((slices, rows, columns), np.uint8)
    for k in range(slices):
        z = 2 * k / slices - 1
        organ = (x + 0.3) ** 2 / 0.08 + y**2 / 0.05 + z**2 / 0.3 < 1
        lesion = (x + 0.35) ** 2 + (y - 0.05) ** 2 + z**2 < 0.01
        tissue = np.where(body, 40, -1000) + 20 * organ + 40 * lesion
        noise = random.normal(0, NOISE, (rows, columns))
        values[k] = np.clip(tissue + noise, -1024, 3071)
        labels[k] = organ + lesion.astype(np.uint8) * organ
    return values, labels


def write_metaimage(array: Any, path: Path) -> None:
    """Write voxels as ``.mhd`` and ``.raw``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    SimpleITK.WriteImage(image, str(path))


def write_series(array: Any, folder: Path) -> None:
    """Write Hounsfield units as a CT series."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k, pixels in enumerate(array):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID = frame
        image.Modality, image.PatientID = "CT", "PHANTOM"
        image.InstanceNumber = k + 1
        image.ImagePositionPatient = [0, 0, k * SPACING[2]]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.PixelSpacing = [SPACING[1], SPACING[0]]
        image.SliceThickness = SPACING[2]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns = pixels.shape
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.RescaleIntercept, image.RescaleSlope = -1024, 1
        image.PixelData = (pixels + 1024).astype("<u2").tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(folder / f"{k:04}.dcm", enforce_file_format=True)
