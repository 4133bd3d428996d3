"""NIfTI-1 and NIfTI-2 headers: ITK reads a file that ends too early as zeros, so its size is looked at here.

Formats: https://nifti.nimh.nih.gov/nifti-1, https://nifti.nimh.nih.gov/nifti-2.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from clara_results.agents.render.faults import Unshowable

HEADER_BYTES = 540
"""Of the larger of the two."""
_VOXEL_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
"""By datatype; others are not scalar, or of a precision that no viewer has."""


@dataclass(frozen=True, slots=True)
class NiftiHeader:
    """A header that says what can be shown.

    Attributes:
        dims: Voxels along i, j and k.
        voxel_bytes: Of one.
        data_offset: Where they begin.
    """

    dims: tuple[int, ...]
    voxel_bytes: int
    data_offset: int

    @property
    def size(self) -> int:
        """Return the bytes that a file has at least."""
        return self.data_offset + math.prod(self.dims) * self.voxel_bytes


def read_header(path: Path) -> NiftiHeader:
    """Read the header of a file that is not compressed.

    Raises:
        Unshowable: It is none (``header-invalid``), or of what is not shown (``unsupported-volume``, ``not-3d``).
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    for order in "<", ">":
        if len(head) >= 348 and struct.unpack_from(f"{order}i", head)[0] == 348:
            dims = struct.unpack_from(f"{order}8h", head, 40)
            (datatype,) = struct.unpack_from(f"{order}h", head, 70)
            (offset,) = struct.unpack_from(f"{order}f", head, 108)
            return _checked(head[344:348] == b"n+1\0", dims, datatype, offset)
        if len(head) >= 540 and struct.unpack_from(f"{order}i", head)[0] == 540:
            (datatype,) = struct.unpack_from(f"{order}h", head, 12)
            dims = struct.unpack_from(f"{order}8q", head, 16)
            (offset,) = struct.unpack_from(f"{order}q", head, 168)
            return _checked(head[4:8] == b"n+2\0", dims, datatype, offset)
    raise Unshowable("it does not begin with a NIfTI header", code="header-invalid")


def _checked(magic: bool, dims: tuple[int, ...], datatype: int, offset: float) -> NiftiHeader:
    if not magic:
        raise Unshowable(
            "its voxels are in another file: write header and voxels to one (.nii)",
            code="unsupported-volume",
        )
    count = dims[0]
    if not 1 <= count <= 7 or any(size < 1 for size in dims[1 : count + 1]):
        raise Unshowable("its dim is not what NIfTI allows", code="header-invalid")
    if datatype not in _VOXEL_BYTES:
        raise Unshowable(f"its datatype {datatype} is not shown", code="unsupported-volume")
    if count < 2 or math.prod(dims[4 : count + 1]) != 1:
        raise Unshowable("it is no volume of three dimensions", code="not-3d")
    if not math.isfinite(offset) or offset < 0:
        raise Unshowable("its vox_offset is not what NIfTI allows", code="header-invalid")
    return NiftiHeader(dims[1 : min(count, 3) + 1], _VOXEL_BYTES[datatype], int(offset))
