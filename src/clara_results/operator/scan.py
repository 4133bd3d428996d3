"""Every regular file of the inputs, in a stable order, or an error: never a gap."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from clara_results.domain import names
from clara_results.errors import InvalidInput, UnreadableInput, UnsafeUri

FILE_LIMIT = 100_000
"""Files that the service takes in one registration."""
LINK_LIMIT = 1_000
"""Links to folders that are followed in an input: those that lead to each other in circles multiply."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_join = os.path.join  # for speed: a Path a file costs more than reading its folder
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Input:
    """A folder whose files are results.

    Attributes:
        name: Its name in the pipeline.
        path: Absolute path here.
        prefix: Which part of the payload it is (``""``: the whole); None: none, its files are uploaded.
    """

    name: str
    path: str
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file of an input.

    Attributes:
        source: The input it was found in.
        relative: Its path below the input, ``/``-separated.
        size: Bytes.
        modified: Time of last change, to the microsecond.
    """

    source: Input
    relative: str
    size: int
    modified: datetime

    @property
    def path(self) -> str:
        """Its path here."""
        return _join(self.source.path, self.relative)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to be read.

    Attributes:
        path: Its path below the input, with a slash at the end unless it is the input itself.
        real: Its path without links.
        jumps: Folders (without links) that hold the links through which it was reached.
    """

    path: str
    real: str
    jumps: tuple[str, ...] = ()


def scan(inputs: Sequence[Input], warn: Callable[[str], None]) -> list[Found]:
    """Find every regular file of the inputs, at any depth.

    Symbolic links are followed while they stay inside their own input, each folder once on a path. An input
    inside another one's folder is scanned as itself alone.

    Args:
        inputs: What to scan.
        warn: Told of each thing that is passed over because it is neither file, folder nor link.

    Returns:
        The files, by input and path.

    Raises:
        InvalidInput: A name that can't be a URI, two inputs of one folder, or too many files or links.
        UnreadableInput: A folder or file can't be read, or a link leads out of its input or nowhere.
    """
    roots = {_real(each.path): each for each in reversed(inputs)}
    if len(roots) < len(inputs):
        twice = [each for each in inputs if each not in roots.values()][0]  # noqa: RUF015
        first = roots[_real(twice.path)]
        raise InvalidInput(
            f"inputs {first.name} and {twice.name} are the same folder {twice.path}: map it once",
            code="invalid-input-path",
        )
    found: list[Found] = []
    for real, each in roots.items():
        walk = _Walk(each, real, frozenset(roots) - {real}, warn)
        for files in walk.folders():
            found += files
            if len(found) > FILE_LIMIT:
                raise InvalidInput(
                    f"more than {FILE_LIMIT} files (at {each.path}): register them from several steps",
                    code="too-many-files",
                )
    found.sort(key=lambda file: (file.source.name, os.fsencode(file.relative)))
    return found


class _Walk:
    """One input's walk."""

    def __init__(
        self, source: Input, real: str, others: frozenset[str], warn: Callable[[str], None]
    ) -> None:
        self._source = source
        self._real = real
        self._others = others
        self._warn = warn
        self._links = 0

    def folders(self) -> Iterator[list[Found]]:
        """Yield the files of each folder."""
        waiting = [_Folder("", self._real)]
        while waiting:
            folder = waiting.pop()
            files = []
            for entry in self._entries(folder):
                relative = folder.path + entry.name
                if entry.is_symlink():
                    target = self._target(entry.path)
                    mode = self._mode(target)
                    below = self._linked(folder, relative, target) if stat.S_ISDIR(mode) else None
                else:
                    target, mode = entry.path, _mode_of(entry)
                    below = _Folder(relative + "/", _join(folder.real, entry.name), folder.jumps)
                if stat.S_ISDIR(mode):
                    waiting += [below] if below and below.real not in self._others else []
                elif stat.S_ISREG(mode):
                    files.append(self._file(relative))
                else:
                    self._warn(
                        f"passed over: {_join(self._source.path, relative)!r} is {_kind(mode)}, not a file"
                    )
            yield files

    def _entries(self, folder: _Folder) -> Iterable[os.DirEntry[str]]:
        path = _join(self._source.path, folder.path)
        try:
            with os.scandir(path) as entries:
                return list(entries)
        except NotADirectoryError as error:
            raise UnreadableInput(f"{path} is not a folder: an input is one") from error
        except OSError as error:
            raise _unreadable(path.rstrip("/") or path, error) from error

    def _target(self, path: str) -> str:
        """Return where a link leads to in the end.

        Raises:
            UnreadableInput: Nowhere, or out of the input.
        """
        try:
            target = os.path.realpath(path, strict=True)
        except OSError as error:
            raise UnreadableInput(
                f"{path!r} is a symbolic link that leads nowhere ({error.strerror}): mend or remove it"
            ) from error
        if not _inside(target, self._real):
            raise UnreadableInput(
                f"{path!r} is a symbolic link out of its input {self._source.name}, to {target!r}: "
                "put the file itself there, or remove the link"
            )
        return target

    def _mode(self, path: str) -> int:
        try:
            return os.stat(path).st_mode  # noqa: PTH116
        except OSError as error:
            raise _unreadable(path, error) from error

    def _linked(self, folder: _Folder, relative: str, target: str) -> _Folder | None:
        """Return the folder behind a link, or None where its path has been there already."""
        if any(_inside(place, target) for place in (folder.real, *folder.jumps)):
            link = _join(self._source.path, relative)
            self._warn(f"not followed again: {link!r} leads back to {target!r}")
            return None
        self._links += 1
        if self._links > LINK_LIMIT:
            raise InvalidInput(
                f"more than {LINK_LIMIT} symbolic links to folders in {self._source.path}: "
                "put the files themselves there",
                code="too-many-links",
            )
        return _Folder(relative + "/", target, (*folder.jumps, folder.real))

    def _file(self, relative: str) -> Found:
        path = _join(self._source.path, relative)
        try:
            names.file_uri(relative)
        except UnsafeUri as error:
            raise UnsafeUri(f"{path!r} can't be registered: {error}; rename it") from error
        try:
            descriptor = os.open(path, _OPEN)  # the only exact answer to whether it can be read
            try:
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(path, error) from error
        return Found(self._source, relative, status.st_size, modified(status, path))


def modified(status: os.stat_result, path: str) -> datetime:
    """Return a file's time of last change, cut to the microsecond.

    Raises:
        UnreadableInput: It lies beyond the years 1 to 9999.
    """
    try:
        return _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    except OverflowError as error:
        raise UnreadableInput(
            f"{path!r} has no time of change that can be told: touch it"
        ) from error


def _real(path: str) -> str:
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError as error:
        raise UnreadableInput(
            f"{path} does not exist: is it mapped? Inputs are those of --input, "
            "else NVIDIA_CLARA_INPUTPATHS, else /input"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mode_of(entry: os.DirEntry[str]) -> int:
    try:
        if entry.is_dir(follow_symlinks=False):
            return stat.S_IFDIR
        if entry.is_file(follow_symlinks=False):
            return stat.S_IFREG
        return entry.stat(follow_symlinks=False).st_mode
    except OSError as error:
        raise _unreadable(entry.path, error) from error


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _unreadable(path: str, error: OSError) -> UnreadableInput:
    return UnreadableInput(f"{path!r} can't be read: {error.strerror or error}")
