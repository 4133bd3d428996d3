"""Waiting out a service that is away; reading what was digested; following tasks; what stderr shows."""

import hashlib
import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from clara_results.domain.tasks import State
from clara_results.errors import Refused, ServiceUnavailable, UnreadableInput
from clara_results.operator.follow import follow, shortfall
from clara_results.operator.parallel import WORKERS, in_parallel
from clara_results.operator.progress import Progress
from clara_results.operator.submit import DigestedFile, Persistence
from clara_results.wire.tasks import FileCounts, Task, TaskError

if TYPE_CHECKING:
    from clara_results.client import ResultsClient

MOMENT = datetime(2026, 11, 22, tzinfo=UTC)


class Time:
    """A clock that goes on only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        raise AssertionError("nobody asks for the time of day")

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def persistence(timeout: float, time: Time, stream: io.StringIO | None = None) -> Persistence:
    return Persistence(timeout, Progress(stream, time, quiet=False), time, time.sleep)


def failing(times: int, time: Time | None = None, takes: float = 0.0) -> Callable[[], str]:
    """Give an action that fails so many times."""
    left = [times]

    def action() -> str:
        if time:
            time.seconds += takes
        left[0] -= 1
        if left[0] >= 0:
            raise ServiceUnavailable("the service is away")
        return "done"

    return action


def test_back_off_doubles_up_to_ten_seconds_and_each_try_is_told() -> None:
    time, said = Time(), io.StringIO()
    assert persistence(1000, time, said).call(failing(8)) == "done"
    for delay, plain in zip(time.slept, [0.5, 1, 2, 4, 8, 10, 10, 10], strict=True):
        assert plain * 0.8 <= delay <= plain * 1.2
    assert said.getvalue().count("the service is away; trying again in") == 8


def test_the_timeout_is_kept_to_the_second_with_a_last_try_at_its_end() -> None:
    time = Time()
    with pytest.raises(ServiceUnavailable, match=r"Tried \d+ times in 20 s") as raised:
        persistence(20, time).call(failing(1000))
    assert time.seconds == pytest.approx(20)
    assert raised.value.exit_code == 4


def test_a_timeout_of_zero_is_one_try() -> None:
    time = Time()
    with pytest.raises(ServiceUnavailable, match="Tried 1 time in 0 s"):
        persistence(0, time).call(failing(1))
    assert time.slept == []


def test_the_first_try_of_an_upload_takes_its_time() -> None:
    time = Time()
    assert persistence(20, time).call(failing(1, time, takes=300), upload=True) == "done"
    with pytest.raises(ServiceUnavailable):
        persistence(20, time).call(failing(1, time, takes=300))


def test_other_refusals_are_not_repeated() -> None:
    time = Time()

    def action() -> None:
        raise Refused("no", code="forbidden", status=403)

    with pytest.raises(Refused):
        persistence(20, time).call(action)
    assert time.slept == []


def test_a_file_as_digested_is_read_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "a").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    with DigestedFile(str(tmp_path / "a"), len(content), sha256) as file:
        assert b"".join(iter(lambda: file.read(16384), b"")) == content
    with DigestedFile(str(tmp_path / "a"), len(content), sha256) as file:
        assert file.read() == content


@pytest.mark.parametrize("now", [b"", b"1234", b"123456", b"1234x", b"x2345"])
def test_the_last_bytes_of_a_changed_file_are_never_given(tmp_path: Path, now: bytes) -> None:
    (tmp_path / "a").write_bytes(now)
    with DigestedFile(str(tmp_path / "a"), 5, hashlib.sha256(b"12345").hexdigest()) as file:
        given = []
        with pytest.raises(UnreadableInput, match="a' changed while it was read"):  # noqa: PT012
            while True:
                given.append(file.read(2))
    assert len(b"".join(given)) < 5


def test_an_empty_file_that_grew(tmp_path: Path) -> None:
    empty = hashlib.sha256().hexdigest()
    (tmp_path / "a").touch()
    with DigestedFile(str(tmp_path / "a"), 0, empty) as file:
        assert file.read(10) == b""
    (tmp_path / "a").write_text("1")
    with (
        DigestedFile(str(tmp_path / "a"), 0, empty) as file,
        pytest.raises(UnreadableInput, match="changed"),
    ):
        file.read(10)


def test_files_that_can_no_more_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(UnreadableInput, match="can't be read"):
            DigestedFile(str(path), 1, "")


def test_things_at_once_come_with_their_index() -> None:
    assert sorted(in_parallel(lambda x: x * x, range(100))) == [(x, x * x) for x in range(100)]
    assert list(in_parallel(str, [])) == []


def test_the_first_failure_ends_it() -> None:
    begun = []

    def action(number: int) -> None:
        begun.append(number)
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"\d"):
        list(in_parallel(action, range(1000)))
    assert len(begun) <= WORKERS


def task(state: State, number: int = 1, **more: object) -> Task:
    fixed = {
        "task_id": f"task{number}",
        "job_id": "j",
        "pipeline_id": "p",
        "payload_id": "q",
        "parameters": '"Orthanc"',
        "agent": "clarascu",
        "retries": 0,
        "created_at": MOMENT,
        "updated_at": MOMENT,
        "max_retries": 3,
    }
    return Task(state=state, **(fixed | more))  # type: ignore[arg-type]


class Asked:
    """Stands in for a client: each task's answers in their order, the last one for ever."""

    def __init__(self, answers: dict[str, list[Task]]) -> None:
        self._answers = answers
        self.calls: list[str] = []

    def task(self, task_id: str) -> Task:
        self.calls.append(task_id)
        answers = self._answers[task_id]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def followed(asked: Asked, seconds: float, time: Time, stream: io.StringIO, *tasks: Task) -> list[Task]:  # fmt: skip
    progress = Progress(stream, time, quiet=False)
    given = list(tasks)
    follow(
        given,
        seconds,
        cast("ResultsClient", asked),
        Persistence(5, progress, time, time.sleep),
        progress,
        time,
        time.sleep,
    )
    return given


