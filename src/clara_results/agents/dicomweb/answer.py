"""What a STOW-RS service answered about each instance (PS3.18 10.5.3, I.2), in DICOM JSON or XML."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

REFERENCED, FAILED = "00081199", "00081198"
_INSTANCE, _FAILURE_REASON, _WARNING_REASON = "00081155", "00081197", "00081196"

Item = dict[str, Any]
"""An item of a sequence: the first value of each attribute, by tag."""


@dataclass(slots=True)
class StoreAnswer:
    """An answer, by SOP Instance UID.

    Attributes:
        stored: Those that are stored, with their warning's reason, if there is one.
        failed: Those that are not, with the reason, if there is one.
    """

    stored: dict[str, int | None] = field(default_factory=dict)
    failed: dict[str, int | None] = field(default_factory=dict)


def read_answer(data: bytes) -> StoreAnswer:
    """Read an answer's body; what can't be read says nothing about any instance.

    Both forms are told by how they begin: the type that goes with an error's answer is often missing or wrong.
    """
    answer = StoreAnswer()
    text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
    items = _json_items(text) if text[:1] in {b"{", b"["} else _xml_items(text)
    for sequence, item in items:
        uid = item.get(_INSTANCE)
        if not isinstance(uid, str) or not uid.strip(" \0"):
            continue
        if sequence == REFERENCED:
            answer.stored[uid.strip(" \0")] = _number(item.get(_WARNING_REASON))
        else:
            answer.failed[uid.strip(" \0")] = _number(item.get(_FAILURE_REASON))
    for uid in answer.failed:
        answer.stored.pop(uid, None)  # who says both is not believed
    return answer


def _number(value: Any) -> int | None:
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 <= found <= 0xFFFF else None


def _json_items(text: bytes) -> Iterator[tuple[str, Item]]:
    """Yield the items of both sequences of a DICOM JSON data set (PS3.18 F.2), or of the first of several."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(root, list):
        root = root[0] if root else None
    for sequence in (REFERENCED, FAILED):
        for item in _values(root, sequence):
            yield sequence, {tag: next(iter(_values(item, tag)), None) for tag in _tags(item)}


def _tags(item: Any) -> list[str]:
    return list(item) if isinstance(item, dict) else []


def _values(data_set: Any, tag: str) -> list[Any]:
    element = data_set.get(tag) if isinstance(data_set, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _xml_items(text: bytes) -> Iterator[tuple[str, Item]]:
    """Yield the items of both sequences of a Native DICOM Model (PS3.19 A.1)."""
    if b"<!" in text.replace(
        b"<!--", b""
    ):  # no declarations: they are of no use here, but to an attacker
        return
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  (see above)
    except (ElementTree.ParseError, ValueError, LookupError):
        return
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]  # its name without the namespace
    for sequence in (REFERENCED, FAILED):
        for item in root.findall(f"DicomAttribute[@tag='{sequence}']/Item"):
            found = item.findall("DicomAttribute")
            yield sequence, {one.get("tag", ""): one.findtext("Value") for one in found}
