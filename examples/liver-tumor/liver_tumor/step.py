"""A step of a pipeline: the folders that the platform gives it, how it ends and what it says.

The platform names the folders in two environment variables, ``name:/path`` joined by ``;``. Without them a step reads
from ``/input`` and writes to ``/output``, where a pipeline definition mounts them.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

INPUT_PATHS = "NVIDIA_CLARA_INPUTPATHS"
OUTPUT_PATHS = "NVIDIA_CLARA_OUTPUTPATHS"
JOB_ID = "NVIDIA_CLARA_JOBID"


class Refused(Exception):
    """The step can't do its work with what it was given; the message says why, and what to do."""


def say(line: str) -> None:
    """Print a line of progress at once; never anything of the patient's."""
    print(line, flush=True)


def run(name: str, work: Callable[[], None]) -> int:
    """Do a step's work, and return its exit code.

    0: done. 1: a file can't be read or written, or a fault of the program. 2: refused. A fault's own words are not
    printed, nor are warnings: they may quote what is the patient's.
    """
    warnings.simplefilter("ignore")
    try:
        work()
    except Refused as refusal:
        print(f"{name}: {refusal}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print(
            f"{name}: {error.filename or 'a file'}: {error.strerror or error}",
            file=sys.stderr,
            flush=True,
        )
        return 1
    except Exception as fault:  # noqa: BLE001  (outermost: a traceback would print the fault's words)
        place = traceback.extract_tb(fault.__traceback__)[-1]
        print(
            f"{name}: this is a fault of the program: {type(fault).__name__} at {place.filename}:{place.lineno}",
            file=sys.stderr,
            flush=True,
        )
        return 1
    return 0


def only_input(given: Path | None) -> Path:
    """Return the folder of a step that has one input.

    Args:
        given: What the command line says; it goes before the environment.

    Raises:
        Refused: The platform gives more than one.
    """
    if given is not None:
        return given
    folders = named_inputs()
    if len(folders) > 1:
        raise Refused(f"{INPUT_PATHS} names {', '.join(folders)}: this operator takes one input")
    return next(iter(folders.values()), Path("/input"))


def only_output(given: Path | None) -> Path:
    """Return the folder of a step that has one output, and make it where it is missing.

    Raises:
        Refused: The platform gives more than one, or the folder holds files already: they would be registered as results
            of this run.
    """
    folders = _folders(OUTPUT_PATHS)
    if given is None and len(folders) > 1:
        raise Refused(f"{OUTPUT_PATHS} names {', '.join(folders)}: this operator has one output")
    folder = given or next(iter(folders.values()), Path("/output"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Refused(f"{folder} is not empty: empty it, or give another folder for the output")
    return folder


def named_inputs() -> dict[str, Path]:
    """Return the input folders that the platform names; none where it names none."""
    return _folders(INPUT_PATHS)


def _folders(variable: str) -> dict[str, Path]:
    folders = {}
    for entry in filter(None, os.environ.get(variable, "").split(";")):
        name, colon, path = entry.partition(":")
        if not (name and colon and path.startswith("/")):
            raise Refused(f"{variable}: {entry!r} is not name:/path")
        folders[name] = Path(path)
    return folders
