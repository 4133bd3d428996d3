"""Transcoding, with DCMTK and pydicom as second opinions."""

import base64
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import DataElement, Dataset, Sequence, config, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.part10 import DicomUnreadable, Header, read_header
from clara_results.agents.dicom.transcode import CannotTranscode, alternatives, transcode

EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
ROWS, COLUMNS = 40, 36
TEXTS = {
    "ISO 2022 IR 87": (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
        "Yamada^Tarou=山田^太郎",
    ),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
    "ISO_IR 192": ("ISO_IR 192", "Müller^Jörg=王^小东".encode(), "Müller^Jörg=王^小东"),
    "ISO_IR 100": ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
}


@pytest.fixture(scope="module")
def decoders() -> Iterator[FrameDecoders]:
    made = FrameDecoders()
    yield made
    made.close()


def header_of(path: Path) -> Header:
    with path.open("rb") as opened:
        return read_header(partial(os.pread, opened.fileno()), path.stat().st_size, path.name)


Transcode = Callable[[Path, str], Path]


@pytest.fixture
def transcoded(decoders: FrameDecoders, tmp_path: Path) -> Transcode:
    """Give a function that transcodes a file, checks the header that is returned, and returns the new file."""

    def run(path: Path, target: str) -> Path:
        out = tmp_path / f"{path.stem}-{target}.dcm"
        with path.open("rb") as source:
            made = transcode(source, header_of(path), target, out, decoders)
        assert made == header_of(out)
        assert made.transfer_syntax_uid == target
        assert list(tmp_path.glob("*.inflated")) == []
        return out

    return run


def image(samples: np.ndarray[Any, Any], *, stored: int, interpretation: str = "MONOCHROME2", frames: int = 1) -> Dataset:  # fmt: skip
    made = Dataset()
    made.SOPClassUID = SecondaryCaptureImageStorage
    made.SOPInstanceUID = generate_uid()
    made.StudyInstanceUID = generate_uid()
    made.SeriesInstanceUID = generate_uid()
    made.Modality = "OT"
    made.PatientName = "A^B"
    made.LossyImageCompression = "01"
    made.LossyImageCompressionRatio = "12.5"
    made.SamplesPerPixel = 1 if interpretation == "MONOCHROME2" else 3
    made.PhotometricInterpretation = interpretation
    if made.SamplesPerPixel == 3:
        made.PlanarConfiguration = 0
    if frames > 1:
        made.NumberOfFrames = frames
    made.Rows, made.Columns = ROWS, COLUMNS
    made.BitsAllocated = 8 * samples.dtype.itemsize
    made.BitsStored = stored
    made.HighBit = stored - 1
    made.PixelRepresentation = int(samples.dtype.kind == "i")
    vr = "OB" if made.BitsAllocated == 8 else "OW"
    made["PixelData"] = DataElement("PixelData", vr, samples.tobytes())
    return made


def save(made: Dataset, path: Path, syntax: str = EXPLICIT) -> Path:
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.save_as(path, enforce_file_format=True)
    return path


def images() -> dict[str, Dataset]:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    ramp = y * 37 + x * x * 3
    return {
        "8 bits": image((ramp % 256).astype("u1"), stored=8),
        "12 bits": image((ramp % 4096).astype("u2"), stored=12),
        "12 bits signed": image((ramp % 4096 - 2048).astype("i2"), stored=12),
        "16 bits": image((ramp * 41 % 65536).astype("u2"), stored=16),
        "overlay above": image((ramp % 4096 | (x & 1) << 12).astype("u2"), stored=12),
        "RGB": image(
            np.stack([ramp % 256, y * 9 % 256, x * 7 % 256], -1).astype("u1"),
            stored=8,
            interpretation="RGB",
        ),
    }


