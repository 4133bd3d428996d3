"""Payloads as folders: ``ROOT/PAYLOAD_ID/URI``.

Every path is walked from the payload's folder down, one open directory at a time, so that a link made in between
can't lead out of it (as openat2(2) with RESOLVE_BENEATH would; it works on any kernel and file system).
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from clara_results.domain import names
from clara_results.errors import (
    ClaraResultsError,
    ExistsDifferently,
    NotFound,
    ServiceUnavailable,
    UnsafeUri,
)

INCOMING = ".incoming"
"""Folder below the root in which uploads grow; no payload's id begins with a dot."""
LINK_LIMIT = 40
CHUNK = 1 << 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG}
)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that lies in a payload.

    Attributes:
        uri: Its path within the payload.
        size: Bytes.
        modified: Its time of last change, cut to the microsecond.
    """

    uri: str
    size: int
    modified: datetime


class FolderStore:
    """The payloads below one folder. Thread-safe."""

    def __init__(self, root: Path) -> None:
        """Take a folder; it need not exist before the first upload."""
        self.root = root.absolute()

    def open(self, payload_id: str, uri: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            NotFound: There is no such regular file.
            UnsafeUri: The URI is not plain, or a link on its way leads out of the payload.
        """
        fd = self._open(payload_id, names.file_uri(uri))
        return os.fdopen(fd, "rb")

    def stat(self, payload_id: str, uri: str) -> StoredFile:
        """Tell a file's size and time.

        Raises:
            NotFound: There is no such regular file.
            UnsafeUri: As for ``open``.
        """
        with self.open(payload_id, uri) as file:
            return stored_file(uri, file)

    def files(self, payload_id: str) -> list[StoredFile]:
        """Return all regular files of a payload by URI; links are not followed, nor names that no URI can have.

        Raises:
            NotFound: There is no such payload.
            ServiceUnavailable: A folder of it can't be read.
        """
        folder = self._payload(payload_id)
        try:
            return sorted(_files_below(folder, folder), key=lambda file: file.uri)
        except OSError as error:
            raise _disk(error) from error

    def delete(self, payload_id: str) -> None:
        """Remove a payload and all its files.

        Raises:
            NotFound: There is no such payload.
            ServiceUnavailable: The disk refuses.
        """
        folder = self._payload(payload_id)
        aside = self.root / INCOMING / f"removed-{uuid.uuid4().hex}"
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(aside)  # gone at once for every reader; what it held follows
            shutil.rmtree(aside)
        except OSError as error:
            raise _disk(error) from error

    def sweep(self, before: datetime) -> None:
        """Remove what uploads and removals that a crash cut short have left behind.

        Args:
            before: Only what has not changed since; an upload that still grows is to stay.

        Raises:
            ServiceUnavailable: The disk refuses.
        """
        try:
            for path in (self.root / INCOMING).iterdir():
                if _moment(path.lstat().st_mtime_ns) >= before:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except FileNotFoundError:
            return  # nothing was ever uploaded, or another process sweeps at the same time
        except OSError as error:
            raise _disk(error) from error

    def receive(self, payload_id: str, uri: str) -> "Upload":
        """Begin an upload.

        Raises:
            UnsafeUri: The URI is not plain.
            ServiceUnavailable: The disk can't take it.
        """
        return Upload(self, names.payload_id(payload_id), names.file_uri(uri))

    def _payload(self, payload_id: str) -> Path:
        folder = self.root / names.payload_id(payload_id)
        if folder.is_symlink() or not folder.is_dir():
            raise NotFound(f"there is no payload {payload_id}", code="payload-not-found")
        return folder

    def _open(self, payload_id: str, uri: str) -> int:
        try:
            fd = self._walk(self.root / names.payload_id(payload_id), uri)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise NotFound(
                    f"payload {payload_id} holds no readable file {uri!r}", code="file-not-found"
                ) from error
            raise _disk(error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotFound(
                f"{uri!r} in payload {payload_id} is not a regular file", code="file-not-found"
            )
        return fd

    def _walk(self, folder: Path, uri: str) -> int:
        """Open ``folder/uri`` for reading, following links only while they stay inside ``folder``."""
        todo = uri.split("/")[::-1]
        below = [os.open(folder, _WALK)]
        links = 0
        try:
            while True:
                part = todo.pop()
                try:
                    if part == "..":
                        os.close(below.pop())
                        if not below:
                            raise UnsafeUri(f"{uri!r} leads out of its payload through a link")
                        todo = todo or ["."]
                    elif not todo:
                        return os.open(part, _READ, dir_fd=below[-1])
                    else:
                        below.append(os.open(part, _WALK, dir_fd=below[-1]))
                except OSError as error:
                    if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
                        raise
                    target = _read_link(part, below[-1])
                    links += 1
                    if target is None or links > LINK_LIMIT:
                        raise NotADirectoryError(errno.ENOTDIR, "not a directory", uri) from error
                    todo += self._below(folder, target, below, uri)
        finally:
            for fd in below:
                os.close(fd)

    @staticmethod
    def _below(folder: Path, target: str, below: list[int], uri: str) -> list[str]:
        """Return a link's target as parts still to walk, last first; an absolute one starts over."""
        if target.startswith("/"):
            try:
                target = str(Path(target).relative_to(folder))
            except ValueError:
                raise UnsafeUri(f"{uri!r} leads out of its payload through a link") from None
            while len(below) > 1:
                os.close(below.pop())
        return [part for part in target.split("/") if part not in {"", "."}][::-1] or ["."]


class Upload:
    """A file on its way into a payload: written aside, checked, then put in place in one step."""

    def __init__(self, store: FolderStore, payload_id: str, uri: str) -> None:
        """Open the file aside; use as a context manager."""
        self._store = store
        self._payload_id = payload_id
        self._uri = uri
        self._digest = hashlib.sha256()
        self.size = 0
        incoming = store.root / INCOMING
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            self._aside = incoming / uuid.uuid4().hex
            self._file = self._aside.open("xb")
        except OSError as error:
            raise _disk(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Return the digest of what was written so far, as hex."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            ServiceUnavailable: The disk can't take them.
        """
        try:
            self._file.write(data)
        except OSError as error:
            raise _disk(error) from error
        self._digest.update(data)
        self.size += len(data)

    def commit(self) -> bool:
        """Put the file in place, durably; say whether it is new.

        Raises:
            ExistsDifferently: Other content lies there already, or what is there is no file.
            UnsafeUri: A folder on its way is a link, or no folder; or a name is too long for the disk.
            ServiceUnavailable: The disk can't take it.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            parent = self._parent()
        except OSError as error:
            raise self._refused(error) from error
        name = self._uri.rpartition("/")[2]
        try:
            os.link(self._aside, name, dst_dir_fd=parent, follow_symlinks=False)
            os.fsync(parent)
        except FileExistsError:
            self._same_as_there()
            return False
        except OSError as error:
            raise self._refused(error) from error
        finally:
            os.close(parent)
        return True

    def _parent(self) -> int:
        """Open the folder that the file goes to, made if need be, without following a link."""
        self._store.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._store.root, _WALK & ~os.O_NOFOLLOW)
        for part in [self._payload_id, *self._uri.split("/")[:-1]]:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=fd)
                    os.fsync(fd)
                inner = os.open(part, _WALK, dir_fd=fd)
            except OSError as error:
                if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                    raise UnsafeUri(
                        f"{self._uri!r}: {part!r} is there, and is no folder"
                    ) from error
                raise
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _same_as_there(self) -> None:
        digest = hashlib.sha256()
        try:
            with self._store.open(self._payload_id, self._uri) as there:
                while piece := there.read(CHUNK):
                    digest.update(piece)
            same = digest.digest() == self._digest.digest()
        except NotFound:
            same = False  # a folder, a device, a link to nothing
        if not same:
            raise ExistsDifferently(
                f"payload {self._payload_id} holds other content at {self._uri!r}; what a task "
                "names never changes: choose another URI"
            )

    def _refused(self, error: OSError) -> ClaraResultsError:
        if error.errno == errno.ENAMETOOLONG:
            return UnsafeUri(f"{self._uri!r} has a part that is too long for the payload's disk")
        return _disk(error)


def stored_file(uri: str, file: BinaryIO) -> StoredFile:
    """Tell an open file's size and time."""
    status = os.fstat(file.fileno())
    return StoredFile(uri, status.st_size, _moment(status.st_mtime_ns))


def _moment(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _files_below(folder: Path, root: Path) -> Iterator[StoredFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(Path(entry.path), root)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                uri = str(Path(entry.path).relative_to(root))
                with contextlib.suppress(UnsafeUri):  # nobody could ask for it
                    yield StoredFile(
                        names.file_uri(uri), status.st_size, _moment(status.st_mtime_ns)
                    )


def _read_link(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _disk(error: OSError) -> ServiceUnavailable:
    code = "storage-full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "storage-unavailable"
    return ServiceUnavailable(f"the payload store fails: {error.strerror}", code=code)
