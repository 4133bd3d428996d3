"""The payload of a local run: a folder with the pipeline's input, and one for each operator."""

import shutil
from pathlib import Path

from clara_results.errors import Conflict, NoFilesFound, UnreadableInput
from clara_results.pipeline.definition import PAYLOAD_FOLDER


def make_payload(payload: Path, source: Path) -> None:
    """Make a payload whose input is a copy of a folder. Nothing is left of one that can't be made.

    Args:
        payload: The folder to make.
        source: The folder to copy; links in it are followed.

    Raises:
        Conflict: There is such a payload already.
        NoFilesFound: The source holds no file.
        UnreadableInput: A part of it can't be read, or the copy can't be written.
    """
    if not source.is_dir():
        raise UnreadableInput(f"--input {source}: there is no such folder")
    if not any(path.is_file() for path in source.rglob("*")):
        raise NoFilesFound(f"--input {source}: there is no file in it")
    try:
        payload.mkdir(parents=True)
    except FileExistsError:
        raise Conflict(
            f"there is a payload {payload} already: take another --job", code="payload-exists"
        ) from None
    except OSError as error:
        raise UnreadableInput(f"{payload} can't be made: {error.strerror or error}") from error
    try:
        shutil.copytree(source, payload / PAYLOAD_FOLDER)
    except BaseException as error:
        shutil.rmtree(payload)
        if isinstance(error, shutil.Error):
            path, _, why = error.args[0][0]
            raise UnreadableInput(f"{path} can't be copied to the payload: {why}") from error
        if isinstance(error, OSError):
            raise UnreadableInput(f"{source} can't be copied to the payload: {error}") from error
        raise


def empty(folder: Path) -> None:
    """Have a folder there, with nothing in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def is_empty(folder: Path) -> bool:
    """Tell whether there is no file in a folder, at any depth."""
    return not any(path.is_file() for path in folder.rglob("*"))
