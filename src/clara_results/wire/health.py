"""Body of ``/health/status``."""

from clara_results.wire.codec import body


@body()
class DatabaseHealth:
    """The database.

    Attributes:
        kind: ``sqlite`` or ``postgresql``.
        milliseconds: How long a trivial question took just now, waiting for its turn included.
    """

    kind: str
    milliseconds: float


@body()
class DiskHealth:
    """Room on the disk of one of the service's folders.

    Attributes:
        folder: ``payloads``, or ``database`` where that is a file.
        free_bytes: What is left.
        size_bytes: All of it.
    """

    folder: str
    free_bytes: int
    size_bytes: int


@body()
class Health:
    """How the service stands.

    Attributes:
        status: ``ok``.
        version: The service's.
        database: The database that it works on.
        tasks: Number of tasks by state.
        rescued_seconds_ago: Since this process last looked for leases that ran out; it does so twice a second.
        disks: Room on disks; one that can't be looked at is left out.
    """

    status: str
    version: str
    database: DatabaseHealth
    tasks: dict[str, int]
    rescued_seconds_ago: float | None
    disks: list[DiskHealth]
