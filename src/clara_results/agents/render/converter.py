"""The child process of ``worker``, as the agent sees it: one, whatever number of tasks wants it, so that memory is bounded."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clara_results.agents.render.faults import Unshowable
from clara_results.agents.render.source import Converted, Group, Plan
from clara_results.payloads.child import ChildProcess
from clara_results.wire.codec import from_json, to_json

T = TypeVar("T")
WORKER = "clara_results.agents.render.worker"
FILES, MADE = "files", "made"
"""Folders of a task's scratch: its files by URI, and what is made of them."""
FAILED = "converter-failed"
LOOK_EVERY = 0.25
"""Seconds between looks whether the task is still the agent's."""
LEAST_SECONDS = 120.0
"""For any request, on a machine that is busy."""
LEAST_RATE = 500_000
"""Bytes of files that the child must get through in a second beyond that, else it is taken for hung."""


class Converter:
    """Has files looked at and converted. Thread-safe; ``close`` ends the child process.

    Args:
        module: What the child process runs.
        least: Seconds for any request.
    """

    def __init__(self, module: str = WORKER, least: float = LEAST_SECONDS) -> None:
        self._module = module
        self._least = least
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None

    def plan(
        self,
        scratch: Path,
        uris: Sequence[str],
        around: Sequence[str],
        size: int,
        checkpoint: Callable[[], None],
    ) -> Plan:
        """Find out what is to be made of a task's files.

        Args:
            scratch: Folder with FILES, in which they are.
            uris: Theirs.
            around: URIs of further DICOM files of the payload, which are there as well.
            size: Bytes of all.
            checkpoint: Called now and then; what it raises ends the work.

        Raises:
            Unshowable: The child process did not come to an end with them (``converter-failed``).
        """
        request = {"scratch": str(scratch), "uris": list(uris), "around": list(around)}
        return from_json(Plan, self._ask(request, size, checkpoint))

    def convert(
        self, scratch: Path, group: Group, size: int, checkpoint: Callable[[], None]
    ) -> Converted:
        """Make what the browser gets of a group, in the scratch's folder MADE.

        Raises:
            Unshowable: A file can't be shown, or the child process did not come to an end with them.
        """
        request = {"scratch": str(scratch), "group": json.loads(to_json(group))}
        return from_json(Converted, self._ask(request, size, checkpoint))

    @property
    def pid(self) -> int | None:
        """Return the child's process id; None: it does not run."""
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """End the child process."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _ask(self, request: dict[str, Any], size: int, checkpoint: Callable[[], None]) -> Any:
        while not self._lock.acquire(timeout=LOOK_EVERY):
            checkpoint()
        try:
            answer = self._answer(request, self._least + size / LEAST_RATE, checkpoint)
        except BaseException:
            self.close()  # it may be in the midst of something
            raise
        finally:
            self._lock.release()
        if "fault" in answer:
            raise Unshowable(**answer["fault"])
        return answer["result"]

    def _answer(
        self, request: dict[str, Any], seconds: float, checkpoint: Callable[[], None]
    ) -> dict[str, Any]:
        if self._child is None:
            self._child = ChildProcess(self._module)
        connection = self._child.connection
        try:
            connection.send_bytes(json.dumps(request).encode())
            for _ in range(round(seconds / LOOK_EVERY)):
                if connection.poll(LOOK_EVERY):
                    answer: dict[str, Any] = json.loads(connection.recv_bytes())
                    return answer
                checkpoint()
        except (OSError, EOFError) as error:
            raise Unshowable(
                "the converter broke down over it: is the file damaged, or memory short?",
                code=FAILED,
            ) from error
        raise Unshowable(f"the converter did not come to an end in {seconds:.0f} s", code=FAILED)
