"""Asks a receiver back for what it answered to have stored (PS3.4 C), and compares.

An answer of success says that something is stored under a SOP Instance UID, not that it is what was sent: an archive that
keeps the first of two objects under one UID may answer success to both.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pynetdicom import _config, build_context, build_role, evt
from pynetdicom.association import Association

from clara_results.agents.dicom.association import AssociationSettings, Peer
from clara_results.agents.dicom.compare import attributes, compare, compare_files
from clara_results.agents.dicom.dimse import associate
from clara_results.agents.dicom.frames import FrameDecoders
from clara_results.agents.dicom.part10 import DicomUnreadable, Header, NotForReceivers
from clara_results.agents.dicom.transcode import EXPLICIT_SYNTAX, IMPLICIT_SYNTAX, CannotTranscode
from clara_results.domain.receivers import Verify
from clara_results.domain.tasks import Outcome
from clara_results.errors import DestinationUnavailable

_config.STORE_RECV_CHUNKED_DATASET = True  # what is fetched goes to a file, whatever its size

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
"""Study Root Query/Retrieve Information Model (PS3.4 C.6.2)."""
KEYS = (
    "SOPClassUID", "InstanceNumber", "ImageType", "ContentDate", "ContentTime", "AcquisitionNumber",
    "ImagePositionPatient", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "CompletionFlag", "VerificationFlag", "ContentLabel",
)  # fmt: skip
"""What is asked for at image level, beside the UIDs; a receiver returns of these what it knows."""
_PENDING = (0xFF00, 0xFF01)


@dataclass(frozen=True, slots=True)
class Verification:
    """What asking back for an instance found.

    Attributes:
        outcome: DELIVERED: the receiver has it, the same; REJECTED: it has another object under the UID; RETRY: it has
            none, or could not be asked.
        code: ``verify-mismatch``, ``verify-absent`` or ``verify-unavailable``; None if all is well.
        message: In words, never with a value.
    """

    outcome: Outcome
    code: str | None = None
    message: str | None = None


class Verifier:
    """Asks one receiver back, over an association of its own. Not to be shared between threads; ``close`` ends it."""

    def __init__(
        self,
        peer: Peer,
        settings: AssociationSettings,
        decoders: FrameDecoders,
        scratch: Path,
    ) -> None:
        """Make one; nothing is opened yet.

        Args:
            peer: Who is asked.
            settings: How long to wait.
            decoders: Where compressed frames are decoded that are to be compared.
            scratch: A folder for what is fetched.
        """
        self._peer = peer
        self._settings = settings
        self._decoders = decoders
        self._scratch = scratch
        self._association: Association | None = None
        self._for: tuple[str, ...] = ()
        self._fetched: list[Path] = []

    def verify(self, source: BinaryIO, header: Header, how: Verify) -> Verification:
        """Ask for an instance and compare.

        Args:
            source: Its file, as registered.
            header: What ``read_header`` found there.
            how: METADATA: by C-FIND, what it returns; FULL: by C-GET, all of it.
        """
        try:
            if how is Verify.METADATA:
                differing = self._metadata(source, header)
            else:
                differing = self._full(source, header)
        except (DestinationUnavailable, CannotTranscode, DicomUnreadable, NotForReceivers) as error:
            self.close()
            return Verification(
                Outcome.RETRY, "verify-unavailable", f"it could not be verified: {error}"
            )
        except (RuntimeError, ValueError):
            # pynetdicom's: the association ended just before, or the query can't be encoded. Its words may hold values.
            self.close()
            return Verification(
                Outcome.RETRY,
                "verify-unavailable",
                "it could not be verified: the association ended, or its UIDs can't be asked for",
            )
        if differing is None:
            return Verification(
                Outcome.RETRY,
                "verify-absent",
                "the receiver answered that it stored it, but does not find it",
            )
        if differing:
            return Verification(
                Outcome.REJECTED,
                "verify-mismatch",
                "the receiver holds another object under this SOP Instance UID; they differ in "
                + ", ".join(differing),
            )
        return Verification(Outcome.DELIVERED)

    def close(self) -> None:
        """End the association, if one is open."""
        if self._association is not None and self._association.is_established:
            self._association.release()
        self._association = None

    # Asking

    def _metadata(self, source: BinaryIO, header: Header) -> list[str] | None:
        """Return the differing attributes; None if the receiver has no such instance."""
        association = self._associated(header, Verify.METADATA)
        query = _query_of(header)
        for keyword in KEYS:
            setattr(query, keyword, None)
        found = None
        for status, identifier in association.send_c_find(query, FIND):
            code = _code(status, "a query")
            if code in _PENDING:
                if identifier is not None and identifier.get("SOPInstanceUID") == header.sop_instance_uid:  # fmt: skip
                    found = identifier
            elif code != 0:
                raise DestinationUnavailable(f"it answered a query with {code:04X}")
        if found is None:
            return None
        return compare(attributes(source), found, partial=True)

    def _full(self, source: BinaryIO, header: Header) -> list[str] | None:
        """Fetch the instance; return the differing attributes; None if the receiver has no such instance."""
        association = self._associated(header, Verify.FULL)
        try:
            code = 0
            for status, _ in association.send_c_get(_query_of(header), GET):
                code = _code(status, "a retrieval")
            if not self._fetched:
                if (
                    self._metadata(source, header) is None
                ):  # some answer with failure where there is nothing
                    return None
                raise DestinationUnavailable(
                    f"it did not send the instance that it has, and answered the retrieval with {code:04X}"
                )
            with self._fetched[-1].open("rb") as theirs:
                return compare_files(source, theirs, self._decoders, self._scratch)
        finally:
            while self._fetched:
                self._fetched.pop().unlink()
            _remove_partly_fetched(association)

    def _associated(self, header: Header, how: Verify) -> Association:
        """Return an association on which that can be asked: the open one, if it will do."""
        syntaxes = (header.transfer_syntax_uid, EXPLICIT_SYNTAX, IMPLICIT_SYNTAX)
        fetched = (header.sop_class_uid, *dict.fromkeys(syntaxes)) if how is Verify.FULL else ()
        association = self._association
        if association is None or not association.is_established or fetched not in {(), self._for}:
            self.close()
            contexts = [build_context(FIND), build_context(GET)]
            contexts += [build_context(header.sop_class_uid, syntax) for syntax in fetched[1:]]
            roles = [build_role(header.sop_class_uid, scp_role=True)] if fetched else []
            handlers = [(evt.EVT_C_STORE, self._take)]
            association = associate(self._peer, self._settings, contexts, roles, handlers)
            self._association, self._for = association, fetched
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        if how is Verify.METADATA and FIND not in accepted:
            raise DestinationUnavailable(f"{self._peer} does not offer queries (C-FIND)")
        if how is Verify.FULL and not {GET, header.sop_class_uid} <= accepted:
            raise DestinationUnavailable(
                f"{self._peer} does not offer to send instances of this SOP class back (C-GET)"
            )
        return association

    def _take(self, event: evt.Event) -> int:
        """Take what the receiver sends on our retrieval."""
        out = self._scratch / f"fetched-{id(self)}-{len(self._fetched)}.dcm"
        self._fetched.append(out)
        shutil.move(event.dataset_path, out)
        return 0


def _remove_partly_fetched(association: Association) -> None:
    """Remove what pynetdicom had of an instance when the association broke; it leaves that in the temporary folder."""
    message = association.dimse.message
    path, file = getattr(message, "_data_set_path", None), getattr(message, "_data_set_file", None)
    if file is not None:
        file.close()
    if path is not None:
        path.unlink(missing_ok=True)


def image_query(study: str, series: str, instance: str) -> Dataset:
    """Return a query for one instance (PS3.4 C.6.1.1.5), by the UIDs of its study and series and its own."""
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = study
    query.SeriesInstanceUID = series
    query.SOPInstanceUID = instance
    return query


def _query_of(header: Header) -> Dataset:
    return image_query(
        header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid
    )


def _code(status: Dataset, what: str) -> int:
    code = status.get("Status")
    if code is None:
        raise DestinationUnavailable(f"it broke the association, or did not answer {what} in time")
    return int(code)
