"""Receivers: how they are spoken to, and what can be asked of them beyond taking instances."""

from enum import StrEnum

DICOM, DICOMWEB = KINDS = ("dicom", "dicomweb")
"""How a receiver is spoken to: by DIMSE (PS3.7), or by DICOMweb (PS3.18)."""


class Verify(StrEnum):
    """Whether the receiver is asked back for what it answered to have stored, and how much is compared."""

    OFF = "off"
    METADATA = "metadata"
    """Attributes that it answers a query with."""
    FULL = "full"
    """The whole instance, fetched back."""


class Commit(StrEnum):
    """Whether the receiver is asked to commit itself to keep what it stored (PS3.4 Annex J)."""

    OFF = "off"
    ASK = "ask"
    """It is asked; one that does not offer to commit is content enough."""
    REQUIRE = "require"
    """Nothing is delivered before it has committed."""


class AuthKind(StrEnum):
    """How we say who we are."""

    BASIC = "basic"
    """User name and password (RFC 7617; PS3.7 D.3.3.7)."""
    BEARER = "bearer"
    """A token (RFC 6750), or a JSON Web Token in DIMSE's user identity."""
    OAUTH2 = "oauth2"
    """A token by client credentials (RFC 6749 4.4)."""


class Clearance(StrEnum):
    """Whether an announced instance may go out to its destination."""

    SEND = "send"
    DELIVERED = "delivered"
    """The destination has this very data set already."""
    REUSED = "reused"
    """Another data set was sent to the destination under the same SOP Instance UID."""
