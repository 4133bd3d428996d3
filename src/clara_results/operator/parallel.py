"""A few things at once, in threads that nobody has to wait for."""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORKERS = 4


def in_parallel(action: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    """Do something with each item, a few at a time; yield each one's index and result as they come.

    The threads are daemons, unlike those of ``concurrent.futures``: a process that is told to end does not wait
    for a server's answer. When the first action fails, or the caller goes away, no further one is begun.

    Raises:
        Exception: What the first action that failed raised.
    """
    waiting: SimpleQueue[tuple[int, T]] = SimpleQueue()
    results: SimpleQueue[tuple[int, R] | Exception] = SimpleQueue()
    stop = threading.Event()
    for pair in enumerate(items):
        waiting.put(pair)

    def work() -> None:
        while not stop.is_set():
            try:
                index, item = waiting.get_nowait()
            except Empty:
                return
            try:
                results.put((index, action(item)))
            except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
                stop.set()
                results.put(error)

    for _ in range(min(WORKERS, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in items:
            result = results.get()
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        stop.set()
