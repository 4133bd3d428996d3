"""Decodes compressed frames in a process of its own.

GDCM ends its process at some damaged JPEG streams, and may run on and on. So frames go to a child process, and one that
dies or does not answer in time is a frame that can't be decoded. A JSON object and the frame go in, a JSON object and the
native frame come back.
"""

import contextlib
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

from clara_results.errors import ClaraResultsError
from clara_results.payloads.child import ChildProcess, serve

START_SECONDS = 60.0
"""For a child to load its codecs, on a machine that is busy."""
LEAST_RATE = 100_000
"""Native bytes that a codec must give in a second, else it is taken for hung."""

_JPEG_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
_RLE = ("1.2.840.10008.1.2.5",)

_PLUGINS = {
    **dict.fromkeys(_JPEG_LOSSY + _JPEG_LOSSLESS + _JPEG_LS, "gdcm"),
    **dict.fromkeys(_JPEG_2000 + _HTJ2K + _RLE, "pylibjpeg"),
}
"""By transfer syntax the one of pydicom's plugins that decodes it here: always the same one, so that every frame of
an instance comes out alike."""
DECODABLE = frozenset(_PLUGINS)
"""The compressed transfer syntaxes that can be decoded (PS3.5 A.4)."""

_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG's and JPEG-LS's (F7H) frame headers."""
_RGB, _YBR_FULL, _YBR_FULL_422 = "RGB", "YBR_FULL", "YBR_FULL_422"


class FrameUndecodable(ClaraResultsError):
    """A frame that can't be decoded; the message says why."""

    code = "not-transcodable"


@dataclass(frozen=True, slots=True)
class FrameDescription:
    """How frames are encoded, and of what they are made (PS3.3 C.7.6.3).

    Attributes:
        transfer_syntax_uid: One of DECODABLE.
        rows: Pixels.
        columns: Pixels.
        samples_per_pixel: 1 or 3.
        photometric_interpretation: As the data set says.
        bits_allocated: Of a sample, as the data set says; a multiple of 8, as are those of a native frame.
        bits_stored: Of a sample, as the data set says.
        pixel_representation: 0: unsigned, 1: two's complement.
    """

    transfer_syntax_uid: str
    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    pixel_representation: int

    @property
    def native_size(self) -> int:
        """Return the bytes of a native frame."""
        return self.rows * self.columns * self.samples_per_pixel * self.bits_allocated // 8


class FrameDecoder:
    """A child process that decodes frames, one at a time. Not to be shared between threads; ``close`` ends it."""

    def __init__(self) -> None:
        self._child = ChildProcess(__name__)
        self._wait = START_SECONDS

    def decode(self, description: FrameDescription, frame: bytes) -> tuple[bytes, str]:
        """Decode a frame.

        Args:
            description: What it is.
            frame: Its codestream.

        Returns:
            The native frame, little endian, colour by pixel, and its photometric interpretation.

        Raises:
            FrameUndecodable: It is damaged, or not what the description says. The decoder may be of no more use.
        """
        try:
            connection = self._child.connection
            connection.send_bytes(json.dumps(asdict(description)).encode())
            connection.send_bytes(frame)
            if not connection.poll(self._wait + description.native_size / LEAST_RATE):
                self.close()
                raise FrameUndecodable("the codec does not come to an end with it")
            answer = json.loads(connection.recv_bytes())
            native = connection.recv_bytes()
        except (OSError, EOFError) as cause:
            self.close()
            raise FrameUndecodable("the codec broke down over it") from cause
        if "error" in answer:
            raise FrameUndecodable(answer["error"])
        self._wait = START_SECONDS / 2
        return native, answer["photometric_interpretation"]

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._child.pid

    @property
    def closed(self) -> bool:
        """Tell whether it was closed, or had to be."""
        return self._child.closed

    def close(self) -> None:
        """End the child process; harmless if it has ended."""
        self._child.close()


class FrameDecoders:
    """The decoders of an agent: one for each thread that transcodes, one kept for the next. ``close`` ends that one."""

    def __init__(self) -> None:
        self._idle: list[FrameDecoder] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[FrameDecoder]:
        """Lend a decoder; to start one takes about a second, so what can be lent again is kept."""
        try:
            decoder = self._idle.pop()
        except IndexError:
            decoder = FrameDecoder()
        try:
            yield decoder
        finally:
            if decoder.closed or self._idle:
                decoder.close()
            else:
                self._idle.append(decoder)

    def close(self) -> None:
        """End what is idle."""
        while self._idle:
            self._idle.pop().close()


