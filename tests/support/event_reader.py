"""A reader of ``/api/events``."""

import threading

import urllib3


class EventReader:
    """Reads the stream of events of the service at a URL in a thread; ``count`` is how many came."""

    def __init__(self, url: str) -> None:
        self.count = 0
        self._pool = urllib3.PoolManager(retries=False)
        self._answer = self._pool.request(
            "GET", f"{url}/api/events", preload_content=False, timeout=urllib3.Timeout(60)
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        for data in self._answer.stream(1 << 16):
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            self.count += lines.count(b"event: task")

    def close(self) -> None:
        """Wait for the stream's end: that of the service."""
        self._thread.join(60)
        self._answer.close()
        self._pool.clear()
