"""UIDs of results: the same for the same job, source series and content, others for any other.

So an operator that is run again makes no second series, and one whose result differs in anything never reuses the UID of
an object that a receiver may hold already (PS3.4 B.4.1: two objects under one UID are a fault).
"""

import hashlib
import io
from dataclasses import dataclass
from uuid import UUID, uuid5

from highdicom import SOPClass
from pydicom.uid import UID

from liver_tumor.results.source import Source, inherit

UNSET = "2.25.0"
"""Stands for UIDs that derive from the rest of the object, until they do."""

_NAMESPACE = UUID("a2f7d1cf-5a2e-4d0b-9f60-6f2f3f6b1b0d")


@dataclass(frozen=True, slots=True)
class Origin:
    """What all results of one run come from.

    Attributes:
        source: The series.
        job: The pipeline's job.
    """

    source: Source
    job: str

    def uid(self, kind: str, content: str = "") -> UID:
        """Return a UID for a thing of this kind and content (PS3.5 B.2)."""
        name = "\0".join([self.job, self.source.uid, kind, content])
        return UID(f"2.25.{uuid5(_NAMESPACE, name).int}")


def settle(instance: SOPClass, origin: Origin, kind: str, series: str | None = None) -> str:
    """Make a new object the source's own: its patient and study, and UIDs of its own.

    Args:
        instance: Its Series and SOP Instance UIDs are ``UNSET``.
        origin: Where it comes from.
        kind: What it is.
        series: What the series' content is, where it has several instances; None: this one is all of it.

    Returns:
        What the UIDs were derived from: the digest of all that is in the object.
    """
    inherit(instance, origin.source)
    encoded = io.BytesIO()
    instance.save_as(encoded)
    digest = hashlib.sha256(encoded.getvalue()).hexdigest()
    instance.SeriesInstanceUID = origin.uid(f"{kind} series", series or digest)
    instance.SOPInstanceUID = origin.uid(kind, digest)
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    return digest
