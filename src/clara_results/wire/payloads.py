"""Bodies of ``/api/payloads``."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadFile:
    """A file in a payload.

    Attributes:
        uri: Its path within the payload.
        size: Bytes.
        modified: Its time of last change.
    """

    uri: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A payload's files, by URI."""

    payload_id: str
    files: list[PayloadFile]