COMPRESSORS = {
    "JPEG lossless SV1": (["dcmcjpeg", "+e1"], "dcmdjpeg"),
    "JPEG lossless": (["dcmcjpeg", "+el"], "dcmdjpeg"),
    "JPEG baseline": (["dcmcjpeg", "+eb"], "dcmdjpeg"),
    "JPEG extended": (["dcmcjpeg", "+ee"], "dcmdjpeg"),
    "JPEG-LS lossless": (["dcmcjpls", "+el"], "dcmdjpls"),
    "JPEG-LS near-lossless": (["dcmcjpls", "+en"], "dcmdjpls"),
    "RLE": (["dcmcrle"], "dcmdrle"),
}


def samples_of(path: Path) -> np.ndarray[Any, Any]:
    """Return native samples as they are stored, colour by pixel."""
    read = dcmread(path)
    assert not read.file_meta.TransferSyntaxUID.is_compressed
    kind = "ui"[read.PixelRepresentation]
    samples = np.frombuffer(read.PixelData, f"<{kind}{read.BitsAllocated // 8}")
    if read.SamplesPerPixel == 3 and read.PlanarConfiguration == 1:
        return samples.reshape(3, -1).T.reshape(ROWS, COLUMNS, 3)
    return samples[: ROWS * COLUMNS * read.SamplesPerPixel].reshape(ROWS, COLUMNS, -1)


@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("kind", images())
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_what_dcmtk_compressed_comes_out_as_dcmtk_decodes_it(
    compressor: str,
    kind: str,
    target: str,
    transcoded: Transcode,
    require_tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    compress, decompress = COMPRESSORS[compressor]
    if compressor == "JPEG-LS near-lossless" and kind == "12 bits signed":
        pytest.skip("DCMTK does not make these")
    native = save(images()[kind], tmp_path / "native.dcm")
    packed, theirs = tmp_path / "packed.dcm", tmp_path / "theirs.dcm"
    subprocess.run([require_tool(compress[0]), *compress[1:], native, packed], check=True)
    subprocess.run([require_tool(decompress), packed, theirs], check=True)

    out = transcoded(packed, target)

    ours, other, source = dcmread(out), dcmread(theirs), dcmread(packed)
    difference = samples_of(out).astype(int) - samples_of(theirs).astype(int)
    # Rounding in JPEG's colour transform; all else is the same to the bit.
    most = 1 if source.PhotometricInterpretation == "YBR_FULL_422" else 0
    assert np.abs(difference).max() <= most
    assert ours.PhotometricInterpretation == other.PhotometricInterpretation
    assert ours.get("PlanarConfiguration", 0) == 0
    assert ("OW" if ours.BitsAllocated > 8 or target == IMPLICIT else "OB") == ours["PixelData"].VR
    for changed in ("PixelData", "PhotometricInterpretation", "PlanarConfiguration"):
        for one in (ours, source):
            if changed in one:
                del one[changed]
    assert ours == source
    assert ours.LossyImageCompression == "01"


@pytest.mark.parametrize("kind", ["8 bits", "12 bits", "12 bits signed", "16 bits", "RGB"])
def test_jpeg_2000_comes_out_to_the_bit(kind: str, transcoded: Transcode, tmp_path: Path) -> None:
    made = images()[kind]
    native = samples_of(save(made, tmp_path / "native.dcm"))
    made.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    packed = tmp_path / "packed.dcm"
    made.save_as(packed, enforce_file_format=True)

    out = transcoded(packed, EXPLICIT)

    assert (samples_of(out) == native).all()
    assert dcmread(out).PhotometricInterpretation == ("RGB" if kind == "RGB" else "MONOCHROME2")


# 16 by 16 samples of 16 bits: 5, 21, 37, …; encoded by OpenJPH.
_HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
    "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAH4AAf+TwAAmP/YFB3QAAMAAEsAAEwAiAYd0AEbyA4d0AMAAE0AAE4AQyAEC"
    "dAAe6ZEAw1QAwAAVEAAFYIZhGKpwgnUAfvTDDz/+wFKB7LYAwAArIAAWkO7u7u7nwKenp8J4AP79/f39/f39/Yxge/Yxgey6AP/Z"
)


