"""Bodies of ``/api/tasks/{taskId}/instances`` and ``/api/commitments``: DICOM instances on their way, and what became of them."""

from clara_results.domain.receivers import Clearance
from clara_results.wire.codec import body


@body(strict=True)
class Announced:
    """An instance that is about to be sent. Attributes that it does not have are None.

    Attributes:
        uri: Its file.
        sop_instance_uid: SOP Instance UID (0008,0018); likewise the class, study and series.
        accession_number: Accession Number (0008,0050).
        patient_id: Patient ID (0010,0020): patient data, never to be logged; likewise its issuer (0010,0021).
        sha256: Digest of its data set as registered, without the file meta information: 64 lower-case hex digits.
    """

    uri: str
    sop_instance_uid: str
    sop_class_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    accession_number: str | None = None
    patient_id: str | None = None
    issuer_of_patient_id: str | None = None
    sha256: str


@body(strict=True)
class Announcement:
    """Body of ``PUT /api/tasks/{taskId}/instances``: noted before any of them goes out.

    Attributes:
        lease_token: The claim's.
        receiver: To whom they are to be sent: ``address`` of the destination as the agent knows it.
        instances: At most 1,000.
    """

    lease_token: str
    receiver: str
    instances: list[Announced]


@body()
class Cleared:
    """Whether an announced instance may go out."""

    uri: str
    clearance: Clearance


@body()
class Clearances:
    """Answer to an announcement, in its order."""

    items: list[Cleared]


@body()
class InstanceReference:
    """An instance by its SOP class and SOP Instance UID (PS3.3 10.8)."""

    sop_class_uid: str
    sop_instance_uid: str


@body()
class CommitmentRequest:
    """A commitment that an agent is to ask a receiver for (PS3.4 J.3.2).

    Attributes:
        transaction_uid: Fresh; the service knows it already, so that any agent may receive what the receiver says.
        task_id: The task whose instances they are.
        parameters: The task's, which name the destination.
        instances: What it is to commit itself to keep.
    """

    transaction_uid: str
    task_id: str
    parameters: str | None = None
    instances: list[InstanceReference]


@body()
class CommitmentRequests:
    """Commitments that are to be asked for now."""

    items: list[CommitmentRequest]


@body(strict=True)
class FailedInstance:
    """An instance that a receiver does not commit itself to keep, with its Failure Reason (0008,1197), 0 to 65535."""

    sop_instance_uid: str
    reason: int


@body(strict=True)
class CommitmentResult:
    """Body of ``PUT /api/commitments/{transactionUid}``: what a receiver's N-EVENT-REPORT said (PS3.4 J.3.3).

    Attributes:
        committed: SOP Instance UIDs.
        failed: The others.
    """

    committed: list[str]
    failed: list[FailedInstance]


@body(strict=True)
class CommitmentFailure:
    """Body of ``PUT /api/commitments/{transactionUid}/failure``: the receiver could not be asked.

    Attributes:
        code: Stable code of the reason.
        message: The reason for people; never patient data.
        unsupported: The receiver does not offer to commit.
    """

    code: str
    message: str
    unsupported: bool = False
