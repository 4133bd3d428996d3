"""The order in which several threads send the instances of one task."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
"""What is sent at a time: an instance, or several."""
TICK = 0.1
"""Seconds between looks at whether one who waits is still wanted."""


class SendingOrder(Generic[T]):
    """Gives out what is to be sent of a task to several threads, stage after stage.

    A stage begins only when all of the one before it has been settled. An item that is to be sent again comes once
    more at the end of its stage, alone: so it is plain which one breaks a connection each time.

    Args:
        source: The items in order; what its ``next`` raises is raised by ``take``.
        stage: Tells an item's stage: items of one stage follow each other.
    """

    def __init__(self, source: Iterator[T], stage: Callable[[T], Hashable]) -> None:
        self._source = source
        self._stage_of = stage
        self._changed = threading.Condition()
        self._front: deque[T] = deque()
        self._again: deque[T] = deque()
        self._stage: Hashable = None
        self._in_hand = 0
        self._alone = False
        self._fetching = False
        self._source_ended = False
        self._over = False

    @property
    def over(self) -> bool:
        """Tell whether nothing more is given out."""
        return self._over

    def take(self, wanted: Callable[[], bool]) -> T | None:
        """Wait for the next item; it must be settled or handed back.

        Args:
            wanted: Tells whether the one who waits is still wanted.

        Returns:
            The item; None: there is none any more, or the one who waits is not wanted.
        """
        with self._changed:
            while not self._over and wanted():
                if not self._front and not self._fetched():
                    continue
                if not self._alone and (found := self._next()) is not None:
                    self._in_hand += 1
                    return found
                if self._is_all():
                    self.end()
                else:
                    self._changed.wait(TICK)
            return None

    def settle(self, again: Iterable[T] = ()) -> None:
        """Say that all outcomes of an item that was taken are told, but for what has to be sent ``again``."""
        with self._changed:
            self._again.extend(again)
            self._in_hand -= 1
            self._alone = False
            if not self._in_hand:
                self._changed.notify_all()

    def hand_back(self, item: T) -> None:
        """Give back an item that was not sent: another thread takes it next."""
        with self._changed:
            if self._alone:
                self._again.appendleft(item)
            else:
                self._front.appendleft(item)
            self._in_hand -= 1
            self._alone = False
            self._changed.notify_all()

    def end(self) -> None:
        """Give out nothing more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _fetched(self) -> bool:
        """Have the next item at hand, if there is one; False: look at everything once more."""
        if self._source_ended:
            return True
        if self._fetching:
            self._changed.wait(TICK)
            return False
        self._fetching = True
        self._changed.release()
        try:
            found = next(self._source, None)
        finally:
            self._changed.acquire()
            self._fetching = False
            self._changed.notify_all()
        if found is None:
            self._source_ended = True
        else:
            self._front.append(found)
        return False

    def _next(self) -> T | None:
        if self._front:
            stage = self._stage_of(self._front[0])
            if stage == self._stage:
                return self._front.popleft()
            if not self._in_hand and not self._again:
                self._stage = stage
                return self._front.popleft()
        if self._again and not self._in_hand:
            self._alone = True
            return self._again.popleft()
        return None

    def _is_all(self) -> bool:
        return not (self._in_hand or self._front or self._again)
