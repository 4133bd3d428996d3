"""MetaImage headers (``.mhd``, ``.mha``): what SimpleITK takes on trust is looked at here.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation. ITK reads a short data file as zeros, and takes what a header does
not say for granted.
"""

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clara_results.agents.render.faults import Unshowable

HEADER_LIMIT = 1 << 20
"""Bytes in which a header ends."""
LOCAL = "LOCAL"
ORTHONORMAL = 1e-3
"""By how much the product of two rows of a TransformMatrix may be off: headers are rounded to few digits."""
SIZES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
"""Bytes of a voxel by ElementType."""
_REQUIRED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
_TRANSFORMS = ("TransformMatrix", "Rotation", "Orientation")
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_NM": "NM", "MET_MOD_US": "US"}


@dataclass(frozen=True, slots=True)
class MetaHeader:
    """A header that is complete, and says what can be shown.

    Attributes:
        dims: Voxels along i, j and k.
        voxel_bytes: Of one.
        data_file: Where the voxels are, relative to the header; LOCAL: behind it.
        data_offset: Where they begin in that file; -1: they are its last bytes.
        compressed: Whether they are a zlib stream (RFC 1950).
        modality: DICOM's word for it, if the header has one.
        lines: The header's, without ElementDataFile's.
    """

    dims: tuple[int, ...]
    voxel_bytes: int
    data_file: str
    data_offset: int
    compressed: bool
    modality: str | None
    lines: tuple[str, ...]

    @property
    def size(self) -> int:
        """Return the bytes of all voxels."""
        return math.prod(self.dims) * self.voxel_bytes

    @property
    def local(self) -> bool:
        """Tell whether the voxels are in the header's own file."""
        return self.data_file.upper() == LOCAL


def read_header(path: Path) -> MetaHeader:
    """Read a header.

    Raises:
        Unshowable: It is not complete (``header-incomplete``), not right (``header-invalid``, ``direction-invalid``), or
            of a kind that is not shown (``unsupported-volume``).
        OSError: The file can't be read.
    """
    fields, lines, length = _fields(path)
    missing = [name for name in _REQUIRED if name not in fields]
    if not {"ElementSpacing", "ElementSize"} & set(fields):
        missing.append("ElementSpacing")
    if missing:
        raise Unshowable(f"its header lacks {', '.join(missing)}", code="header-incomplete")
    kind = fields["ElementType"].upper()
    if kind not in SIZES:
        raise Unshowable(
            f"its ElementType is none of {', '.join(SIZES)}", code="unsupported-volume"
        )
    if fields.get("ObjectType", "Image") != "Image" or not _true(fields.get("BinaryData", "True")):
        raise Unshowable("it is no image of binary voxels", code="unsupported-volume")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise Unshowable("its voxels are not single numbers", code="not-scalar")
    dims = _dims(fields)
    _check_geometry(fields, len(dims))
    data_file = fields["ElementDataFile"]
    if data_file.upper().startswith("LIST") or "%" in data_file:
        raise Unshowable(
            "its voxels are in several files: write them to one", code="unsupported-volume"
        )
    local = data_file.upper() == LOCAL
    return MetaHeader(
        dims=dims,
        voxel_bytes=SIZES[kind],
        data_file=data_file.replace("\\", "/"),
        data_offset=length if local else _offset(fields),
        compressed=_true(fields.get("CompressedData", "False")),
        modality=_MODALITIES.get(fields.get("Modality", "").upper()),
        lines=tuple(lines),
    )


def data_uri(header: MetaHeader, uri: str) -> str:
    """Return the URI of the file with the voxels; ``uri`` is the header's.

    Raises:
        Unshowable: It is not within the payload (``data-file-missing``).
    """
    if header.local:
        return uri
    parts: list[str] = list(PurePosixPath(uri).parent.parts)
    for part in header.data_file.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part == ".." or (part == "" and not parts):
            raise Unshowable("its ElementDataFile is outside the payload", code="data-file-missing")
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def plain_lines(header: MetaHeader, data_file: str) -> str:
    """Return a header for the same voxels as they are in another file: not compressed, from its beginning."""
    passed_over = {"CompressedData", "CompressedDataSize", "HeaderSize", "ElementDataFile"}
    kept = [line for line in header.lines if line.split("=")[0].strip() not in passed_over]
    return "\n".join([*kept, "CompressedData = False", f"ElementDataFile = {data_file}", ""])


def _fields(path: Path) -> tuple[dict[str, str], list[str], int]:
    """Return a header's fields, its lines, and how many bytes it has."""
    with path.open("rb") as file:
        head = file.read(HEADER_LIMIT)
    fields: dict[str, str] = {}
    lines: list[str] = []
    position = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        line = head[position : len(head) if end < 0 else end]
        text = line.decode("utf-8", "replace").replace("\t", " ").strip()
        name, equals, value = text.partition("=")
        if text and (not equals or not text.isprintable()):
            raise Unshowable("it does not begin with a MetaImage header", code="header-invalid")
        if text:
            fields[name.strip()] = value.strip()
            lines.append(text)
        if end < 0:
            break
        position = end + 1
    return fields, lines, position


def _dims(fields: dict[str, str]) -> tuple[int, ...]:
    try:
        count = int(fields["NDims"])
        dims = tuple(int(size) for size in fields["DimSize"].split())
    except ValueError:
        raise Unshowable(
            "its NDims or DimSize are no whole numbers", code="header-invalid"
        ) from None
    if len(dims) != count or any(size < 1 for size in dims):
        raise Unshowable("its DimSize is not as NDims says", code="header-invalid")
    if count == 4 and dims[3] == 1:
        return dims
    if count not in {2, 3}:
        raise Unshowable(f"it has {count} dimensions, not 3", code="not-3d")
    return dims


def _numbers(fields: dict[str, str], name: str, count: int) -> list[float]:
    try:
        numbers = [float(number) for number in fields[name].split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise Unshowable(f"its {name} is not {count} numbers", code="header-invalid")
    return numbers


def _check_geometry(fields: dict[str, str], count: int) -> None:
    spacing = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    if min(_numbers(fields, spacing, count)) <= 0:
        raise Unshowable(f"its {spacing} is not above 0", code="header-invalid")
    for name in ("Offset", "Position", "Origin"):
        if name in fields:
            _numbers(fields, name, count)
    for name in _TRANSFORMS:
        if name in fields:
            numbers = _numbers(fields, name, count * count)
            rows = [numbers[at : at + count] for at in range(0, count * count, count)]
            if not orthonormal(rows):
                raise Unshowable(
                    f"its {name} is no rotation or reflection: its rows are not of length 1 and at right angles",
                    code="direction-invalid",
                )


def orthonormal(rows: list[list[float]]) -> bool:
    """Tell whether vectors are of length 1 and at right angles to each other."""
    return all(
        abs(sum(a * b for a, b in zip(one, other, strict=True)) - (one is other)) <= ORTHONORMAL
        for one in rows
        for other in rows
    )


def _offset(fields: dict[str, str]) -> int:
    try:
        return int(fields.get("HeaderSize", "0"))
    except ValueError:
        raise Unshowable("its HeaderSize is no whole number", code="header-invalid") from None


def _true(word: str) -> bool:
    return word[:1].upper() in {"T", "1", "Y"}
