"""The rules for names."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_results.domain import names
from clara_results.errors import AgentNameInvalid, ClaraResultsError, InvalidInput, UnsafeUri


@pytest.mark.parametrize("name", ["ClaraSCU", "a", "A-1", "DICOMweb", "x--y", "a" * 255])
def test_agent_names_are_taken_and_folded(name: str) -> None:
    assert names.agent_name(name) == name.lower()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1a",
        "-a",
        "a-",
        "a_b",
        "a b",
        "a.b",
        "ä",
        "aé",
        "a\n",
        "\na",
        "a" * 256,
        "\u212a",
        "a/b",
    ],
)
def test_other_agent_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(AgentNameInvalid, match="letters, digits and hyphens") as raised:
        names.agent_name(name)
    assert raised.value.code == "invalid-agent-name"
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("name", ["p", "p-1", "_p", "-p", "9f6c0a0f-c92e", "a..b", "p.", "x" * 128])
def test_payload_ids_are_taken_as_they_are(name: str) -> None:
    assert names.payload_id(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".p", "a/b", "a b", "ä", "a\n", "a\0", "x" * 129])
def test_other_payload_ids_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        names.payload_id(name)
    assert raised.value.code == "invalid-payload-id"


@pytest.mark.parametrize(
    "uri",
    ["a", "a/b.dcm", "op/out/series 1/ä.dcm", "...", "a/..b", "a..", ".hidden", "ab:c", "x" * 1024,
     "100%", "a?b#c", "日本/像.dcm"],
)  # fmt: skip
def test_plain_uris_are_taken_as_they_are(uri: str) -> None:
    assert names.file_uri(uri) == uri


@pytest.mark.parametrize(
    "uri",
    ["", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/..", "../a", "a/../b", "a\\b", "\\a",
     "C:/a", "c:a", "a\0b", "a\nb", "a\x7fb", "a\x85b", "a\ud800b", "x" * 1025],
)  # fmt: skip
def test_unsafe_uris_are_refused(uri: str) -> None:
    with pytest.raises(UnsafeUri) as raised:
        names.file_uri(uri)
    assert raised.value.code == "unsafe-uri"


@given(st.text())
def test_a_taken_uri_names_one_place_below_its_payload(uri: str) -> None:
    try:
        names.file_uri(uri)
    except UnsafeUri:
        return
    assert not uri.startswith("/")
    assert not {"", ".", ".."} & set(uri.split("/"))
    assert not {"\\", "\0", "\n"} & set(uri)
    uri.encode()  # no lone surrogate


@pytest.mark.parametrize("name", ["Orthanc", "DCM4CHEE", "X-ray 3", "Zürich", "a" * 255, "a.b"])
def test_destination_names_are_taken_as_they_are(name: str) -> None:
    assert names.destination_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", " a", "a ", "a/b", "a\\b", "a\nb", "a\0", "a\u200bb", "a\ud800", "a" * 256, ".", ".."],
)  # fmt: skip
def test_other_destination_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        names.destination_name(name)
    assert raised.value.code == "invalid-destination"


@pytest.mark.parametrize(
    ("one", "other"), [("Orthanc", "ORTHANC"), ("Straße", "STRASSE"), ("ÉCHO", "écho")]
)
def test_names_compare_without_case(one: str, other: str) -> None:
    assert names.name_key(one) == names.name_key(other)


@pytest.mark.parametrize("title", ["A", "MY PACS", " LEAD", "TRAIL ", "a~!", "X" * 16, "lower"])
def test_ae_titles_are_taken_as_they_are(title: str) -> None:
    assert names.ae_title(title) == title


@pytest.mark.parametrize("title", ["", " ", " " * 16, "X" * 17, "A\\B", "A\n", "A\x7f", "Ä", "A\0"])
def test_other_ae_titles_are_refused(title: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        names.ae_title(title)
    assert raised.value.code == "invalid-ae-title"


@pytest.mark.parametrize(
    "name",
    ["localhost", "pacs", "pacs.example.org", "pacs.example.org.", "my_pacs", "a-b", "10.20.30.2",
     "::1", "fe80::1%eth0", "2001:db8::7", "::ffff:10.0.0.1", "3com.example", "x" * 63],
)  # fmt: skip
def test_hosts_are_taken_as_they_are(name: str) -> None:
    assert names.host(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "[::1]", "pacs:104", "::1]:104", ":", ":::", "1:2", "12345::1", "g::1", "::1%", "a b",
     "a/b", "-a", "a-", "a..b", ".a", "10.20.30.256", "1.2.3.4.5", "1234", "x" * 64, "a." * 127 + "a",
     "pacs\n", "pacs\0", "ä.example", "::1%a b", "::1%a/b"],
)  # fmt: skip
def test_other_hosts_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        names.host(name)
    assert raised.value.code == "invalid-host"


@pytest.mark.parametrize("number", [1, 104, 65535])
def test_ports_are_taken(number: int) -> None:
    assert names.port(number) == number


@pytest.mark.parametrize("number", [0, -1, 65536, 1 << 70])
def test_other_ports_are_refused(number: int) -> None:
    with pytest.raises(InvalidInput) as raised:
        names.port(number)
    assert raised.value.code == "invalid-port"


@pytest.mark.parametrize(
    "check",
    [names.agent_name, names.payload_id, names.file_uri, names.destination_name, names.ae_title,
     names.host],
)  # fmt: skip
@given(name=st.text())
def test_any_text_is_either_taken_or_refused_with_a_printable_message(
    check: Callable[[str], str], name: str
) -> None:
    message = "taken"
    try:
        check(name)
    except ClaraResultsError as error:
        message = str(error)
    assert message.isprintable()  # one line: nobody writes into a log through a name
    message.encode()