def test_htj2k_comes_out_to_the_bit(transcoded: Transcode, tmp_path: Path) -> None:
    made = image(np.zeros((16, 16), "u2"), stored=16)
    made.Rows = made.Columns = 16
    made["PixelData"] = DataElement("PixelData", "OB", encapsulate([_HTJ2K]))
    made["PixelData"].is_undefined_length = True
    out = transcoded(save(made, tmp_path / "packed.dcm", HTJ2KLossless), EXPLICIT)
    assert np.frombuffer(dcmread(out).PixelData, "<u2").tolist() == list(range(5, 4096, 16))


def test_full_colour_in_luminance_and_chrominance_stays_what_it_is_where_it_is_encoded_reversibly(
    transcoded: Transcode, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    made = images()["RGB"]
    made.PhotometricInterpretation = "YBR_FULL"
    native = save(made, tmp_path / "native.dcm")
    packed = tmp_path / "packed.dcm"
    subprocess.run([require_tool("dcmcrle"), native, packed], check=True)
    out = transcoded(packed, EXPLICIT)
    assert dcmread(out).PhotometricInterpretation == "YBR_FULL"
    assert (samples_of(out) == samples_of(native)).all()


# Offset tables and fragments


def rle_frames(count: int) -> tuple[Dataset, list[bytes], bytes]:
    """Return a multi-frame image whose pixel data is yet to come, its frames encoded, and native."""
    frames = [
        ((np.arange(ROWS * COLUMNS) * (number + 3)) % 4096).astype("<u2").reshape(ROWS, COLUMNS)
        for number in range(count)
    ]
    made = image(frames[0], stored=12, frames=count)
    encode = partial(RLELosslessEncoder.encode, encoding_plugin="pydicom")
    described = {
        "rows": ROWS, "columns": COLUMNS, "samples_per_pixel": 1, "bits_allocated": 16, "bits_stored": 12,
        "number_of_frames": 1, "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2",
    }  # fmt: skip
    return made, [encode(f.tobytes(), **described) for f in frames], b"".join(f.tobytes() for f in frames)  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_frames_are_found_by_every_kind_of_offset_table(
    table: str, transcoded: Transcode, tmp_path: Path
) -> None:
    made, frames, native = rle_frames(5)
    if table == "extended":
        value, made.ExtendedOffsetTable, made.ExtendedOffsetTableLengths = encapsulate_extended(frames)  # fmt: skip
    else:
        value = encapsulate(frames, has_bot=table == "basic")
    made["PixelData"] = DataElement("PixelData", "OB", value)
    made["PixelData"].is_undefined_length = True
    out = dcmread(transcoded(save(made, tmp_path / "packed.dcm", RLELossless), EXPLICIT))
    assert out.PixelData == native
    assert "ExtendedOffsetTable" not in out
    assert "ExtendedOffsetTableLengths" not in out


def test_frames_of_several_fragments_are_put_together(
    transcoded: Transcode, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    frame = images()["12 bits"]
    packed = tmp_path / "one.dcm"
    native = save(frame, tmp_path / "native.dcm")
    subprocess.run([require_tool("dcmcjpeg"), native, packed], check=True)
    (stream,) = generate_frames(dcmread(packed).PixelData, number_of_frames=1)
    made = image(np.zeros((ROWS, COLUMNS), "u2"), stored=12, frames=3)
    value = encapsulate([stream] * 3, fragments_per_frame=4, has_bot=False)
    made["PixelData"] = DataElement("PixelData", "OB", value)
    made["PixelData"].is_undefined_length = True
    out = dcmread(transcoded(save(made, tmp_path / "packed.dcm", JPEGLosslessSV1), EXPLICIT))
    assert out.PixelData == frame.PixelData * 3


@pytest.mark.parametrize("claimed", [4, 6])
def test_another_number_of_frames_than_claimed_is_not_guessed_at(
    claimed: int, transcoded: Transcode, tmp_path: Path
) -> None:
    made, frames, _ = rle_frames(5)
    made.NumberOfFrames = claimed
    made["PixelData"] = DataElement("PixelData", "OB", encapsulate(frames))
    made["PixelData"].is_undefined_length = True
    path = save(made, tmp_path / "packed.dcm", RLELossless)
    with pytest.raises(CannotTranscode, match=f"Number of Frames.* is {claimed}, but there are"):
        transcoded(path, EXPLICIT)
    assert list(tmp_path.iterdir()) == [path]


def test_a_compressed_icon_is_decoded_too(
    transcoded: Transcode, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    packed = tmp_path / "packed.dcm"
    native = save(images()["8 bits"], tmp_path / "native.dcm")
    subprocess.run([require_tool("dcmcrle"), native, packed], check=True)
    made = dcmread(packed)
    icon = Dataset()
    for name in ("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"):  # fmt: skip
        icon[name] = made[name]
    made.IconImageSequence = Sequence([icon])
    both = tmp_path / "both.dcm"
    made.save_as(both)
    out = dcmread(transcoded(both, IMPLICIT))
    expected = dcmread(native).PixelData
    assert out.PixelData == expected
    assert out.IconImageSequence[0].PixelData == expected


# What can't be


def test_native_pixel_data_of_more_than_four_gigabytes_is_refused(
    transcoded: Transcode, tmp_path: Path
) -> None:
    made, frames, _ = rle_frames(2)
    made.Rows = made.Columns = 40_000
    made["PixelData"] = DataElement("PixelData", "OB", encapsulate(frames))
    made["PixelData"].is_undefined_length = True
    path = save(made, tmp_path / "packed.dcm", RLELossless)
    with pytest.raises(
        CannotTranscode, match="would have 6400000000 bytes; no more than 4294967294"
    ):
        transcoded(path, EXPLICIT)
    assert list(tmp_path.iterdir()) == [path]


def test_samples_wider_than_the_data_set_says_are_refused(
    transcoded: Transcode, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    packed = tmp_path / "packed.dcm"
    native = save(images()["12 bits"], tmp_path / "native.dcm")
    subprocess.run([require_tool("dcmcjpeg"), native, packed], check=True)
    made = dcmread(packed)
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    broken = tmp_path / "broken.dcm"
    made.save_as(broken)
    with pytest.raises(CannotTranscode, match=r"can't be decoded: its codestream has .* 16 bits"):
        transcoded(broken, EXPLICIT)


def test_a_stream_that_ends_its_codec_is_refused_and_the_next_is_decoded(
    decoders: FrameDecoders,
    transcoded: Transcode,
    require_tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    packed = tmp_path / "packed.dcm"
    native = save(images()["12 bits"], tmp_path / "native.dcm")
    subprocess.run([require_tool("dcmcjpeg"), native, packed], check=True)
    with decoders.one() as decoder:  # as the codec does it at some streams
        os.kill(decoder.pid, signal.SIGABRT)
    with pytest.raises(CannotTranscode, match="frame 1 can't be decoded: the codec broke down"):
        transcoded(packed, EXPLICIT)
    assert (samples_of(transcoded(packed, EXPLICIT)) == samples_of(native)).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_frames_that_are_cut_off_are_refused(
    syntax: str, transcoded: Transcode, tmp_path: Path
) -> None:
    made = image(np.zeros((ROWS, COLUMNS), "u2"), stored=12)
    made["PixelData"] = DataElement(
        "PixelData", "OB", encapsulate([b"\xff\xd8\xff\xc3\0\x0b\x0c\0"])
    )
    made["PixelData"].is_undefined_length = True
    with pytest.raises(CannotTranscode, match=r"frame 1 can't be decoded: ."):
        transcoded(save(made, tmp_path / "packed.dcm", syntax), EXPLICIT)


def test_no_way_is_known_from_video_nor_to_what_is_compressed() -> None:
    assert alternatives(MPEG2MPML) == ()
    assert alternatives("1.2.3") == ()
    assert alternatives(EXPLICIT) == (IMPLICIT,)
    assert alternatives(IMPLICIT) == (EXPLICIT,)
    for syntax in (
        DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, JPEGLosslessSV1, JPEG2000Lossless, RLELossless,
    ):  # fmt: skip
        assert alternatives(syntax) == (EXPLICIT, IMPLICIT)


# Encodings


def everything(charset: Any, name: bytes) -> Dataset:
    """Return a data set with all that hangs on the encoding: every length, order, private element, nesting."""
    made = image(np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS).astype("u2"), stored=12)
    made.SpecificCharacterSet = charset
    made["PatientName"] = DataElement("PatientName", "PN", name)
    made.SmallestImagePixelValue = 0
    made.RedPaletteColorLookupTableDescriptor = [256, 0, 16]
    made.RedPaletteColorLookupTableData = bytes(range(256)) * 2
    made.FrameIncrementPointer = 0x00181063
    made.RecommendedDisplayFrameRateInFloat = 1.5
    made.EventTimeOffset = 2.25
    private = made.private_block(0x0011, "CLARA RESULTS TEST", create=True)
    private.add_new(0x01, "LO", "of our own")
    private.add_new(0x02, "UN", b"\x01\x02\x03\x04")
    private.add_new(0x03, "FD", [1.25, -3.5])
    inner = Dataset()
    inner.CodeValue = "121"
    inner.CodeMeaning = "Meaning"
    outer = Dataset()
    outer.ConceptNameCodeSequence = Sequence([inner])
    outer.TextValue = "x" * 70_000
    outer.RealWorldValueMappingSequence = Sequence([Dataset()])
    outer.RealWorldValueMappingSequence[0].RealWorldValueFirstValueMapped = 7
    made.ContentSequence = Sequence([outer, Dataset()])
    nested = Dataset()
    nested.add_new(0x00110010, "LO", "CLARA RESULTS TEST")
    nested.add_new(0x00111005, "US", 9)
    private.add_new(0x04, "SQ", Sequence([nested]))
    return made


@pytest.mark.parametrize("charset", TEXTS)
@pytest.mark.parametrize(
    ("syntax", "target"),
    [
        (ExplicitVRLittleEndian, IMPLICIT),
        (ImplicitVRLittleEndian, EXPLICIT),
        (ExplicitVRBigEndian, EXPLICIT),
        (ExplicitVRBigEndian, IMPLICIT),
        (DeflatedExplicitVRLittleEndian, EXPLICIT),
        (DeflatedExplicitVRLittleEndian, IMPLICIT),
    ],
)
def test_every_element_is_there_after_a_change_of_encoding(
    syntax: str,
    target: str,
    charset: str,
    transcoded: Transcode,
    require_tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    declared, encoded, name = TEXTS[charset]
    made = everything(declared, encoded)
    explicit = save(made, tmp_path / "explicit.dcm")
    flag = {
        ExplicitVRLittleEndian: "+te", ImplicitVRLittleEndian: "+ti", ExplicitVRBigEndian: "+tb",
        DeflatedExplicitVRLittleEndian: "+td",
    }[UID(syntax)]  # fmt: skip
    path, theirs = tmp_path / "source.dcm", tmp_path / "theirs.dcm"
    # With group lengths and lengths of sequences: both are wrong once heads have another size.
    subprocess.run([require_tool("dcmconv"), flag, "+g", "+e", explicit, path], check=True)
    subprocess.run([require_tool("dcmconv"), "-e", "+te" if target == EXPLICIT else "+ti", path, theirs], check=True)  # fmt: skip

    out = transcoded(path, target)

    assert encoded in out.read_bytes()
    read = dcmread(out)
    assert str(read.PatientName) == name
    if syntax != DeflatedExplicitVRLittleEndian or target != EXPLICIT:  # there they stay right
        assert not any(element.tag.element == 0 for element in read.iterall())
    other = dcmread(theirs)
    assert values(read) == values(other)
    again = subprocess.run([require_tool("dcmdump"), out], capture_output=True, check=True)
    assert b"E: " not in again.stderr


def values(read: Dataset) -> list[tuple[str, object]]:
    """Return all values of a data set, sequences flattened; those of unknown elements as bytes."""
    found: list[tuple[str, object]] = []
    for element in read:
        if element.tag.element == 0:
            continue  # a group length: ours go
        if element.VR == "SQ":
            found.append((str(element.tag), [values(item) for item in element.value]))
        else:
            found.append((str(element.tag), element.value))
    return found


def test_value_representations_that_implicit_encoding_leaves_open_are_found(
    transcoded: Transcode, tmp_path: Path
) -> None:
    made = images()["12 bits signed"]
    made.SmallestImagePixelValue = -2048
    made.add_new(0x60003000, "OW", b"\1\0")
    lookup = Dataset()
    lookup.add_new(0x00283002, "US", [1, 0, 16])
    lookup.add_new(0x00283006, "US", 5)
    made.ModalityLUTSequence = Sequence([lookup])
    made.add_new(0x00090010, "LO", "CREATOR")
    made.add_new(0x00091001, "DS", "1.5 ")
    out = dcmread(transcoded(save(made, tmp_path / "implicit.dcm", IMPLICIT), EXPLICIT))
    representations: dict[int | str, str] = {
        "SmallestImagePixelValue": "SS",
        0x60003000: "OW",
        "ModalityLUTSequence": "SQ",
        0x00090010: "LO",
        "PixelData": "OW",
    }
    assert {tag: out[tag].VR for tag in representations} == representations
    assert out.ModalityLUTSequence[0]["LUTData"].VR == "US"
    config_before = config.replace_un_with_known_vr
    config.replace_un_with_known_vr = False
    try:
        private = dcmread(tmp_path / f"implicit-{EXPLICIT}.dcm")[0x00091001]
        assert (private.VR, private.value) == ("UN", b"1.5 ")
    finally:
        config.replace_un_with_known_vr = config_before


def test_what_is_too_long_for_its_value_representation_becomes_unknown(
    transcoded: Transcode, tmp_path: Path
) -> None:
    made = images()["8 bits"]
    made.add_new(0x00081030, "LO", "y" * 64)
    path = save(made, tmp_path / "implicit.dcm", IMPLICIT)
    head, long = struct.pack("<HHI", 8, 0x1030, 64), struct.pack("<HHI", 8, 0x1030, 70_000)
    path.write_bytes(path.read_bytes().replace(head + b"y" * 64, long + b"y" * 70_000))
    out = transcoded(path, EXPLICIT).read_bytes()
    assert struct.pack("<HH2sHI", 8, 0x1030, b"UN", 0, 70_000) + b"y" * 70_000 in out


def test_a_sequence_of_unknown_representation_is_read_as_implicit(
    transcoded: Transcode, tmp_path: Path
) -> None:
    made = images()["8 bits"]
    item = struct.pack("<HHIHHI4s", 0xFFFE, 0xE000, 12, 0x0008, 0x0100, 4, b"ABCD")
    made.add_new(0x00400280, "ST", "placeholder!")
    path = save(made, tmp_path / "explicit.dcm")
    head = struct.pack("<HH2sH", 0x40, 0x280, b"ST", 12) + b"placeholder!"
    sequence = struct.pack("<HH2sHI", 0x40, 0x280, b"UN", 0, 0xFFFFFFFF) + item
    sequence += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    content = path.read_bytes()
    assert head in content
    path.write_bytes(content.replace(head, sequence))
    target = transcoded(path, IMPLICIT)
    head = struct.pack("<HHI", 0x40, 0x280, 0xFFFFFFFF)
    item = struct.pack("<HHIHHI4s", 0xFFFE, 0xE000, 0xFFFFFFFF, 0x0008, 0x0100, 4, b"ABCD")
    ends = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    assert head + item + ends in target.read_bytes()


def test_a_nested_length_that_is_wrong_is_told_and_nothing_is_left(
    transcoded: Transcode, tmp_path: Path
) -> None:
    path = save(everything("ISO_IR 192", b"A^B"), tmp_path / "explicit.dcm")
    content = path.read_bytes()
    code = struct.pack("<HH2sH", 0x0008, 0x0100, b"SH", 4)
    assert content.count(code) == 1
    path.write_bytes(content.replace(code, struct.pack("<HH2sH", 0x0008, 0x0100, b"SH", 40)))
    with pytest.raises(DicomUnreadable):
        transcoded(path, IMPLICIT)
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_is_there_is_left_alone(decoders: FrameDecoders, tmp_path: Path) -> None:
    path = save(images()["8 bits"], tmp_path / "source.dcm")
    with path.open("rb") as source, pytest.raises(FileExistsError):
        transcode(source, header_of(path), IMPLICIT, path, decoders)
    assert header_of(path).transfer_syntax_uid == EXPLICIT


# Memory and the end

_PROGRAM = """
import os, re, sys
from functools import partial
from pathlib import Path
from clara_results.agents.dicom.frames import FrameDecoders, without_codecs
with without_codecs():
    from clara_results.agents.dicom.part10 import read_header
    from clara_results.agents.dicom.transcode import transcode
assert not {"numpy", "gdcm", "PIL", "pylibjpeg"} & set(sys.modules)
path, out = map(Path, sys.argv[1:])
decoders = FrameDecoders()
with path.open("rb") as source:
    header = read_header(partial(os.pread, source.fileno()), path.stat().st_size, "x")
    transcode(source, header, "1.2.840.10008.1.2.1", out, decoders)
with decoders.one() as decoder:
    for pid in (os.getpid(), decoder.pid):
        status = Path(f"/proc/{pid}/status").read_text()
        print(int(re.search("VmHWM:\\s*([0-9]+) kB", status)[1]) // 1024)
decoders.close()
"""
"""Transcodes, and prints the most memory in MiB that it and its decoder held at a time."""


def test_memory_holds_one_frame_not_all(tmp_path: Path) -> None:
    side, count = 512, 500
    random = np.random.default_rng(1).integers(0, 4096, (side, side), "u2")
    made = image(random, stored=12, frames=count)
    made.Rows = made.Columns = side
    del made.PixelData
    path = save(made, tmp_path / "packed.dcm", RLELossless)
    frame = RLELosslessEncoder.encode(
        random.tobytes(), rows=side, columns=side, samples_per_pixel=1, bits_allocated=16, bits_stored=12,
        number_of_frames=1, pixel_representation=0, photometric_interpretation="MONOCHROME2",
        encoding_plugin="pydicom",
    )  # fmt: skip
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame
    with path.open("ab") as out:
        out.write(struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF))
        out.write(struct.pack("<HHI", 0xFFFE, 0xE000, 0))
        out.writelines(item for _ in range(count))
        out.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    assert path.stat().st_size > 250 << 20
    out_path = tmp_path / "native.dcm"
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, path, out_path], check=True, capture_output=True, text=True
    )
    ours, child = map(int, done.stdout.split())
    assert ours < 150
    assert child < 220
    assert dcmread(out_path, stop_before_pixels=True).Rows == side
    assert out_path.stat().st_size > side * side * 2 * count
    path.unlink()
    out_path.unlink()


def test_a_decoder_is_kept_for_the_next_and_ends_with_who_started_it() -> None:
    decoders = FrameDecoders()
    with decoders.one() as first, decoders.one() as second:
        pids = {first.pid, second.pid}
    assert len(pids) == 2
    with decoders.one() as again:
        assert again.pid in pids
    decoders.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
