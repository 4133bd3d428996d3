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
from collections.abc import Iterable, Iterator, Sequence
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
PLACE_TRIES = 20
"""Tries to put a file into a folder that others remove at the same moment."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG}
)
_NO_FOLDER = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
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

    def __init__(self, root: Path, low: int = 0) -> None:
        """Take a folder; it need not exist before the first upload.

        Args:
            root: The folder.
            low: Bytes of its disk that uploads must leave free; 0: none.
        """
        self.root = root.absolute()
        self._root = str(self.root)
        self.low = low

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

    def holds(self, payload_id: str, uri: str) -> bool:
        """Tell whether a regular file lies at a URI."""
        try:
            os.close(self._open(payload_id, names.file_uri(uri)))
        except (NotFound, UnsafeUri):
            return False
        return True

    def files(self, payload_id: str) -> list[StoredFile]:
        """Return all regular files of a payload by URI; links are not followed, nor names that no URI can have.

        Raises:
            NotFound: There is no such payload.
            ServiceUnavailable: A folder of it can't be read.
        """
        path = self._payload(payload_id)
        try:
            folder = os.open(path, _WALK)
            try:
                return sorted(_files_below(folder, ""), key=lambda file: file.uri)
            finally:
                os.close(folder)
        except OSError as error:
            raise _disk(error) from error

    def delete(self, payload_id: str) -> None:
        """Remove a payload and all its files.

        Raises:
            NotFound: There is no such payload.
            ServiceUnavailable: The disk refuses.
        """
        self.clear(self.set_aside(payload_id))

    def require(self, payload_id: str) -> None:
        """Check that there is a payload.

        Raises:
            NotFound: There is none.
        """
        self._payload(payload_id)

    def set_aside(self, payload_id: str, uris: Iterable[str] | None = None) -> Path:
        """Take files out of a payload, quickly; ``clear`` then removes them. Folders that get empty go too.

        Args:
            payload_id: Which payload.
            uris: Which files; those that are not there, or are no regular files, are passed over. None: everything.

        Returns:
            The folder in which they are now.

        Raises:
            NotFound: There is no such payload, and it was to go as a whole.
            ServiceUnavailable: The disk refuses.
        """
        aside = self.root / INCOMING / f"removed-{uuid.uuid4().hex}"
        try:
            self._set_aside(payload_id, uris, aside)
        except OSError as error:
            raise _disk(error) from error
        return aside

    def clear(self, aside: Path) -> None:
        """Remove what was set aside.

        Raises:
            ServiceUnavailable: The disk refuses; ``sweep`` will try again.
        """
        try:
            while aside.exists():
                with contextlib.suppress(FileNotFoundError):  # another process sweeps
                    shutil.rmtree(aside)
        except OSError as error:
            raise _disk(error) from error

    def free(self) -> int:
        """Return how many bytes of the payloads' disk are free.

        Raises:
            ServiceUnavailable: The disk does not tell.
        """
        folder = self.root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            disk = os.statvfs(folder)
        except OSError as error:
            raise _disk(error) from error
        return disk.f_bavail * disk.f_frsize

    def require_room(self, size: int) -> None:
        """Check that the disk can take so many bytes and still be above the low-water mark.

        Raises:
            ServiceUnavailable: It can't (``storage-full``).
        """
        if not self.low:
            return
        free = self.free()
        if free - size < self.low:
            raise ServiceUnavailable(
                f"the payload store has {free:,} bytes free, of which {self.low:,} are to stay free "
                f"(disk_low): it can't take {size:,} more. Everything else goes on, and uploads do as "
                "soon as there is room",
                code="storage-full",
            )

    def sweep(self, before: datetime) -> None:
        """Remove what uploads and removals that a crash cut short have left behind.

        Args:
            before: Only what has not changed since; an upload that still grows is to stay.

        Raises:
            ServiceUnavailable: The disk refuses.
        """
        try:
            for path in (self.root / INCOMING).iterdir():
                with contextlib.suppress(FileNotFoundError):  # another process sweeps as well
                    _sweep(path, before)
        except FileNotFoundError:
            return  # nothing was ever uploaded
        except OSError as error:
            raise _disk(error) from error

    def receive(self, payload_id: str, uri: str, size: int = 0) -> "Upload":
        """Begin an upload.

        Args:
            payload_id: Into which payload.
            uri: Where in it.
            size: Bytes that will come, as far as that is known.

        Raises:
            UnsafeUri: The URI is not plain.
            ServiceUnavailable: The disk can't take it (``storage-full``), or fails.
        """
        payload_id, uri = names.payload_id(payload_id), names.file_uri(uri)
        self.require_room(size)
        return Upload(self, payload_id, uri)

    def _payload(self, payload_id: str) -> Path:
        folder = self.root / names.payload_id(payload_id)
        if folder.is_symlink() or not folder.is_dir():
            raise NotFound(f"there is no payload {payload_id}", code="payload-not-found")
        return folder

    def _open(self, payload_id: str, uri: str) -> int:
        try:
            # A path put together by pathlib costs as much as the file's opening.
            fd = self._walk(f"{self._root}/{names.payload_id(payload_id)}", uri)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise NotFound(
                    f"payload {payload_id} holds no readable file at that URI",
                    code="file-not-found",
                ) from error
            raise _disk(error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotFound(
                f"what payload {payload_id} holds at that URI is not a regular file",
                code="file-not-found",
            )
        return fd

    def _set_aside(self, payload_id: str, uris: Iterable[str] | None, aside: Path) -> None:
        try:
            (aside.parent if uris is None else aside).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _FULL:  # what can't be set aside is removed where it is
                raise
        if uris is None:
            folder = self._payload(payload_id)
            try:
                folder.rename(aside)
            except OSError as error:
                if error.errno not in _FULL | {errno.ENOENT}:
                    raise
                shutil.rmtree(folder)
            return
        for number, uri in enumerate(uris):
            *inner, name = names.file_uri(uri).split("/")
            folders = [names.payload_id(payload_id), *inner]
            with _opened(self.root, folders) as below:
                if len(below) > len(folders):
                    _move(name, below[-1], aside / str(number))
                _remove_empty(folders, below, keep=0)

    def _walk(self, folder: str, uri: str) -> int:
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
                            raise UnsafeUri("that URI leads out of its payload through a link")
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
                    todo += self._below(folder, target, below)
        finally:
            for fd in below:
                os.close(fd)

    @staticmethod
    def _below(folder: str, target: str, below: list[int]) -> list[str]:
        """Return a link's target as parts still to walk, last first; an absolute one starts over."""
        if target.startswith("/"):
            try:
                target = str(Path(target).relative_to(folder))
            except ValueError:
                raise UnsafeUri("that URI leads out of its payload through a link") from None
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
        try:
            self._file.close()
        except OSError:
            pass  # it was to write the rest on a full disk; what is there goes now
        finally:
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
        self._store.require_room(len(data))
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
            for _ in range(PLACE_TRIES - 1):
                # Its folder may get empty, and be removed, just now.
                with contextlib.suppress(FileNotFoundError):
                    return self._place()
            return self._place()
        except OSError as error:
            raise self._refused(error) from error

    def _place(self) -> bool:
        folders = [self._payload_id, *self._uri.split("/")[:-1]]
        made: list[str] = []
        try:
            parent = self._parent(folders, made)
            try:
                name = self._uri.rpartition("/")[2]
                os.link(self._aside, name, dst_dir_fd=parent, follow_symlinks=False)
                os.fsync(parent)
            finally:
                os.close(parent)
        except FileExistsError:
            self._same_as_there()
            return False
        except OSError:
            with _opened(self._store.root, folders) as below:
                _remove_empty(folders, below, keep=len(folders) - len(made))
            raise
        return True

    def _parent(self, folders: Sequence[str], made: list[str]) -> int:
        """Open the folder that the file goes to, made if need be (and noted), without following a link."""
        self._store.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._store.root, _WALK & ~os.O_NOFOLLOW)
        for part in folders:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=fd)
                    made.append(part)
                    os.fsync(fd)
                inner = os.open(part, _WALK, dir_fd=fd)
            except OSError as error:
                if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                    raise UnsafeUri("a folder of that URI is there, and is no folder") from error
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
                f"payload {self._payload_id} holds other content at that URI; what a task "
                "names never changes: choose another URI"
            )

    def _refused(self, error: OSError) -> ClaraResultsError:
        if error.errno == errno.ENAMETOOLONG:
            return UnsafeUri("that URI has a part that is too long for the payload's disk")
        return _disk(error)


