"""What exactly will be registered: each file's URI, what is uploaded, and the idempotency key."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from clara_results.domain import names
from clara_results.errors import InvalidInput, UnreadableInput, UnsafeUri
from clara_results.operator import data
from clara_results.operator.request import Request
from clara_results.operator.scan import Found
from clara_results.wire.codec import timestamp
from clara_results.wire.tasks import Registration, ResultFile

KEY_DIGITS = 12
"""So many of the key's hex digits are a part of what is uploaded under."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file as it will be registered.

    Attributes:
        path: Its path here.
        uri: Its path within the payload.
        size: Bytes.
        modified: Time of last change of a file in place; None for an upload.
        sha256: Digest of an upload, 64 lower-case hex digits; None for a file in place.
    """

    path: str
    uri: str
    size: int
    modified: datetime | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A registration that is ready to be sent.

    Attributes:
        key: Its idempotency key.
        files: Its files, by URI.
    """

    key: str
    files: tuple[PlannedFile, ...]

    @property
    def uploads(self) -> list[PlannedFile]:
        """The files that are not in the payload yet."""
        return [file for file in self.files if file.sha256 is not None]

    def registration(self, request: Request) -> Registration:
        """Return the request's body. Files in place are checked by the service; uploads were, when they came."""
        return Registration(
            agent=request.agent,
            job_id=request.job_id,
            pipeline_id=request.pipeline_id,
            payload_id=request.payload_id,
            operator=request.operator,
            data=request.data,
            files=[
                ResultFile(uri=f.uri, size=f.size, modified=f.modified, sha256=f.sha256)
                for f in self.files
            ],
            verify=any(file.sha256 is None for file in self.files),
        )


def idempotency_key(
    job_id: str,
    operator: str,
    agent: str,
    elements: list[Any] | None,
    files: Iterable[PlannedFile],
) -> str:
    """Return the key that makes a registration the same as another one. The rule's one place.

    SHA-256 (64 lower-case hex digits) of ``[job, operator, agent, data, files]`` as JSON without insignificant space,
    in UTF-8. The agent is in lower case. The data has its elements in the given order and the names of objects
    sorted; 1 and 1.0 differ. Files are in the order of their URIs' bytes, each ``[URI, size, mark]``, where the
    mark is the time of last change (RFC 3339, UTC, six decimals) of a file in place and the SHA-256 of an upload.
    An upload's URI is here without the part that is made of this very key.

    So a restarted step gets the same key; and any change of a result, or of whom it is for, another one.
    """
    listed = [
        [file.uri, file.size, file.sha256 or (file.modified and timestamp(file.modified))]
        for file in files
    ]
    whole = data.canonical([job_id, operator, agent, elements, listed])
    return hashlib.sha256(whole.encode()).hexdigest()


def make_plan(
    request: Request, found: Sequence[Found], progress: Callable[[str], None] = lambda _: None
) -> Plan:
    """Give every file its URI, digest those to be uploaded, and make the key.

    Args:
        request: Who registers what.
        found: The inputs' files.
        progress: Told how far the digests are.

    Raises:
        UnsafeUri: A file's whole URI is not one.
        InvalidInput: Two different files have one URI.
        UnreadableInput: A file can't be read, or changes meanwhile.
    """
    in_place = [file for file in found if file.source.prefix is not None]
    to_upload = [file for file in found if file.source.prefix is None]
    nameless = [
        PlannedFile(file.path, _uri(file.source.prefix, file.relative), file.size, file.modified)
        for file in in_place
    ]
    for file in to_upload:  # before anything is read: no digest is as long as this
        _uri(f"{_upload_folder(request, file)}/{'0' * KEY_DIGITS}", file.relative)
    uploads = _digested(request, to_upload, progress) if to_upload else []
    files = _by_uri([*nameless, *uploads])
    key = idempotency_key(request.job_id, request.operator, request.agent, request.data, files)
    return Plan(key, tuple(_with_key(file, key) for file in files))


def _uri(folder: str | None, relative: str) -> str:
    uri = f"{folder}/{relative}" if folder else relative
    try:
        return names.file_uri(uri)
    except UnsafeUri as error:
        raise UnsafeUri(f"{relative!r} can't be registered in {folder!r}: {error}") from error


def _upload_folder(request: Request, file: Found) -> str:
    return f"{request.operator}/{file.source.name}"


def _with_key(file: PlannedFile, key: str) -> PlannedFile:
    """Put the key between ``<operator>/<input>`` and the rest of an upload's URI."""
    if file.sha256 is None:
        return file
    operator, source, relative = file.uri.split("/", 2)
    uri = f"{operator}/{source}/{key[:KEY_DIGITS]}/{relative}"
    return PlannedFile(file.path, uri, file.size, None, file.sha256)


def _by_uri(files: Iterable[PlannedFile]) -> list[PlannedFile]:
    """Sort files by URI; one that comes by two inputs counts once."""
    by_uri: dict[str, PlannedFile] = {}
    for file in files:
        other = by_uri.setdefault(file.uri, file)
        if (other.size, other.modified, other.sha256) != (file.size, file.modified, file.sha256):
            raise InvalidInput(
                f"{other.path!r} and {file.path!r} differ, but would both be {file.uri!r} in the "
                "payload: check --input-uri",
                code="same-uri",
            )
    return sorted(by_uri.values(), key=lambda file: file.uri.encode())


def _digested(
    request: Request, found: Sequence[Found], progress: Callable[[str], None]
) -> list[PlannedFile]:
    from clara_results.operator.parallel import in_parallel  # not needed in place

    files = []
    for index, (size, sha256) in in_parallel(lambda file: digest(file.path), found):
        uri = f"{_upload_folder(request, found[index])}/{found[index].relative}"
        files.append(PlannedFile(found[index].path, uri, size, None, sha256))
        progress(f"reading: {len(files)} of {len(found)} files")
    return files


def digest(path: str) -> tuple[int, str]:
    """Read a file once, streamed.

    Returns:
        Its size in bytes, and its SHA-256 in hex.

    Raises:
        UnreadableInput: It can't be read, or it changed meanwhile.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (a str, see scan)
            before = os.fstat(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise UnreadableInput(f"{path!r} can't be read: {error.strerror or error}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise changed(path)
    return after.st_size, sha256


def changed(path: str) -> UnreadableInput:
    """Return the error for a file that somebody writes while it is read."""
    return UnreadableInput(
        f"{path!r} changed while it was read: register results when they are complete"
    )
