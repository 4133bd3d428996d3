"""A process of its own for native code that meets whatever a file holds.

Such code may end its process at a damaged file, or run on and on; who starts it must outlive both: an agent holds other
tasks' leases, the service has other callers.
Child and parent speak over a pair of sockets, in messages of bytes. Nothing that could be run is read from the child.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection


class ChildProcess:
    """A child process that runs a module's ``main``; ``close`` ends it.

    Attributes:
        connection: Messages to it and from it.
    """

    def __init__(self, module: str) -> None:
        """Start it.

        Args:
            module: One that, run as a program, calls ``serve``.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  (our own program)
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt at the terminal is the parent's to act upon
            )
        self.connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._process.pid

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self.connection.closed

    def close(self) -> None:
        """End the child process; harmless if it has ended."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def serve(answer: Callable[[Connection], None]) -> None:
    """Be the child: answer what comes until the parent closes its end, or dies.

    Args:
        answer: Receives one request and sends its answer.
    """
    logging.disable()
    warnings.simplefilter("ignore")
    # What native code prints goes nowhere: it is no log line.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            answer(connection)
