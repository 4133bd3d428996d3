"""What is wrong with a file that is to be shown."""

from clara_results.errors import ClaraResultsError


class Unshowable(ClaraResultsError):
    """A file, or what belongs together, that can't become a dataset; ``code`` is the file's, the message says why.

    Attributes:
        uri: Which file of several it is about, where that is known.
    """

    code = "unshowable"

    def __init__(self, message: str, *, code: str, uri: str | None = None) -> None:
        super().__init__(message, code=code)
        self.uri = uri


INCOMPLETE = "dataset-incomplete"


def incomplete() -> Unshowable:
    """Return why a file is not published that is good, but belongs to one that is not."""
    return Unshowable(
        "it is not published, as another file that belongs to it can't be", code=INCOMPLETE
    )
