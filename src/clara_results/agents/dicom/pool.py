"""Associations that stay open from task to task while work comes.

An association costs a receiver a process or a thread, and a small task most of its time. So one that a task has no
more use for is kept for a moment, for the next task with the same destination, and then released.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from clara_results.agents.dicom.association import Association, Context
from clara_results.domain import names
from clara_results.domain.clock import Clock
from clara_results.wire.destinations import Destination

QUICK_RELEASE = 1.0
"""Seconds for the receiver's part in the release of an association that nothing waits for."""

_SETTINGS = tuple(setting.name for setting in fields(Destination))


@dataclass(slots=True)
class Negotiated:
    """An open association, and what the receiver said to all that was proposed to it for it.

    Attributes:
        association: The association.
        destination: With whom; one whose settings have changed is another.
        refused: Why the receiver takes nothing of a context, in words; also those that it refused when they were
            proposed on an association before this one, which led to the choice of this one's.
        settled: All contexts that need not be proposed again.
        used: An instance was answered over it.
        rested: None has been since a task took it up, or for a while: the receiver may have ended it.
        round: How often associations of its task had broken, one after the other, when it was taken up.
    """

    association: Association
    destination: Destination
    refused: dict[Context, str]
    settled: frozenset[Context]
    used: bool = False
    rested: bool = False
    round: int = 0


@dataclass(slots=True)
class _Kept:
    negotiated: Negotiated
    until: float


@dataclass(slots=True)
class _Counted:
    kept: list[_Kept] = field(default_factory=list)
    leaving: int = 0


class AssociationPool:
    """Keeps associations that no task uses. Thread-safe.

    Args:
        idle: Seconds for which one is kept; 0: none is.
        clock: Where time comes from.
    """

    def __init__(self, idle: float, clock: Clock) -> None:
        self._idle = idle
        self._clock = clock
        self._changed = threading.Condition()
        self._of: dict[str, _Counted] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def take(self, destination: Destination, contexts: Iterable[Context]) -> Negotiated | None:
        """Return an association for which all these contexts are settled, if one is kept and still good.

        If there is none, one with the same receiver that is kept is released, to make room for a fresh one.
        """
        wanted = frozenset(contexts)
        stale: list[Negotiated] = []
        found: Negotiated | None = None
        with self._changed:
            kept = self._counted(destination.name).kept
            for each in reversed(kept.copy()):
                one = each.negotiated
                if not _alike(one.destination, destination) or not one.association.idles():
                    kept.remove(each)
                    stale.append(one)
                elif wanted <= one.settled:
                    kept.remove(each)
                    found = one
                    break
            if found is None and kept and not stale:
                stale.append(kept.pop(0).negotiated)
        _release(stale)
        if found is not None:
            found.rested = True
        return found

    def keep(self, negotiated: Negotiated) -> None:
        """Keep an association for the next task, or release it, if none is kept any more."""
        if negotiated.association.ended:
            return
        with self._changed:
            if self._idle > 0 and not self._closed:
                until = self._clock.monotonic() + self._idle
                self._counted(negotiated.destination.name).kept.append(_Kept(negotiated, until))
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._expire, name="idle associations", daemon=True
                    )
                    self._thread.start()
                self._changed.notify_all()
                return
        negotiated.association.release()

    def idle(self, name: str) -> int:
        """Return how many associations with a destination, by its name, are kept and open."""
        with self._changed:
            counted = self._counted(name)
            return len(counted.kept) + counted.leaving

    def close(self) -> None:
        """Release all; from now on none is kept."""
        with self._changed:
            self._closed = True
            left = [each.negotiated for counted in self._of.values() for each in counted.kept]
            self._of.clear()
            self._changed.notify_all()
        _release(left)
        if self._thread is not None:
            self._thread.join()

    def _counted(self, name: str) -> _Counted:
        return self._of.setdefault(names.name_key(name), _Counted())

    def _expire(self) -> None:
        """Release what was kept for long enough."""
        while True:
            with self._changed:
                if self._closed:
                    return
                now = self._clock.monotonic()
                due = [
                    (counted, each)
                    for counted in self._of.values()
                    for each in counted.kept
                    if each.until <= now
                ]
                for counted, each in due:
                    counted.kept.remove(each)
                    counted.leaving += 1
                if not due:
                    self._changed.wait(self._first_due(now))
                    continue
            _release([each.negotiated for _, each in due])
            with self._changed:
                for counted, _ in due:
                    counted.leaving -= 1

    def _first_due(self, now: float) -> float | None:
        """Return the seconds until the first is kept for long enough; None: none is kept."""
        ends = [each.until for counted in self._of.values() for each in counted.kept]
        return min(ends) - now if ends else None


def _alike(one: Destination, other: Destination) -> bool:
    """Tell whether the settings of destinations are the same; how they stand, which a view has too, does not count."""
    return all(getattr(one, name) == getattr(other, name) for name in _SETTINGS)


def _release(found: list[Negotiated]) -> None:
    """Release several at once: each may have to wait for its receiver."""
    threads = [
        threading.Thread(target=one.association.release, args=(QUICK_RELEASE,), daemon=True)
        for one in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
