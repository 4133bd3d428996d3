"""Thumbnails of payloads' files, made by a child process and kept for a while."""

import os
import threading
from collections import OrderedDict
from importlib.util import find_spec
from typing import BinaryIO

from clara_results.payloads.child import ChildProcess
from clara_results.service.thumbnailer import NEEDED

CHILD = "clara_results.service.thumbnailer"
LIMIT = 10.0
"""Seconds that one file may take; then its child process is ended."""
KEPT = 1000
"""Thumbnails that are kept in memory, some kilobytes each."""


class Thumbnails:
    """Makes thumbnails, one at a time. Thread-safe; ``close`` ends the child process."""

    def __init__(self, limit: float = LIMIT) -> None:
        """Start nothing yet.

        Args:
            limit: Seconds that one file may take.
        """
        self._limit = limit
        self._possible = all(find_spec(name.partition(".")[0]) for name in NEEDED)
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def of(self, file: BinaryIO, tag: str) -> bytes:
        """Return a file's thumbnail as PNG of at most 128 pixels a side; empty: it has no picture that can be shown.

        Args:
            file: The file, open.
            tag: What names this very content: it is looked at once.
        """
        if not self._possible:
            return b""
        with self._lock:
            if tag in self._kept:
                self._kept.move_to_end(tag)
            else:
                self._kept[tag] = self._made(file)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[tag]

    def close(self) -> None:
        """End the child process, if there is one."""
        with self._lock:
            self._end()

    def _made(self, file: BinaryIO) -> bytes:
        try:
            child = self._child = self._child or ChildProcess(CHILD)
            # The very file that was opened, not its name again.
            child.connection.send_bytes(f"/proc/{os.getpid()}/fd/{file.fileno()}".encode())
            if child.connection.poll(self._limit):
                return child.connection.recv_bytes()
        except (EOFError, OSError):
            pass  # the file has ended the child, or none could be started
        self._end()
        return b""

    def _end(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
