"""Volumes in files of their own: checked, and laid out so that SimpleITK reads them right."""

import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import SimpleITK
from isal import isal_zlib
from isal.igzip_lib import IsalError

from clara_results.agents.render import metaimage, nifti
from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.grid import Grid
from clara_results.agents.render.source import Kind, Source

METAIMAGE = (".mhd", ".mha")
NIFTI = (".nii", ".nii.gz")
VOXEL_LIMIT = 1 << 29
"""Voxels of a volume: what becomes of twice as many would not fit a browser, either."""
INFLATED = "../inflated"
"""Folder beside the task's files for what was compressed."""
CHUNK = 1 << 16
"""Bytes that are inflated at a time: they become a thousand times as many at the most."""
SLACK = 1 << 20
"""Bytes that a NIfTI file may have after its voxels."""
_GZIP = 16 + zlib.MAX_WBITS


def suffix(uri: str) -> str:
    """Return a volume file's suffix in lower case, ``.nii.gz`` as one; empty: it has none of a volume's."""
    name = PurePosixPath(uri).name.lower()
    return next((end for end in (".nii.gz", ".nii", *METAIMAGE) if name.endswith(end)), "")


def stem(uri: str) -> str:
    """Return a file's name without its folder and its suffix."""
    name = PurePosixPath(uri).name
    return name[: -len(suffix(uri))] if suffix(uri) else name.rpartition(".")[0] or name


def open_metaimage(folder: Path, uri: str, there: set[str]) -> Source:
    """Check a MetaImage and its voxels' file.

    Args:
        folder: The task's files, by URI.
        uri: The header.
        there: URIs of all files of the task.

    Raises:
        Unshowable: It can't be shown.
    """
    header = metaimage.read_header(folder / uri)
    _check_voxels(header.dims)
    data = metaimage.data_uri(header, uri)
    if data not in there:
        raise Unshowable(
            "the file that its ElementDataFile names is not among the task's: register it too",
            code="data-file-missing",
        )
    path = folder / data
    path_read = uri
    if header.compressed:
        path_read = f"{INFLATED}/{uri}/volume.mhd"
        raw = folder / INFLATED / uri / "volume.raw"
        size = _inflate(path, raw, header.size, header.data_offset, zlib.MAX_WBITS)
        plain = metaimage.plain_lines(header, raw.name)
        (folder / path_read).write_text(plain, encoding="utf-8")
    else:
        size = path.stat().st_size - max(0, header.data_offset)
    if size < header.size or (size > header.size and header.data_offset >= 0):
        raise Unshowable(
            f"its voxels have {'at least ' if header.compressed else ''}{size} bytes; its header says "
            f"{_product(header.dims, header.voxel_bytes)}",
            code="size-differs",
        )
    return Source(
        kind=Kind.VOLUME,
        uris=list(dict.fromkeys([uri, data])),
        path=path_read,
        grid=read_grid(folder / path_read),
        name=stem(uri),
        modality=header.modality,
        unit="HU" if header.modality == "CT" else None,
    )


def open_nifti(folder: Path, uri: str) -> Source:
    """Check a NIfTI file.

    Raises:
        Unshowable: It can't be shown.
    """
    path = folder / uri
    path_read = uri
    if suffix(uri) == ".nii.gz":
        path_read = f"{INFLATED}/{uri}/volume.nii"
        inflated = folder / path_read
        _inflate(path, inflated, nifti.HEADER_BYTES, 0, _GZIP)
        header = nifti.read_header(inflated)
        _check_voxels(header.dims)
        size = _inflate(path, inflated, header.size + SLACK, 0, _GZIP)
        path = inflated
    else:
        header = nifti.read_header(path)
        _check_voxels(header.dims)
        size = path.stat().st_size
    if size < header.size:
        raise Unshowable(
            f"it has {size} bytes; its header says {header.data_offset} and {_product(header.dims, header.voxel_bytes)}",
            code="size-differs",
        )
    grid = read_grid(path)
    return Source(kind=Kind.VOLUME, uris=[uri], path=path_read, grid=grid, name=stem(uri))


def read_grid(path: Path) -> Grid:
    """Return where a volume's voxels are, as ITK reads it.

    Raises:
        Unshowable: ITK can't read the header.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        code = "direction-invalid" if "orthonormal" in str(error) else "header-invalid"
        raise Unshowable("SimpleITK can't read its header", code=code) from error
    if reader.GetNumberOfComponents() != 1:
        raise Unshowable("its voxels are not single numbers", code="not-scalar")
    count = reader.GetDimension()
    dims = [*reader.GetSize()[:3], 1][:3]
    spacing = [*reader.GetSpacing()[:3], 1.0][:3]
    origin = [*reader.GetOrigin()[:3], 0.0][:3]
    matrix = reader.GetDirection()
    rows = [
        [matrix[row * count + column] if max(row, column) < count else float(row == column) for column in range(3)]
        for row in range(3)
    ]  # fmt: skip
    if not metaimage.orthonormal(rows):
        raise Unshowable("its axes are not at right angles to each other", code="direction-invalid")
    return Grid(dims, spacing, origin, [number for row in rows for number in row])


def read_volume(path: Path, grid: Grid) -> SimpleITK.Image:
    """Read a volume.

    Raises:
        Unshowable: ITK can't.
    """
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise Unshowable("SimpleITK can't read it", code="damaged") from error
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    if image.GetDimension() == 2:
        image = SimpleITK.JoinSeries(image)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def _check_voxels(dims: tuple[int, ...]) -> None:
    voxels = 1
    for size in dims:
        voxels *= size
    if voxels > VOXEL_LIMIT:
        raise Unshowable(
            f"it has {voxels:,} voxels; up to {VOXEL_LIMIT:,} are shown", code="too-large"
        )


def _product(dims: tuple[int, ...], voxel_bytes: int) -> str:
    return f"{' x '.join(map(str, dims))} voxels of {voxel_bytes} bytes"


def _inflate(path: Path, to: Path, most: int, offset: int, window: int) -> int:
    """Inflate a file, up to some bytes and what came with the last of them; return how many bytes came out.

    Args:
        path: Which file.
        to: Where to.
        most: Bytes after which the rest is left.
        offset: Bytes before the stream.
        window: zlib's word for what kind of stream it is.

    Raises:
        Unshowable: It is damaged.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with to.open("wb") as out:
        for piece in _inflated(path, max(0, offset), window):
            written += out.write(piece)
            if written > most:
                break
    return written


def _inflated(path: Path, offset: int, window: int) -> Iterator[bytes]:
    """Yield the pieces of a zlib stream, or of gzip's members one after the other."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            inflater = isal_zlib.decompressobj(window)
            while data := inflater.unused_data or file.read(CHUNK):
                if inflater.eof:
                    if window != _GZIP or not data.strip(b"\0"):
                        return
                    inflater = isal_zlib.decompressobj(window)
                yield inflater.decompress(data)
            if not inflater.eof:
                raise Unshowable("its compressed voxels end too early", code="damaged")
    except IsalError as error:  # type: ignore[misc]  # its stub makes it an instance
        raise Unshowable("its compressed voxels are damaged", code="damaged") from error