@contextlib.contextmanager
def without_codecs() -> Iterator[None]:
    """Have pydicom imported without the codecs that it loads with itself; here it is the child that needs them.

    That spares an agent half a second at its start, and 33 MB.
    """
    hidden = [name for name in ("numpy", "PIL", "gdcm", "pylibjpeg") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # an import then fails, as if there were no such module
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def decode(description: FrameDescription, frame: bytes) -> tuple[bytes, str]:
    """Decode a frame in this process; see ``FrameDecoder.decode``.

    What was encoded reversibly comes out bit for bit, unused high bits of unsigned samples with it (they may hold an
    overlay). JPEG's own colour transform is undone as in every JPEG decoder, so that colour comes out as RGB, which
    is what the colour SOP classes want of native pixels (PS3.5 8.2.1); likewise those of JPEG 2000.

    Raises:
        FrameUndecodable: It is not what the description says.
        Exception: Whatever a codec raises.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import convert_color_space
    from pydicom.uid import UID, JPEGLosslessSV1

    syntax, plugin = description.transfer_syntax_uid, _PLUGINS[description.transfer_syntax_uid]
    is_jpeg = plugin == "gdcm" and syntax not in _JPEG_LS
    if plugin == "gdcm":
        _check_jpeg(description, frame)
    # GDCM finds the process in the codestream; pydicom's decoders for the lossy ones refuse 12 bits, which it can do.
    decoder = get_decoder(JPEGLosslessSV1 if is_jpeg else UID(syntax))
    whole = is_jpeg and not description.pixel_representation
    array, properties = next(
        decoder.iter_array(
            encapsulate([frame]),
            raw=True,
            decoding_plugin=plugin,
            correct_unused_bits=False,
            number_of_frames=1,
            pixel_keyword="PixelData",
            rows=description.rows,
            columns=description.columns,
            samples_per_pixel=description.samples_per_pixel,
            planar_configuration=0,
            photometric_interpretation=description.photometric_interpretation,
            bits_allocated=description.bits_allocated,
            bits_stored=description.bits_allocated if whole else description.bits_stored,
            pixel_representation=description.pixel_representation,
        )
    )
    bits = 8 * array.dtype.itemsize
    if bits > description.bits_allocated:
        raise FrameUndecodable(
            f"its samples have {bits} bits, but Bits Allocated (0028,0100) is {description.bits_allocated}"
        )
    interpretation = str(properties["photometric_interpretation"])
    if syntax in _JPEG_LOSSLESS + _JPEG_LS + _RLE:  # no transform: they are what the data set says
        interpretation = description.photometric_interpretation
    if syntax in _JPEG_LOSSY and interpretation in {_YBR_FULL, _YBR_FULL_422}:
        array, interpretation = convert_color_space(array, _YBR_FULL, _RGB), _RGB
    elif interpretation == _YBR_FULL_422:
        interpretation = _YBR_FULL
    kind = "i" if description.pixel_representation else "u"
    native = array.astype(f"<{kind}{description.bits_allocated // 8}", copy=False).tobytes()
    if len(native) != description.native_size:
        raise FrameUndecodable("it has not as many pixels as the data set says")
    return native, interpretation


def _check_jpeg(description: FrameDescription, frame: bytes) -> None:
    """Hold a JPEG or JPEG-LS codestream's frame header (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2) to what the data set says.

    GDCM does not: of samples that are wider than Bits Allocated it returns the half, as if it were the whole.
    """
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in _FRAME_HEADERS:
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            size = description.rows, description.columns, description.samples_per_pixel
            if (rows, columns, components) != size or bits > description.bits_allocated:
                raise FrameUndecodable(
                    f"its codestream has {rows} by {columns} pixels of {components} samples of {bits} bits; "
                    f"the data set says {size[0]} by {size[1]} of {size[2]} of {description.bits_allocated}"
                )
            return
        at += 1 if marker == 0xFF else 2 + length
    raise FrameUndecodable("it holds no JPEG frame header")


def _answer(connection: Connection) -> None:
    """Decode a frame that comes."""
    description = FrameDescription(**json.loads(connection.recv_bytes()))
    frame = connection.recv_bytes()
    answer: dict[str, str] = {}
    native = b""
    try:
        native, answer["photometric_interpretation"] = decode(description, frame)
    except Exception as error:  # noqa: BLE001  (outermost loop: a codec may raise anything)
        answer["error"] = " ".join(str(error).split())[:300]
    connection.send_bytes(json.dumps(answer).encode())
    connection.send_bytes(native)


def main() -> None:
    """Run the child process."""
    with contextlib.suppress(ModuleNotFoundError):
        import gdcm

        gdcm.Trace.DebugOff()
        gdcm.Trace.WarningOff()
        gdcm.Trace.ErrorOff()
    serve(_answer)


if __name__ == "__main__":
    main()
