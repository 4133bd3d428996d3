"""The conformance statement says what the code does."""

import re
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_description
from pydicom.uid import UID

from clara_results.agents.dicom.association import AssociationSettings
from clara_results.agents.dicom.commitment import ASKING, LINGER, LINGER_ALONE, PUSH_MODEL
from clara_results.agents.dicom.dimse import application_entity
from clara_results.agents.dicom.echo import IMAGES, OTHERS, SYNTAXES
from clara_results.agents.dicom.frames import DECODABLE
from clara_results.agents.dicom.part10 import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
)
from clara_results.agents.dicom.status import Kind, judge
from clara_results.agents.dicom.verify import FIND, GET, KEYS
from clara_results.settings import FIELDS
from clara_results.wire.destinations import Destination

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "dicom.md").read_text()
FLOWING = " ".join(TEXT.split())


def row(first: str) -> str:
    """Return the rest of the table's row that begins with this cell."""
    (found,) = re.findall(rf"^\| {re.escape(first)} \| (.*) \|$", TEXT, re.MULTILINE)
    return str(found)


def test_the_implementation_is_named() -> None:
    assert row("implementation class UID") == IMPLEMENTATION_CLASS_UID
    assert row("implementation version name") == f"`{IMPLEMENTATION_VERSION_NAME}`"
    assert f"{FIELDS['max_pdu'].default:,} bytes" in row("maximum PDU length")
    assert f"({Destination(name='x').max_associations})" in row(
        "associations that it opens to store and to ask back"
    )


@pytest.mark.parametrize(
    ("limit", "setting", "default"),
    [
        ("TCP connection", "connect_timeout", "10 s"),
        ("TLS handshake; answer to the association request", "association_timeout", "30 s each"),
        ("answer to a C-STORE or C-ECHO, after all is sent", "dimse_timeout", "60 s"),
        ("an association without work", "idle_timeout", "1 s"),
    ],
)
def test_time_limits(limit: str, setting: str, default: str) -> None:
    assert row(limit) == f"`{setting}` | {default}"
    assert float(default.split()[0]) == FIELDS[setting].default


def test_time_limits_that_are_said_otherwise() -> None:
    assert row("answer to a release") == f"| {AssociationSettings().release} s"
    assert row("all instances of a task").startswith("`task_timeout` | 6 h")
    assert FIELDS["task_timeout"].default == 6 * 3600
    assert FIELDS["give_up"].default == 72 * 3600


def test_what_is_decoded() -> None:
    for syntax in DECODABLE:
        assert re.search(rf"[;.e] {re.escape(UID(syntax).name)}[;.]", FLOWING), UID(syntax).name


def test_what_is_asked_back() -> None:
    keys = ", ".join(dictionary_description(keyword) for keyword in KEYS)
    assert f"Keys, beside the UIDs: {keys}." in FLOWING
    assert FIND in row("`metadata`")
    assert GET in row("`full`")


def test_what_is_tried() -> None:
    assert row("`contexts`").startswith(
        f"what it takes: {len(IMAGES)} SOP classes of images in {len(SYNTAXES)} transfer syntaxes, "
        f"{len(OTHERS)} others in 3,"
    )


@pytest.mark.parametrize(
    ("first", "statuses", "kind"),
    [
        ("0000", [0], Kind.DELIVERED),
        ("0001, 0107, 0116, Bxxx", [1, 0x107, 0x116, *range(0xB000, 0xC000)], Kind.DELIVERED),
        ("0110", [0x110], Kind.RETRY),
        ("A7xx, 0213", [*range(0xA700, 0xA800), 0x213], Kind.UNAVAILABLE),
        ("0111", [0x111], Kind.DUPLICATE),
        ("A9xx", range(0xA900, 0xAA00), Kind.REJECTED),
        ("Cxxx", range(0xC000, 0xD000), Kind.REJECTED),
        (
            "0105, 0106, 0112, 0115, 0117 to 0122, 0124, 0210 to 0212",
            [0x105, 0x106, 0x112, 0x115, 0x117, 0x118, 0x119, 0x120, 0x121, 0x122, 0x124, 0x210, 0x211, 0x212],
            Kind.REJECTED,
        ),
    ],
)  # fmt: skip
def test_statuses(first: str, statuses: list[int], kind: Kind) -> None:
    assert row(first)
    for status in statuses:
        verdict = judge(status)
        assert verdict.kind is kind
        assert "can't end" not in str(verdict.words)


def test_storage_commitment() -> None:
    assert f"N-ACTION, Storage Commitment Push Model {PUSH_MODEL}, action type 1" in FLOWING
    assert f"kept open for {LINGER:g} s after the answer ({LINGER_ALONE:g} s where" in FLOWING
    assert row("beside these").startswith(f"to ask for commitments: {ASKING} at once")
    assert FIELDS["commitment_wait"].default == 10 * 60
    assert FIELDS["commitment_deadline"].default == 24 * 3600
    accepted = application_entity("X", AssociationSettings()).maximum_associations
    assert f"{accepted} at once" in row("associations that it accepts")
