"""What datasets and their files are called."""

from pathlib import PurePosixPath
from uuid import UUID, uuid5

DIGEST_PART = 32
"""Hexadecimal digits of a file's SHA-256 that its URI bears."""


def dataset_id(task_id: str, density: str) -> str:
    """Return the id of the dataset that a task makes of a file: the same, however often it is tried.

    Args:
        task_id: UUID of the task.
        density: URI of the file with the dataset's volume; of a DICOM series that of its first file.
    """
    return uuid5(UUID(task_id), density).hex


def file_uri(kind: str, sha256: str, name: str) -> str:
    """Return where in a dataset a file goes: ``volume/0f3a…/ct.nii.gz``.

    What is there never changes, so browsers may keep it for ever.

    Args:
        kind: What it is: ``volume``, ``look``, ``label``, ``preview``, ``original``.
        sha256: Digest of its content, as hex.
        name: What it is called when it is downloaded; of a path its last part.
    """
    return f"{kind}/{sha256[:DIGEST_PART]}/{PurePosixPath(name).name}"


def bears(uri: str, sha256: str) -> bool:
    """Tell whether a file's URI bears its digest, as ``file_uri`` gives it one."""
    parts = uri.split("/")
    return len(parts) == 3 and parts[1] == sha256[:DIGEST_PART]
