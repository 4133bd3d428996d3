"""A copy of a SQLite database, made while the service works on it."""

import contextlib
import os
import shlex
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from clara_results.errors import ClaraResultsError, InvalidInput, ServiceUnavailable

PAGES = 1000
"""Pages between two tellings of progress."""
BUSY_SECONDS = 10.0


def sqlite_file(url: str, target: Path) -> Path:
    """Return the file of a SQLite database.

    Args:
        url: The database's URL.
        target: Where its copy is to be.

    Raises:
        InvalidInput: It is on PostgreSQL, whose own tool copies it; or there is no such file.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "postgresql":
        shown = parsed._replace(drivername="postgresql", password=None).render_as_string()
        command = shlex.join(
            ["pg_dump", "--format=custom", f"--file={target}", f"--dbname={shown}"]
        )
        raise InvalidInput(
            f"the database is on PostgreSQL, whose own tool makes a consistent copy while it works: {command}",
            code="use-pg-dump",
        )
    path = Path(parsed.database or "")
    if not path.is_file():
        raise InvalidInput(
            f"there is no database {path}; --database or --data says where it is",
            code="no-database",
        )
    return path


def back_up(
    source: Path, target: Path, *, replace: bool, progress: Callable[[int, int], None]
) -> int:
    """Copy a database as it is at this moment; who writes to it meanwhile does not wait.

    The copy is made aside, checked, and then put in place in one step, durably.

    Args:
        source: The database's file.
        target: The copy.
        replace: Whether a file that is there already may go.
        progress: Told from time to time how many pages are done, and of how many.

    Returns:
        The copy's size in bytes.

    Raises:
        InvalidInput: The target is there already, or is the database itself, or its folder is not there.
        ServiceUnavailable: The database can't be read, or the copy can't be written.
        ClaraResultsError: The database is damaged (``database-damaged``); nothing was put in place.
    """
    _check_target(source, target, replace=replace)
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _copy(source, aside, progress)
        _sync(aside)
        _check_target(source, target, replace=replace)
        aside.replace(target)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise ServiceUnavailable(
            f"{source} can't be copied to {target}: {error}", code="backup-failed"
        ) from error
    finally:
        for leftover in (aside, Path(f"{aside}-journal")):
            leftover.unlink(missing_ok=True)
    return target.stat().st_size


def _check_target(source: Path, target: Path, *, replace: bool) -> None:
    if not target.parent.is_dir():
        raise InvalidInput(f"there is no folder {target.parent}", code="no-folder")
    if target.is_dir():
        raise InvalidInput(f"{target} is a folder; name a file in it", code="bad-target")
    if target.exists() and target.samefile(source):
        raise InvalidInput(f"{target} is the database itself", code="bad-target")
    if target.exists() and not replace:
        raise InvalidInput(f"{target} is there already; --force replaces it", code="target-exists")


def _copy(source: Path, aside: Path, progress: Callable[[int, int], None]) -> None:
    address = f"file:{quote(str(source.absolute()))}?mode=rw"
    with (
        contextlib.closing(sqlite3.connect(address, timeout=BUSY_SECONDS, uri=True)) as there,
        contextlib.closing(sqlite3.connect(aside, timeout=BUSY_SECONDS)) as copy,
    ):
        there.isolation_level = None
        copy.isolation_level = None
        # One snapshot for all steps: without it, each write to the database would begin the copy anew.
        there.execute("BEGIN")
        there.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        there.backup(
            copy, pages=PAGES, progress=lambda _status, left, total: progress(total - left, total)
        )
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()  # all of it in the one file
        found = [str(row[0]) for row in copy.execute("PRAGMA integrity_check")]
    if found != ["ok"]:
        raise ClaraResultsError(
            f"{source} is damaged, and so would be its copy: {found[0]}; restore the last good backup",
            code="database-damaged",
        )


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
