"""Secrets and certificates of destinations: files in a folder of the agent's own.

The service knows their names alone. What is in them is never in a message, nor in a log line.
"""

from pathlib import Path

from clara_results.errors import DestinationUnavailable

CODE = "secret-unavailable"
SIZE_LIMIT = 1 << 20
"""Bytes of a secret; certificates of all authorities of the web are a fifth of it."""


class Secrets:
    """The folder of secrets that the setting ``secrets`` names.

    Args:
        folder: Where they lie; None: there is none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """Return where a secret lies. It may be a symbolic link, as Kubernetes makes them, within the folder.

        Args:
            name: Its file's name in the folder.

        Raises:
            DestinationUnavailable: There is no folder or no such file in it, or the name leads out of it.
        """
        if self._folder is None:
            raise DestinationUnavailable(
                f"the destination needs the secret {name!r}, and there is no folder of secrets here: name one by "
                "--secrets (CLARA_RESULTS_SECRETS)",
                code=CODE,
            )
        if "/" in name or "\0" in name or name in {"", ".", ".."}:
            raise DestinationUnavailable(f"{name!r} is not the name of a secret", code=CODE)
        try:
            folder = self._folder.resolve(strict=True)
            found = (folder / name).resolve(strict=True)
        except (
            OSError,
            RuntimeError,
        ) as cause:  # RuntimeError: links that go round, before Python 3.13
            raise self.unreadable(name, cause) from cause
        if not found.is_relative_to(folder):
            raise DestinationUnavailable(
                f"the secret {name!r} is a link that leads out of {self._folder}", code=CODE
            )
        return found

    def text(self, name: str) -> str:
        """Return a secret: a password, a token. The end of its last line is left out.

        Raises:
            DestinationUnavailable: As ``path``; or it can't be read, is empty, or is no text.
        """
        path = self.path(name)
        try:
            with path.open("rb") as opened:
                content = opened.read(SIZE_LIMIT + 1)
        except OSError as cause:
            raise self.unreadable(name, cause) from cause
        try:
            found = content.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            found = ""  # the error itself would show a part of it
        if not found or len(content) > SIZE_LIMIT:
            raise DestinationUnavailable(
                f"the secret {name!r} is not a text of 1 to {SIZE_LIMIT} bytes", code=CODE
            )
        return found

    def unreadable(self, name: str, cause: OSError | RuntimeError) -> DestinationUnavailable:
        """Return the error that says why a secret can't be read."""
        why = (isinstance(cause, OSError) and cause.strerror) or "links that go round"
        return DestinationUnavailable(
            f"the secret {name!r} in {self._folder} can't be read: {why.lower()}", code=CODE
        )
