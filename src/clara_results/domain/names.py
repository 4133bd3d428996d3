"""The rules for names: agents, payloads, file URIs, destinations, application entities.

No message repeats what was refused: it could be anything, a patient's name too. Who calls says where it stood.
"""

import ipaddress
import re
import unicodedata
from urllib.parse import urlsplit

from clara_results.errors import AgentNameInvalid, InvalidInput, UnsafeUri

AGENT_RULE = "letters, digits and hyphens; begins with a letter; does not end with a hyphen"
PAYLOAD_RULE = "1 to 128 letters, digits, '.', '_' or '-'; does not begin with '.'"
NAME_RULE = (
    "1 to 255 printable characters, no '/' or back-slash, no space at either end; not '.' or '..'"
)
AE_TITLE_RULE = (
    "1 to 16 characters of the default repertoire (ASCII), no back-slash, no control character, "
    "not all spaces"
)
URL_RULE = (
    "an http or https URL without user, query or fragment, such as https://pacs.example/dicom-web"
)
HOST_RULE = "a DNS name, an IPv4 or an IPv6 address"

_AGENT = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,253}[A-Za-z0-9])?", re.ASCII)
_PAYLOAD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?!\d+\.?\Z){_LABEL}\.?", re.ASCII)
"""RFC 1123 2.1, and underscores; the last label is no number, else it would be an IPv4 address."""
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?", re.ASCII)
_DRIVE = re.compile(r"[A-Za-z]:", re.ASCII)
URI_LIMIT = 1024


def agent_name(name: str) -> str:
    """Check an agent's name and fold its case: names compare without regard to it.

    Raises:
        AgentNameInvalid: The name breaks ``AGENT_RULE``.
    """
    if not _AGENT.fullmatch(name):
        raise AgentNameInvalid(f"that is not an agent's name: {AGENT_RULE} (for example ClaraSCU)")
    return name.lower()


def payload_id(name: str) -> str:
    """Check a payload's id.

    Raises:
        InvalidInput: The id breaks ``PAYLOAD_RULE``.
    """
    if not _PAYLOAD.fullmatch(name):
        raise InvalidInput(f"that is not a payload id: {PAYLOAD_RULE}", code="invalid-payload-id")
    return name


def file_uri(uri: str) -> str:
    """Check a file's URI: relative to its payload, ``/``-separated, naming one plain place below it.

    Raises:
        UnsafeUri: It is empty, absolute or too long, or has a part that is empty, ``.`` or ``..``, a control
            character, a back-slash, a lone surrogate or a drive.
    """
    parts = uri.split("/")
    if not uri or len(uri) > URI_LIMIT:
        raise UnsafeUri(f"a safe URI has 1 to {URI_LIMIT} characters; this one has {len(uri)}")
    if any(part in {"", ".", ".."} for part in parts) or _DRIVE.match(uri):
        raise UnsafeUri(
            "that is not a safe URI: relative to the payload, '/'-separated, no empty part, '.', '..' or "
            "drive"
        )
    plain = uri.isascii() and uri.isprintable()
    if "\\" in uri or not (plain or all(unicodedata.category(c) not in {"Cc", "Cs"} for c in uri)):
        raise UnsafeUri("that is not a safe URI: no back-slash and no control character")
    return uri


def destination_name(name: str) -> str:
    """Check a destination's name. Names compare without case; ``name_key`` gives what is compared.

    Raises:
        InvalidInput: The name breaks ``NAME_RULE``.
    """
    printable = all(unicodedata.category(c)[0] != "C" for c in name)
    if (
        not 1 <= len(name) <= 255
        or name != name.strip()
        or not printable
        or set(name) & {"/", "\\"}
        or name in {".", ".."}
    ):
        raise InvalidInput(
            f"that is not a destination's name: {NAME_RULE}", code="invalid-destination"
        )
    return name


def name_key(name: str) -> str:
    """Return the form in which names that compare without case are stored and looked up."""
    return name.casefold()


def ae_title(title: str) -> str:
    """Check an AE title (PS3.5 6.2, value representation AE); it is sent as written.

    Raises:
        InvalidInput: The title breaks ``AE_TITLE_RULE``.
    """
    legal = all(" " <= c <= "~" and c != "\\" for c in title)
    if not 1 <= len(title) <= 16 or not title.strip() or not legal:
        raise InvalidInput(f"that is not an AE title: {AE_TITLE_RULE}", code="invalid-ae-title")
    return title


def host(name: str) -> str:
    """Check a host: a DNS name, an IPv4 or an IPv6 address, without brackets or port.

    Raises:
        InvalidInput: It is none of these.
    """
    if not _DNS.fullmatch(name) and not _is_address(name):
        raise InvalidInput(
            f"that is not a host: {HOST_RULE}, without brackets or port", code="invalid-host"
        )
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return _ADDRESS.fullmatch(name) is not None  # a zone of an IPv6 address could be anything


def port(number: int) -> int:
    """Check a TCP port.

    Raises:
        InvalidInput: It is not within 1 to 65535.
    """
    if not 1 <= number <= 65535:
        raise InvalidInput(f"{number} is not a TCP port: 1 to 65535", code="invalid-port")
    return number


def http_url(url: str) -> str:
    """Check a base URL: http or https, a host, no user, query or fragment.

    Raises:
        InvalidInput: It is none.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError where it is no port
    except ValueError:
        raise InvalidInput(f"that is not {URL_RULE}", code="invalid-url") from None
    legal = all("!" <= c <= "~" for c in url) and not {"@", "?", "#"} & set(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not legal or len(url) > URI_LIMIT:  # fmt: skip
        raise InvalidInput(f"that is not {URL_RULE}", code="invalid-url")
    return url
