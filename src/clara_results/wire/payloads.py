"""Bodies of ``/api/payloads``."""

from datetime import datetime

from clara_results.wire.codec import body


@body()
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


@body()
class Payload:
    """A payload's files, by URI."""

    payload_id: str
    files: list[PayloadFile]
