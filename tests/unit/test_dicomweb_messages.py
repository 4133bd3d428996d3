"""What goes to DICOMweb services and comes back, without a network: messages of several parts, answers, waits."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_results.agents.dicomweb import multipart
from clara_results.agents.dicomweb.answer import read_answer
from clara_results.agents.dicomweb.connection import Answer
from clara_results.agents.dicomweb.multipart import InstancesMessage, Part, only_part
from clara_results.agents.dicomweb.service import retry_after
from tests.support.web import as_xml, references

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SIZES = st.lists(st.integers(0, 3 * multipart.PIECE), min_size=1, max_size=4)


@given(SIZES)
def test_a_message_has_the_size_that_it_says_and_can_be_made_again(sizes: list[int]) -> None:
    parts = [Part(f"{n}.dcm", io.BytesIO(bytes([n]) * size), size) for n, size in enumerate(sizes)]
    message = InstancesMessage(parts)
    pieces = list(message.pieces())
    body = b"".join(pieces)
    assert len(body) == message.size
    assert b"".join(message.pieces()) == body
    assert max(map(len, pieces)) <= multipart.PIECE + 200
    boundary = message.content_type.rpartition("boundary=")[2].encode()
    found = body.split(b"\r\n--" + boundary)
    assert found[0] == b""
    assert found[-1] == b"--\r\n"
    head = b"\r\nContent-Type: application/dicom\r\n\r\n"
    assert found[1:-1] == [head + bytes([n]) * size for n, size in enumerate(sizes)]


CONTENT = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--mark", b"\r\n--mar", b"x", bytes(300)]),
    max_size=40,
).map(b"".join)


@given(CONTENT, st.integers(1, 40), st.sampled_from([b"", b"preamble\r\n"]))
def test_the_first_part_is_found_wherever_pieces_end(
    content: bytes, piece: int, preamble: bytes
) -> None:
    boundary = "mark-7"
    message = preamble + b"--mark-7 \r\nContent-Type: application/dicom\r\nX: y\r\n\r\n"
    message += content + b"\r\n--mark-7--\r\n"

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            # The head is read at once; then come pieces of any size.
            return super().read(size if self.tell() == 0 else piece)

    out = io.BytesIO()
    kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    assert only_part(kind, Slow(message), out)
    assert out.getvalue() == content.split(b"\r\n--mark-7")[0]


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        ("application/dicom", b"--a\r\n\r\nx\r\n--a--"),
        ("multipart/related", b"--a\r\n\r\nx\r\n--a--"),
        ("multipart/related; boundary=a", b""),
        ("multipart/related; boundary=a", b"--b\r\n\r\nx\r\n--b--"),
        ("multipart/related; boundary=a", b"--a\r\nX: y"),
        ("multipart/related; boundary=a", b"--a\r\n\r\nx\r\n--"),
        ("multipart/related; boundary=a", b"xx--a\r\n\r\nx\r\n--a--"),
        ("", b"--a\r\n\r\nx\r\n--a--"),
    ],
)
def test_what_has_no_whole_part_is_told(content_type: str, message: bytes) -> None:
    assert not only_part(content_type, io.BytesIO(message), io.BytesIO())


@pytest.mark.parametrize("xml", [False, True])
def test_an_answer_that_names_an_instance_twice_is_taken_for_the_worse(xml: bool) -> None:
    text = references({"1.2": None, "1.3": 0xB000}, {"1.2": 0xA700, "1.4": None})
    answer = read_answer(as_xml(text) if xml else text)
    assert answer.stored == {"1.3": 0xB000}
    assert answer.failed == {"1.2": 0xA700, "1.4": None}


@given(st.binary() | st.text().map(str.encode))
def test_any_answer_can_be_read(data: bytes) -> None:
    for text in (data, b"{" + data, b"[{" + data, b"<" + data):
        read_answer(text)


JSON = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["00081199", "00081198", "00081155", "00081197", "Value", "vr"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_can_be_read(value: object) -> None:
    import json

    answer = read_answer(json.dumps(value).encode())
    assert not set(answer.stored) & set(answer.failed)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 400, 999_999_999.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:05:05 -0000", 60.0),
        ("Thu, 01 Jan 2026 03:04:05 GMT", 0.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("\u0661", None),
    ],
)
def test_how_long_a_service_wants_to_be_left_alone(value: str, seconds: float | None) -> None:
    assert retry_after(Answer(503, {"Retry-After": value}, b""), NOW) == seconds
