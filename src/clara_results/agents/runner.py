"""The loop of every agent: claim, deliver, report; leases held meanwhile, work given back at the end."""

import logging
import os
import shutil
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from clara_results.agents.exporter import Exporter, TaskRejected
from clara_results.agents.held import HeldTask
from clara_results.client import ResultsClient
from clara_results.domain.clock import Clock
from clara_results.domain.tasks import Outcome
from clara_results.errors import (
    ClaraResultsError,
    DestinationUnavailable,
    LeaseLost,
    ServiceUnavailable,
    Stopping,
)
from clara_results.payloads import FolderStore
from clara_results.wire.tasks import FailureReport, FileOutcome, Idle, Release, SuccessReport, Task

WAIT = 2.0
"""Seconds that a claim waits at the service for a task; work is given back only after the last claim's answer, or
that claim would take it up again."""
CLAIM_LIMIT = 3 * WAIT
"""Seconds after which the last claim's answer is not waited for any more."""
WANTED = 100
"""Associations that a claim asks for; the service gives what the destination has free and the task's files can use."""
PAUSE = (0.5, 5.0)
"""Seconds between tries while the service is away: the first, and the longest."""
GRACE = 8.0
"""Seconds for work in hand once the agent is asked to end; with what follows it is out within ten."""
_log = logging.getLogger(__name__)


