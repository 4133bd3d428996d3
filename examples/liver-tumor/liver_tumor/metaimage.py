"""Volumes and label maps as MetaImage files: ``X.mhd`` and ``X.raw``, ``X.output.mhd`` and ``X.output.raw``."""

from pathlib import Path
from typing import Any

import SimpleITK

from liver_tumor.step import Refused

VOLUME, LABEL = ".mhd", ".output.mhd"


def only(folder: Path, suffix: str) -> Path:
    """Return the one volume, or the one label map, of a folder.

    Args:
        folder: Where it is.
        suffix: ``VOLUME`` or ``LABEL``.

    Raises:
        Refused: There is none, or more than one.
    """
    paths = sorted(folder.glob(f"*{suffix}"))
    if suffix == VOLUME:
        paths = [path for path in paths if not path.name.endswith(LABEL)]
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise Refused(f"{folder} must hold one *{suffix}; it holds {names}")
    return paths[0]


def read(path: Path) -> Any:
    """Return a file as a SimpleITK image of three dimensions.

    Raises:
        Refused: It is damaged, its raw file is missing, or it has other dimensions.
    """
    try:
        image: Any = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise Refused(f"{path} can't be read (is its .raw file there, whole?): {reason}") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise Refused(f"{path} is not a volume of single values")
    return image


def write(image: Any, path: Path, modality: str = "") -> None:
    """Write an image as MHD and raw file.

    Args:
        image: What to write.
        path: The MHD file.
        modality: What made it. CT and MR have a name in the format; ITK's own writer leaves it out.

    Raises:
        OSError: It can't be written.
    """
    try:
        SimpleITK.WriteImage(image, str(path), useCompression=False)
    except RuntimeError as error:
        raise OSError(f"{path} can't be written: {error}") from error
    if modality in {"CT", "MR"}:
        header = path.read_text()
        spacing = "\nElementSpacing"
        path.write_text(header.replace(spacing, f"\nModality = MET_MOD_{modality}{spacing}", 1))