def test_following_asks_only_for_what_has_not_ended() -> None:
    time, said = Time(), Terminal()
    asked = Asked(
        {
            "task1": [task(State.IN_PROGRESS), task(State.SUCCEEDED)],
            "task2": [
                task(State.SUCCEEDED, 2, counts=FileCounts(delivered=2)),
            ],
        }
    )
    ended = followed(
        asked, 60, time, said, task(State.PENDING), task(State.PENDING, 2), task(State.FAILED, 3)
    )
    assert [each.state for each in ended] == [State.SUCCEEDED, State.SUCCEEDED, State.FAILED]
    assert asked.calls == ["task1", "task2", "task1"]
    assert time.slept == [0.5, 0.75]
    assert "waiting: 2 of 3 tasks ended, 2 of 2 files told of" in said.getvalue()


def test_following_ends_with_its_time() -> None:
    time = Time()
    asked = Asked({"task1": [task(State.PENDING)]})
    (ended,) = followed(asked, 20, time, io.StringIO(), task(State.PENDING))
    assert ended.state is State.PENDING
    assert time.seconds == pytest.approx(20)
    assert max(time.slept) == 2.0


def test_why_a_task_was_not_delivered() -> None:
    assert shortfall(task(State.SUCCEEDED)) is None
    assert shortfall(task(State.PENDING, parameters=None)) == (
        "task task1 for no destination is still Pending"
    )
    failed = task(State.FAILED, last_error=TaskError(code="no-destination", message="no such"))
    assert shortfall(failed) == 'task task1 for "Orthanc" is Failed: no such (no-destination)'
    superseded = task(State.CANCELED, superseded_by="task9")
    assert shortfall(superseded) == (
        'task task1 for "Orthanc" is Canceled; task task9 with newer results has taken its place'
    )


def test_progress_on_a_terminal_is_one_line_that_goes_away() -> None:
    time, said = Time(), Terminal()
    progress = Progress(said, time, quiet=False)
    for number in range(3):
        time.seconds += 0.2
        progress.step(f"step {number}")
        progress.step("too soon")
    progress.note("note")
    progress.close()
    assert said.getvalue() == "\rstep 0\x1b[K\rstep 1\x1b[K\rstep 2\x1b[K\r\x1b[Knote\n"


def test_progress_elsewhere_is_a_line_now_and_then() -> None:
    time, said = Time(), io.StringIO()
    progress = Progress(said, time, quiet=False)
    for number in range(25):
        time.seconds += 1
        progress.step(f"step {number}")
    progress.close()
    assert said.getvalue() == "step 9\nstep 19\n"


def test_quiet_keeps_warnings() -> None:
    time, said = Time(), Terminal()
    progress = Progress(said, time, quiet=True)
    time.seconds += 100
    progress.step("step")
    progress.note("note")
    progress.warn("warning")
    assert said.getvalue() == "warning\n"


def test_a_closed_stderr_is_no_reason_to_fail() -> None:
    progress = Progress(None, Time(), quiet=False)
    progress.warn("nobody hears")
