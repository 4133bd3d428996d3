"""What is said on stderr while work goes on. Results are on stdout; nothing here is one."""

import contextlib
from typing import TextIO

from clara_results.domain.clock import Clock

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines where stderr is not a terminal."""
LIVE_INTERVAL = 0.1


class Progress:
    """Progress, notes and warnings; safe to be called by several threads only for notes and warnings."""

    def __init__(self, stream: TextIO | None, clock: Clock, *, quiet: bool) -> None:
        """Say nothing yet.

        Args:
            stream: Where to; None (stderr is closed): nowhere.
            clock: Paces the progress lines.
            quiet: Only warnings and errors.
        """
        self._stream = stream
        self._clock = clock
        self._quiet = quiet
        self._live = stream is not None and stream.isatty()
        self._last = clock.monotonic()
        self._open = False

    def step(self, text: str) -> None:
        """Show how far the work is: on a terminal in one line that changes, else now and then."""
        now = self._clock.monotonic()
        if self._quiet or now - self._last < (LIVE_INTERVAL if self._live else PLAIN_INTERVAL):
            return
        self._last = now
        self._write(f"\r{text}\x1b[K" if self._live else f"{text}\n")
        self._open = self._live

    def note(self, text: str) -> None:
        """Say something that happened."""
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Say something that people must know, also when quiet."""
        cleared = "\r\x1b[K" if self._open else ""
        self._open = False
        self._write(f"{cleared}{text}\n")

    def close(self) -> None:
        """Take the changing line away."""
        if self._open:
            self._open = False
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(OSError):  # stderr is gone: there is nowhere left to say so
            self._stream.write(text)
            self._stream.flush()
