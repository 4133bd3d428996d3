"""Follow tasks to their end."""

from collections.abc import Sequence
from functools import partial

from clara_results.client import ResultsClient
from clara_results.domain.clock import Clock
from clara_results.domain.tasks import State
from clara_results.operator.data import destination
from clara_results.operator.progress import Progress
from clara_results.operator.submit import Persistence, Sleep
from clara_results.wire.tasks import Task

FIRST_INTERVAL = 0.5
LONGEST_INTERVAL = 2.0


def follow(
    tasks: list[Task],
    seconds: float,
    client: ResultsClient,
    persistence: Persistence,
    progress: Progress,
    clock: Clock,
    sleep: Sleep,
) -> None:
    """Ask for tasks until each has ended, or time runs out.

    Args:
        tasks: The tasks; brought up to date in place, so that they are when somebody ends this.
        seconds: For how long.
        client: Whom to ask.
        persistence: Waits out a service that is away.
        progress: Told how far the tasks are.
        clock: Measures the time.
        sleep: Waits between the questions.

    Raises:
        ServiceUnavailable: The service was away for too long.
    """
    deadline = clock.monotonic() + seconds
    interval = FIRST_INTERVAL
    while not all(task.state.finished for task in tasks):
        left = deadline - clock.monotonic()
        if left <= 0:
            break
        sleep(min(interval, left))
        interval = min(interval * 1.5, LONGEST_INTERVAL)
        for index, task in enumerate(tasks):
            if not task.state.finished:
                tasks[index] = persistence.call(partial(client.task, task.task_id))
        progress.step(_summary(tasks))


def shortfall(task: Task) -> str | None:
    """Return why a followed task was not delivered, or None if it was."""
    if task.state is State.SUCCEEDED:
        return None
    if task.superseded_by:
        reason = f"; task {task.superseded_by} with newer results has taken its place"
    elif task.last_error:
        reason = f": {task.last_error.message} ({task.last_error.code})"
    else:
        reason = ""
    state = f"is {task.state}" if task.state.finished else f"is still {task.state}"
    return f"task {task.task_id} for {destination(task.parameters) or 'no destination'} {state}{reason}"


def _summary(tasks: Sequence[Task]) -> str:
    ended = sum(task.state.finished for task in tasks)
    told = sum(task.counts.delivered + task.counts.skipped + task.counts.rejected for task in tasks)
    files = told + sum(task.counts.pending + task.counts.retry for task in tasks)
    return f"waiting: {ended} of {len(tasks)} tasks ended, {told} of {files} files told of"
