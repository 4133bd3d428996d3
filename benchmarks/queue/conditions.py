"""Under which conditions was measured."""

import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
SYNC_SECONDS = 2.0
_BLOCK = 4096


def conditions(folder: Path, servers: dict[str, str], packages: Iterable[str]) -> dict[str, str]:
    """Return what may matter to who compares figures, by name.

    Args:
        folder: Where data are written.
        servers: Versions of servers, by name.
        packages: Python packages whose versions matter.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),  # noqa: TID251  (nothing depends on it)
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "CPU": f"{_first('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": _first("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "file system": f"{_file_system(folder)}, {syncs(folder):,.0f} fdatasync/s of 4 KiB, one after the other",
        "load average before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "SQLite": f"{sqlite3.sqlite_version} (WAL, synchronous FULL)",
        **servers,
    }


def syncs(folder: Path) -> float:
    """Return how many times a second a block can be written to a file and made durable."""
    path = folder / "sync"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(_BLOCK * 256))
        os.fsync(file.fileno())
        number, begin = 0, time.perf_counter()
        while (passed := time.perf_counter() - begin) < SYNC_SECONDS:
            os.pwrite(file.fileno(), bytes(_BLOCK), number % 256 * _BLOCK)
            os.fdatasync(file.fileno())
            number += 1
    path.unlink()
    return number / passed


def report(told: dict[str, str], rounds: str, tables: Sequence[str]) -> None:
    """Print the conditions and what was found, as Markdown.

    Args:
        told: The conditions, as ``conditions`` returned them before.
        rounds: How often was measured, and what is shown of it.
        tables: What was found.
    """
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    for name, value in (told | {"load average after": load, "rounds": rounds}).items():
        print(f"- {name}: {value}")
    print("\n" + "\n\n".join(tables))


@contextmanager
def working_folder(on: Path) -> Iterator[Path]:
    """Give a folder of the benchmark's own on the disk to measure, and remove it afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="clara-results-bench-", dir=on, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


def busy_seconds() -> float:
    """Return the seconds for which the machine's CPUs have been busy, with whatever."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle, waiting = fields[3], fields[4]
    return (sum(fields[:8]) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def _first(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _file_system(folder: Path) -> str:
    return _output("findmnt", "--noheadings", "--output", "FSTYPE,OPTIONS", "--target", str(folder))


def _output(*command: str) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{command[0]}: {error}", file=sys.stderr)
        return "unknown"
    return " ".join(ended.stdout.split())
