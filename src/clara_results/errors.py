"""The whole error tree.

Every error has a stable ``code`` (kebab-case; clients and scripts may rely on it) and the exit code with
which a command ends when nothing catches it. Foreign errors are mapped to one of these at the seam where
they arise. A message names what was wrong and what to do; it never holds patient data.

::

    ClaraResultsError
    ├── InvalidInput           exit 2   what a person or a client gave is wrong; nothing was done
    │   ├── SettingsInvalid             one or more settings; all that is wrong at once
    │   ├── AgentNameInvalid            letters, digits, hyphens; begins with a letter, ends without hyphen
    │   └── UnsafeUri                   a file's URI that is not a plain relative path, or leaves its payload
    ├── NoFilesFound           exit 3   a registration without a file
    ├── ServiceUnavailable     exit 4   the Results Service does not answer, or says 5xx or 429
    ├── UnreadableInput        exit 5   an input file or folder can't be read, or changed while it was read
    ├── NotDelivered           exit 6   a task that was waited for Failed, was Canceled, or time ran out
    ├── Refused                exit 7   the service said no (RFC 9457 problem); ``code`` and ``status`` are its
    ├── AccessDenied           exit 7   who calls may not do that
    │   ├── Unauthenticated             there is no token, or none that counts
    │   └── Forbidden                   the token does not allow it
    ├── NotFound               exit 7   no such task, destination, payload or file
    ├── Conflict               exit 7   the request contradicts what is there
    │   ├── LeaseLost                   the caller's lease is not the task's: it must stop and report nothing
    │   ├── FilesUnaccounted            a success report that leaves files without an outcome
    │   ├── IllegalTransition           the task's state does not allow that
    │   └── ExistsDifferently           other content lies at that URI already
    ├── Unprocessable          exit 7   well formed, but it can't be taken
    │   └── MissingFiles                files of a registration are not in the payload with their size
    ├── Gone                   exit 7   it was there once and is no more
    ├── DestinationUnavailable exit 8   a receiver as a whole can't be reached, or does not answer
    ├── Stopping               exit 9   a person or the platform asked this process to end
    └── OperatorFailed         exit 10  an operator of a pipeline that was run here did not end well
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong in a larger input.

    Attributes:
        field: Where it is: a setting's name, or a JSON path such as ``files[3].uri``.
        message: What is wrong and what would be right.
    """

    field: str
    message: str


class ClaraResultsError(Exception):
    """Base of all errors that this package raises.

    Attributes:
        code: Stable name of the error, for programs.
        exit_code: What a command exits with.
        errors: The single faults, where there can be several.
    """

    code: str = "error"
    exit_code: int = 1

    def __init__(
        self, message: str, *, code: str | None = None, errors: Sequence[FieldError] = ()
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.errors: tuple[FieldError, ...] = tuple(errors)


class InvalidInput(ClaraResultsError):
    """What a person or a client gave is wrong; nothing was done."""

    code = "invalid-input"
    exit_code = 2


class SettingsInvalid(InvalidInput):
    """One or more settings are wrong; ``errors`` names each."""

    code = "invalid-settings"


class AgentNameInvalid(InvalidInput):
    """An agent's name breaks the rule in ``domain.names``."""

    code = "invalid-agent-name"


class UnsafeUri(InvalidInput):
    """A file's URI is not a plain relative path, or leads out of its payload."""

    code = "unsafe-uri"


class NoFilesFound(ClaraResultsError):
    """There is nothing to register."""

    code = "no-files"
    exit_code = 3


class ServiceUnavailable(ClaraResultsError):
    """The Results Service can't be reached, or says that it can't serve just now."""

    code = "service-unavailable"
    exit_code = 4


class UnreadableInput(ClaraResultsError):
    """A file or folder that must be read can't be, or changed under the reader."""

    code = "unreadable-input"
    exit_code = 5


class NotDelivered(ClaraResultsError):
    """A task that was waited for did not come to a good end."""

    code = "not-delivered"
    exit_code = 6


class Refused(ClaraResultsError):
    """The Results Service refused a call.

    Attributes:
        status: The HTTP status it answered with.
    """

    code = "refused"
    exit_code = 7

    def __init__(
        self, message: str, *, code: str, status: int, errors: Sequence[FieldError] = ()
    ) -> None:
        super().__init__(message, code=code, errors=errors)
        self.status = status


class AccessDenied(ClaraResultsError):
    """Who calls may not do that."""

    code = "access-denied"
    exit_code = 7


class Unauthenticated(AccessDenied):
    """A call without a token where one is needed, or with one that is unknown, revoked or expired."""

    code = "token-missing"


class Forbidden(AccessDenied):
    """A call that its token does not allow.

    Attributes:
        scope: What it would take, where a scope would help.
    """

    code = "insufficient-scope"

    def __init__(self, message: str, *, scope: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.scope = scope


class NotFound(ClaraResultsError):
    """No such task, destination, payload or file."""

    code = "not-found"
    exit_code = 7


class Conflict(ClaraResultsError):
    """The request contradicts what is there."""

    code = "conflict"
    exit_code = 7


class LeaseLost(Conflict):
    """The caller's lease is no longer the task's: it must stop, and report nothing."""

    code = "lease-lost"


class FilesUnaccounted(Conflict):
    """A success report leaves files without an outcome."""

    code = "files-unaccounted"


class IllegalTransition(Conflict):
    """The task's state does not allow what was asked."""

    code = "illegal-transition"


class ExistsDifferently(Conflict):
    """Other content lies at that URI already; what a task names never changes."""

    code = "exists-differently"


class Unprocessable(ClaraResultsError):
    """The request is well formed, but can't be taken."""

    code = "unprocessable"
    exit_code = 7


class MissingFiles(Unprocessable):
    """Files of a registration are not in the payload, or not with their size."""

    code = "missing-file"


class Gone(ClaraResultsError):
    """It was there once and is no more."""

    code = "gone"
    exit_code = 7


class DestinationUnavailable(ClaraResultsError):
    """A receiver as a whole can't be reached or does not answer; its tasks wait, their retries unchanged."""

    code = "destination-unavailable"
    exit_code = 8


class Stopping(ClaraResultsError):
    """This process was asked to end; work in hand is given back."""

    code = "stopping"
    exit_code = 9


class OperatorFailed(ClaraResultsError):
    """An operator of a pipeline that was run here did not end well; ``errors`` has each."""

    code = "operator-failed"
    exit_code = 10