@contextlib.contextmanager
def _opened(root: Path, folders: Sequence[str]) -> Iterator[list[int]]:
    """Open nested folders below (and with) a root, each from the last and through no link, as deep as they go."""
    below: list[int] = []
    try:
        below.append(os.open(root, _WALK & ~os.O_NOFOLLOW))
        for part in folders:
            try:
                below.append(os.open(part, _WALK, dir_fd=below[-1]))
            except OSError as error:
                if error.errno not in _NO_FOLDER:
                    raise
                break
        yield below
    finally:
        for fd in below:
            os.close(fd)


def _move(name: str, folder: int, to: Path) -> None:
    """Take a regular file out of a folder; what else bears its name stays."""
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return
        os.rename(name, to, src_dir_fd=folder)
    except FileNotFoundError:
        # Gone already; or there is nowhere to move it to, as the disk is full.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        os.unlink(name, dir_fd=folder)


def _remove_empty(folders: Sequence[str], below: Sequence[int], keep: int) -> None:
    """Remove nested folders from the innermost out, but not the first ``keep``, as long as they are empty."""
    try:
        for depth in reversed(range(keep, len(below) - 1)):
            os.rmdir(folders[depth], dir_fd=below[depth])
    except OSError:
        return  # it holds something, or is held by something: it stays


def _sweep(path: Path, before: datetime) -> None:
    if _moment(path.lstat().st_mtime_ns) >= before:
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def stored_file(uri: str, file: BinaryIO) -> StoredFile:
    """Tell an open file's size and time."""
    status = os.fstat(file.fileno())
    return StoredFile(uri, status.st_size, _moment(status.st_mtime_ns))


def _moment(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _files_below(folder: int, prefix: str) -> Iterator[StoredFile]:
    """Yield the regular files below an open folder; what is gone, or a link, by the time it is opened is none."""
    with os.scandir(folder) as entries:
        for entry in entries:
            uri = prefix + entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    inner = os.open(entry.name, _WALK, dir_fd=folder)
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    with contextlib.suppress(UnsafeUri):  # nobody could ask for it
                        modified = _moment(status.st_mtime_ns)
                        yield StoredFile(names.file_uri(uri), status.st_size, modified)
                    continue
                else:
                    continue
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}:
                    continue
                raise
            try:
                yield from _files_below(inner, f"{uri}/")
            finally:
                os.close(inner)


def _read_link(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _disk(error: OSError) -> ServiceUnavailable:
    code = "storage-full" if error.errno in _FULL else "storage-unavailable"
    return ServiceUnavailable(f"the payload store fails: {error.strerror}", code=code)