def instance_name() -> str:
    """Return what this process calls itself: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Runner:
    """Runs one agent until it is asked to stop."""

    def __init__(
        self,
        agent: str,
        exporter: Exporter,
        client: ResultsClient,
        clock: Clock,
        *,
        lease: int,
        parallel: int,
        payloads: FolderStore | None,
        grace: float = GRACE,
    ) -> None:
        """Make a runner; nothing is claimed yet.

        Args:
            agent: The agent's name.
            exporter: What delivers.
            client: To the service.
            clock: The time.
            lease: Seconds of a lease.
            parallel: Tasks delivered side by side.
            payloads: Where files lie; None: they are fetched from the service.
            grace: Seconds for work in hand once it is asked to end.
        """
        self._agent = agent
        self._exporter = exporter
        self._client = client
        self._clock = clock
        self._lease = lease
        self._parallel = parallel
        self._payloads = payloads
        self._grace = grace
        self._stop = threading.Event()
        self._over = threading.Event()
        self._claimer = threading.Thread(target=self._claim_all, name="claim", daemon=True)
        self._free = threading.Semaphore(parallel)
        self._held: dict[HeldTask, threading.Thread] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Ask it to end: instances in hand are finished, the rest is given back. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Claim and deliver until ``stop``."""
        _log.info("agent %s takes tasks from %s", self._agent, self._client.url)
        self._claimer.start()
        while not self._stop.wait(1.0):
            pass
        self._end_all()

    def _claim_all(self) -> None:
        pause = PAUSE[0]
        while not self._stop.is_set():
            if not self._free.acquire(timeout=0.2):
                continue
            try:
                claimed = self._client.claim(
                    self._agent, size=1, wait=WAIT, lease=self._lease, associations=WANTED
                )
            except ServiceUnavailable as error:
                _log.warning("%s; trying again", error)
                claimed = []
                self._stop.wait(pause)
                pause = min(pause * 2, PAUSE[1])
            except ClaraResultsError as error:
                _log.error("tasks can't be claimed: %s", error)
                claimed = []
                self._stop.wait(PAUSE[1])
            else:
                pause = PAUSE[0]
            if not (claimed and self._begun(claimed[0])):
                self._free.release()

    def _begun(self, task: Task) -> bool:
        """Begin a task; one that can't be taken up here, as there is no room or no thread, is given back."""
        try:
            self._begin(task)
        except (OSError, RuntimeError) as error:
            _log.error("task %s can't be taken up here: %s", task.task_id, error)
            release = Release(lease_token=task.lease_token or "", files=[])
            try:
                self._client.release(task.task_id, release)
            except ClaraResultsError as again:
                _log.warning("task %s could not be given back: %s", task.task_id, again)
            self._stop.wait(PAUSE[1])
            return False
        return True

    def _begin(self, task: Task) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="clara-results-"))
        held = HeldTask(
            task, self._client, self._lease, self._stop, self._clock, self._payloads, scratch
        )
        thread = threading.Thread(
            target=self._work, args=(held, scratch), name=f"task {task.task_id}", daemon=True
        )
        with self._lock:
            self._held[held] = thread
            try:
                thread.start()  # once the end has been asked for, its first checkpoint gives the task back
            except RuntimeError:
                del self._held[held]
                held.end()
                shutil.rmtree(scratch, ignore_errors=True)
                raise

    def _work(self, held: HeldTask, scratch: Path) -> None:
        try:
            self._deliver(held)
        except LeaseLost as error:
            _log.warning("%s; nothing more is sent or reported", error)
        except ClaraResultsError as error:
            _log.error("task %s could not be reported: %s", held.task.task_id, error)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with self._lock:
                del self._held[held]
            self._free.release()

    def _deliver(self, held: HeldTask) -> None:
        """Deliver a task and report it, whatever becomes of it."""
        task = held.task
        fault: ClaraResultsError | None = None
        try:
            self._exporter.deliver(held)
        except LeaseLost:
            held.end()
            return
        except (TaskRejected, DestinationUnavailable, ServiceUnavailable, Stopping) as error:
            fault = error
        except Exception as error:  # noqa: BLE001  (outermost loop of the thread: the task must be reported)
            _log.exception("task %s: the exporter failed", task.task_id)
            fault = ClaraResultsError(
                f"the exporter failed: {type(error).__name__}", code="agent-fault"
            )
        outcomes = held.outcomes
        files = held.end()
        untold = [file.uri for file in task.files or () if file.uri not in outcomes]
        if fault is None and untold:
            fault = ClaraResultsError(
                f"{len(untold)} files were left without an outcome", code="agent-fault"
            )
        self._report(task, outcomes, files, fault)

    def _report(
        self,
        task: Task,
        outcomes: dict[str, FileOutcome],
        files: list[FileOutcome],
        fault: ClaraResultsError | None,
    ) -> None:
        token = task.lease_token
        kept = self._exporter.idle(task)
        idle = Idle(associations=kept, seconds=self._exporter.idle_seconds) if kept else None
        failed = [o for o in outcomes.values() if o.outcome in {Outcome.RETRY, Outcome.REJECTED}]
        if isinstance(fault, Stopping | ServiceUnavailable):
            self._last_claim_answered()
            release = Release(lease_token=token or "", files=files)
            ended = self._insist(lambda: self._client.release(task.task_id, release))
        elif fault is None and not failed:
            success = SuccessReport(lease_token=token, files=files, idle=idle)
            ended = self._insist(lambda: self._client.succeed(task.task_id, success))
        else:
            failure = FailureReport(
                lease_token=token,
                files=files,
                unavailable=isinstance(fault, DestinationUnavailable),
                retry_later=not isinstance(fault, TaskRejected),
                code=fault.code if fault else None,
                message=str(fault) if fault else _summary(failed),
                idle=idle,
            )
            ended = self._insist(lambda: self._client.fail(task.task_id, failure))
        delivered = sum(o.outcome == Outcome.DELIVERED for o in outcomes.values())
        _log.info(
            "task %s: %s, %d of %d files delivered%s",
            task.task_id, ended.state, delivered, len(task.files or ()), f": {fault.code}" if fault else "",
        )  # fmt: skip

    def _insist(self, call: Callable[[], Task]) -> Task:
        """Make a report; while the service is away, again and again: what was delivered must be known."""
        pause = PAUSE[0]
        while True:
            try:
                return call()
            except ServiceUnavailable as error:
                if self._over.wait(pause):
                    raise
                _log.warning("%s; the report is made again", error)
            pause = min(pause * 2, PAUSE[1])

    def _end_all(self) -> None:
        """Wait for work in hand; give back what does not end in time."""
        deadline = self._clock.monotonic() + self._grace
        self._last_claim_answered()
        with self._lock:
            running = dict(self._held)
        for thread in running.values():
            thread.join(max(0.0, deadline - self._clock.monotonic()))
        self._over.set()
        for held, thread in running.items():
            if thread.is_alive():
                self._give_back(held)
        self._exporter.close()

    def _last_claim_answered(self) -> None:
        if self._stop.is_set():
            self._claimer.join(CLAIM_LIMIT)

    def _give_back(self, held: HeldTask) -> None:
        task = held.task
        try:
            files = held.end()
            self._client.release(
                task.task_id, Release(lease_token=task.lease_token or "", files=files)
            )
        except ClaraResultsError as error:
            _log.warning("task %s could not be given back: %s", task.task_id, error)
        else:
            _log.warning("task %s was given back with an instance unanswered", task.task_id)


def _summary(failed: list[FileOutcome]) -> str:
    """Return what became of files by codes: a URI, or a receiver's own words, may hold a patient's name."""
    codes = Counter(outcome.code or outcome.outcome for outcome in failed)
    listing = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
    return f"{len(failed)} of its files failed: {listing}"
