"""A small model of the queue: the HTTP contract and docs/reference/states.md, written a second time and plainly.

Each method judges one answer of the service: it raises an AssertionError if the answer is not what the contract says
of the model's present state, and else brings the model to where the service must be now. What the service may choose
(ids, tokens, the jitter of a back-off) is checked for its bounds and taken over from the answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

Json = dict[str, Any]
FIRST_DELAY = 10.0
LONGEST_DELAY = 80.0
GIVE_UP = 600.0
MAX_RETRIES = 2
UNAVAILABLE_LONGEST = 60.0
PROBE = 60.0
DEFAULT_LEASE = 3600
JITTER = 0.2
OPEN = {"pending", "retry"}
UNFINISHED = {"Pending", "InProgress"}
FINISHED = {"Succeeded", "Failed", "Canceled"}

STEPS: dict[str, tuple[set[str], set[str]]] = {
    "registered": (set(), {"Pending"}),
    "claimed": ({"Pending"}, {"InProgress"}),
    "succeeded": ({"InProgress"}, {"Succeeded"}),
    "retry": ({"InProgress"}, {"Pending"}),
    "unavailable": ({"InProgress"}, {"Pending"}),
    "released": ({"InProgress"}, {"Pending"}),
    "lease-expired": ({"InProgress"}, {"Pending", "Failed"}),
    "failed": ({"InProgress", "Pending"}, {"Failed"}),  # Pending: given up
    "retried": ({"Failed"}, {"Pending"}),
    "canceled": (UNFINISHED, {"Canceled"}),
}
"""What a history may hold: each event, the states that it may find a task in, and those it may leave it in."""
NOTES = {"superseded", "redelivered"}
"""Entries of a history that change no state."""


def check_history(task: Json) -> None:
    """Check a task by what it says of itself alone: its history leads to its state, its attempts agree with it."""
    where = f"task {task['taskId']}: {task['history']}"
    states: set[str] = set()
    for number, entry in enumerate(task["history"]):
        if entry["event"] in NOTES:
            continue
        before, after = STEPS[entry["event"]]
        assert states & before or (number == 0 and not before), where
        states = after
    assert task["state"] in states, f"{task['state']}: {where}"
    ends = {"succeeded", "failed", "retry", "unavailable", "released", "lease-expired", "canceled"}
    assert [attempt["attempt"] for attempt in task["attempts"]] == list(
        range(1, task["attempt"] + 1)
    )
    running = [attempt for attempt in task["attempts"] if attempt["endedAt"] is None]
    assert len(running) == (task["state"] == "InProgress"), where
    for attempt in task["attempts"]:
        of_it = [e["event"] for e in task["history"] if e["attempt"] == attempt["attempt"]]
        ended = [event for event in of_it if event in ends]
        assert of_it[0] == "claimed", where
        assert of_it.count("claimed") == 1, where
        if attempt["endedAt"] is None:
            assert (ended, attempt["result"]) == ([], None), where
        else:
            assert ended[0] == attempt["result"], where
            # given up or canceled while it waited for the next one
            assert set(ended[1:]) <= {"failed", "canceled"}, where


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the service."""

    status: int
    body: Any

    def expect(self, status: int, code: str | None = None) -> None:
        """Check the status, and a problem's code."""
        said = self.body.get("code") if isinstance(self.body, dict) else None
        assert (self.status, said) == (status, code), f"{(status, code)} expected, got {self}"


@dataclass(slots=True)
class Claim:
    """One attempt.

    Attributes:
        token: Its lease token.
        result: How it ended; None while it runs.
        instance: What its holder calls itself.
        by: Which report or what else ended it; None: nothing yet.
    """

    token: str
    instance: str | None
    result: str | None = None
    by: str | None = None


@dataclass(slots=True)
class ModelTask:
    """A task as it must be."""

    task_id: str
    agent: str
    job: str
    parameters: str | None
    destination: str
    priority: int
    max_retries: int
    turn: int
    number: int
    files: dict[str, str]
    due: datetime | None
    supersedes: str | None = None
    redelivery_of: str | None = None
    superseded_by: str | None = None
    state: str = "Pending"
    retries: int = 0
    lease_ends: datetime | None = None
    lease_seconds: int = 0
    unavailable_since: datetime | None = None
    unavailable_times: int = 0
    claims: list[Claim] = field(default_factory=list)
    history: list[str] = field(default_factory=lambda: ["registered"])

    @property
    def order(self) -> tuple[int, int, int]:
        """Its place among the tasks that are due."""
        return (-self.priority, self.turn, self.number)

    @property
    def token(self) -> str | None:
        """The token of the claim that runs, if any."""
        return self.claims[-1].token if self.state == "InProgress" else None

    @property
    def open(self) -> list[str]:
        """The files that are still to be sent."""
        return [uri for uri, outcome in self.files.items() if outcome in OPEN]

    def shown(self) -> Json:
        """Return what a listing must show of it."""
        outcomes = list(self.files.values())
        names = ("pending", "awaiting", "delivered", "skipped", "retry", "rejected")
        return {
            "taskId": self.task_id,
            "agent": self.agent,
            "jobId": self.job,
            "parameters": self.parameters,
            "priority": self.priority,
            "state": self.state,
            "retries": self.retries,
            "maxRetries": self.max_retries,
            "attempt": len(self.claims),
            "dueAt": self.due,
            "counts": {name: outcomes.count(name) for name in names},
            "supersedes": self.supersedes,
            "supersededBy": self.superseded_by,
            "redeliveryOf": self.redelivery_of,
        }


@dataclass(slots=True)
class ModelDestination:
    """A destination as it must be."""

    max_associations: int
    paused: bool = False
    down_since: datetime | None = None
    probe_at: datetime | None = None


@dataclass(slots=True)
class ModelRegistration:
    """A registration that was taken."""

    key: str | None
    body: Json
    task_ids: list[str]

    @property
    def scope(self) -> Json:
        """What a newer one must have in common with it to supersede it."""
        wanted = {name: self.body.get(name) for name in ("jobId", "operator", "data")}
        return wanted | {"agent": self.body["agent"].lower()}


def moment(text: str | None) -> datetime | None:
    """Read a time of an answer."""
    return None if text is None else datetime.fromisoformat(text)


def destination_of(element: Any) -> str:
    """Return the destination that an element of ``data`` names; empty: none."""
    return element.casefold() if isinstance(element, str) and element else ""


class Model:
    """What the service must be like.

    Attributes:
        now: The time.
        tasks: All tasks by id, in the order of registration.
        destinations: Those that are set up, by name in lower case.
        registrations: Those that were taken, in order.
        touched: Tasks that something was done to, for whoever empties it.
        tokens: Every lease token that was given out.
    """

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.tasks: dict[str, ModelTask] = {}
        self.destinations: dict[str, ModelDestination] = {}
        self.registrations: list[ModelRegistration] = []
        self.touched: set[str] = set()
        self.tokens: set[str] = set()
        self._turns: dict[str, int] = {}

    # Registration

    def registered(self, answer: Answer, key: str | None, body: Json) -> None:
        """Judge ``POST /api/tasks``."""
        known = next((r for r in self.registrations if key is not None and r.key == key), None)
        if known is not None:
            if known.body != body:
                answer.expect(409, "key-reused")
                return
            answer.expect(200)
            assert [task["taskId"] for task in answer.body["tasks"]] == known.task_ids
            return
        answer.expect(201)
        made = ModelRegistration(key, body, [task["taskId"] for task in answer.body["tasks"]])
        elements = body["data"] if body.get("data") is not None else [None]
        assert len(made.task_ids) == len(elements) == len(set(made.task_ids))
        agent = body["agent"].lower()
        turn = self._last_turn(agent, body["jobId"])
        older = [r for r in self.registrations if key and r.key and r.scope == made.scope]
        for element, (shown, value) in enumerate(zip(answer.body["tasks"], elements, strict=True)):
            task = self._add(
                shown,
                agent=agent,
                job=body["jobId"],
                destination=destination_of(value),
                priority=body.get("priority", 0),
                max_retries=body.get("maxRetries", MAX_RETRIES),
                turn=turn + 1 + element,
                files=body["uris"],
                due=max(self.now, moment(body.get("notBefore")) or self.now),
            )
            for registration in older:
                self._supersede(self.tasks[registration.task_ids[element]], task)
        self.registrations.append(made)

    def _add(self, shown: Json, *, files: Iterable[str], **values: Any) -> ModelTask:
        assert shown["taskId"] not in self.tasks
        task = ModelTask(
            task_id=shown["taskId"],
            parameters=shown["parameters"],
            number=len(self.tasks),
            files=dict.fromkeys(files, "pending"),
            **values,
        )
        self.tasks[task.task_id] = task
        self.touched.add(task.task_id)
        return task

    def _supersede(self, older: ModelTask, newer: ModelTask) -> None:
        if older.superseded_by is not None or older.state == "Succeeded":
            return
        older.superseded_by, newer.supersedes = newer.task_id, older.task_id
        older.history.append("superseded")
        self.touched.add(older.task_id)
        if older.state in UNFINISHED:
            self._cancel(older)

    def _last_turn(self, agent: str, job: str) -> int:
        of_job = [t.turn for t in self.tasks.values() if (t.agent, t.job) == (agent, job)]
        return max([0, self._turns.get(agent, 0), *of_job])

    # Claims

    def claimable(self, agent: str, size: int) -> list[ModelTask]:
        """Return the tasks that a claim must give, in order."""
        due = [
            t for t in self.tasks.values()
            if t.agent == agent and t.state == "Pending" and t.due is not None and t.due <= self.now
        ]  # fmt: skip
        taken: list[ModelTask] = []
        for task in sorted(due, key=lambda t: t.order):
            already = sum(t.destination == task.destination for t in taken)
            if len(taken) < size and self._room(task.destination) > already:
                taken.append(task)
        return taken

    def _room(self, name: str) -> float:
        destination = self.destinations.get(name)
        if destination is None:
            return float("inf")
        if destination.paused:
            return 0
        if destination.down_since is not None:
            assert destination.probe_at is not None
            return 1 if destination.probe_at <= self.now else 0
        return destination.max_associations - self.held(name)

    def held(self, name: str) -> int:
        """Return how many tasks for a destination are in progress."""
        return sum(t.destination == name and t.state == "InProgress" for t in self.tasks.values())

    def peeked(self, answer: Answer, agent: str, size: int) -> None:
        """Judge a claim that only looks."""
        answer.expect(200)
        wanted = self.claimable(agent, size)
        given = [t["taskId"] for t in answer.body]
        assert given == [t.task_id for t in wanted], (given, wanted)

    def claimed(
        self, answer: Answer, agent: str, size: int, lease: int | None, instance: str
    ) -> None:
        """Judge a claim."""
        answer.expect(200)
        wanted = self.claimable(agent, size)
        given = [t["taskId"] for t in answer.body]
        assert given == [t.task_id for t in wanted], (given, wanted)
        self._take(answer, lease, instance)

    def claimed_together(
        self, answers: Sequence[Answer], agent: str, sizes: Sequence[int], leases: Sequence[int]
    ) -> None:
        """Judge claims made at the same moment: no task in two hands, no limit passed, each in order."""
        for answer, size in zip(answers, sizes, strict=True):
            answer.expect(200)
            assert len(answer.body) <= size
        given = [task["taskId"] for answer in answers for task in answer.body]
        assert len(given) == len(set(given)), "a task is in two hands"
        rooms = {name: self._room(name) for name in self.destinations}
        due = {t.task_id: t for t in self.claimable(agent, len(self.tasks))}
        assert bool(given) == bool(due), f"{len(due)} tasks could be claimed, {len(given)} were"
        for answer, lease, number in zip(answers, leases, range(len(answers)), strict=True):
            tasks = [self.tasks[task["taskId"]] for task in answer.body]
            assert [t.order for t in tasks] == sorted(t.order for t in tasks)
            for task in tasks:
                assert task.agent == agent
                assert task.state == "Pending"
                assert task.due is not None
                assert task.due <= self.now
                if task.destination in rooms:
                    rooms[task.destination] -= 1
                    assert rooms[task.destination] >= 0, "more than the destination takes"
            self._take(answer, lease, f"i{number}")

    def _take(self, answer: Answer, lease: int | None, instance: str) -> None:
        seconds = DEFAULT_LEASE if lease is None else lease
        for shown in answer.body:
            task = self.tasks[shown["taskId"]]
            destination = self.destinations.get(task.destination)
            if destination is not None and destination.down_since is not None:
                destination.probe_at = self.now + timedelta(seconds=PROBE)
            task.files = {u: "pending" if o == "retry" else o for u, o in task.files.items()}
            task.state, task.due = "InProgress", None
            task.lease_seconds = seconds
            task.lease_ends = self.now + timedelta(seconds=seconds)
            task.claims.append(Claim(shown["leaseToken"], instance))
            task.history.append("claimed")
            self._turns[task.agent] = max(self._turns.get(task.agent, 0), task.turn)
            self.touched.add(task.task_id)
            assert shown["leaseToken"] not in self.tokens
            self.tokens.add(shown["leaseToken"])
            assert shown["uris"] == task.open, (shown, task)
            assert [file["uri"] for file in shown["files"]] == task.open
            assert moment(shown["leaseExpiresAt"]) == task.lease_ends
            assert (shown["state"], shown["attempt"]) == ("InProgress", len(task.claims))

    # Reports

    def renewed(
        self,
        answer: Answer,
        task_id: str,
        token: str,
        files: list[Json] | None,
        seconds: int | None,
    ) -> None:
        """Judge ``PUT /api/tasks/{taskId}/lease``."""
        task = self.tasks[task_id]
        if not self._held(answer, task, token, "renew"):
            return
        if not self._known(answer, task, files):
            return
        answer.expect(200)
        if self._tell(task, files):
            task.unavailable_since, task.unavailable_times = None, 0
            self._up(task.destination)
        task.lease_ends = self.now + timedelta(seconds=seconds or task.lease_seconds)
        assert moment(answer.body["leaseExpiresAt"]) == task.lease_ends

    def succeeded(
        self, answer: Answer, task_id: str, token: str | None, files: list[Json] | None
    ) -> None:
        """Judge ``PUT /api/tasks/success/{taskId}``."""
        task = self.tasks[task_id]
        if any(file["outcome"] not in {"delivered", "skipped"} for file in files or ()):
            answer.expect(422, "contradictory-report")
            return
        if not self._held(answer, task, token, "success"):
            return
        if not self._known(answer, task, files):
            return
        told = dict(task.files)
        answered = self._tell(task, files)
        if files is None:
            answered |= self._tell_rest(task, "delivered")
        elif "pending" in task.files.values():
            task.files = told
            answer.expect(409, "files-unaccounted")
            return
        answer.expect(200)
        self._settle(answer, task, "success", answered=answered)

    def failed(
        self, answer: Answer, task_id: str, token: str | None, files: list[Json] | None,
        *, retry_later: bool, unavailable: bool,
    ) -> None:  # fmt: skip
        """Judge ``PUT /api/tasks/failure/{taskId}``."""
        task = self.tasks[task_id]
        if not self._held(answer, task, token, "failure"):
            return
        if not self._known(answer, task, files):
            return
        answer.expect(200)
        answered = self._tell(task, files)
        if not unavailable:
            self._tell_rest(task, "retry" if retry_later else "rejected")
            self._settle(answer, task, "failure", answered=answered)
            return
        if answered:
            task.unavailable_since, task.unavailable_times = None, 0
        if task.open:
            self._wait(answer, task)
            return
        self._settle(answer, task, "failure", answered=False)
        if task.state != "Succeeded":
            self._down(task, None)
        elif answered:
            self._up(task.destination)
        else:
            self._unprobed(task)

    def _wait(self, answer: Answer, task: ModelTask) -> None:
        """The destination can't be reached: later, at the same retries; or no more."""
        task.unavailable_since = task.unavailable_since or self.now
        until = task.unavailable_since + timedelta(seconds=GIVE_UP)
        if self.now >= until:
            self._end(task, "Failed", "failed", "failure")
            self._down(task, None)
            return
        due = moment(answer.body["dueAt"])
        assert due is not None
        delay = min(FIRST_DELAY * 2**task.unavailable_times, UNAVAILABLE_LONGEST)
        assert due == until or self._spread(due, delay), f"due in {due - self.now}"
        assert due <= until
        since, times = task.unavailable_since, task.unavailable_times + 1
        self._end(task, "Pending", "unavailable", "failure", due=due)
        task.unavailable_since, task.unavailable_times = since, times
        self._down(task, due)

    def released(self, answer: Answer, task_id: str, token: str, files: list[Json] | None) -> None:
        """Judge ``PUT /api/tasks/{taskId}/release``."""
        task = self.tasks[task_id]
        if not self._held(answer, task, token, "release"):
            return
        if not self._known(answer, task, files):
            return
        answer.expect(200)
        answered = self._tell(task, files)
        if answered:
            task.unavailable_since, task.unavailable_times = None, 0
        if not task.open:
            self._settle(answer, task, "release", answered=answered)
            return
        since, times = task.unavailable_since, task.unavailable_times
        self._end(task, "Pending", "released", "release", due=self.now)
        task.unavailable_since, task.unavailable_times = since, times
        if answered:
            self._up(task.destination)

    def _held(self, answer: Answer, task: ModelTask, token: str | None, call: str) -> bool:
        """Say whether the caller holds the task; if not, check that nothing was done for it."""
        if task.state == "InProgress":
            if token in {None, task.token}:
                return True
        elif task.claims and token in {None, task.claims[-1].token}:
            last = task.claims[-1]
            if last.by == call or (call, last.result) == ("success", "succeeded"):
                answer.expect(200)  # what ended the attempt, once more
                assert answer.body["state"] == task.state, (answer, task)
                return False
        answer.expect(409, "lease-lost")
        return False

    def _known(self, answer: Answer, task: ModelTask, files: list[Json] | None) -> bool:
        if any(file["uri"] not in task.files for file in files or ()):
            answer.expect(422, "unknown-file")
            return False
        return True

    def _tell(self, task: ModelTask, files: list[Json] | None) -> bool:
        """Keep outcomes; say whether the receiver has answered for a file."""
        self.touched.add(task.task_id)
        for file in files or ():
            if task.files[file["uri"]] != "delivered":
                task.files[file["uri"]] = file["outcome"]
        return any(file["outcome"] in {"delivered", "rejected"} for file in files or ())

    def _tell_rest(self, task: ModelTask, outcome: str) -> bool:
        rest = [uri for uri, told in task.files.items() if told == "pending"]
        task.files |= dict.fromkeys(rest, outcome)
        return outcome == "delivered" and bool(rest)

    def _settle(self, answer: Answer | None, task: ModelTask, by: str, *, answered: bool) -> None:
        """Every file has an outcome."""
        outcomes = set(task.files.values())
        if "retry" in outcomes and task.retries < task.max_retries:
            due = moment(answer.body["dueAt"]) if answer is not None else None
            assert due is not None
            delay = min(FIRST_DELAY * 2**task.retries, LONGEST_DELAY)
            assert self._spread(due, delay), f"due in {due - self.now}"
            task.retries += 1
            self._end(task, "Pending", "retry", by, due=due)
        elif outcomes <= {"delivered", "skipped"} and "delivered" in outcomes:
            self._end(task, "Succeeded", "succeeded", by)
        else:
            self._end(task, "Failed", "lease-expired" if by == "rescue" else "failed", by)
        if answered:
            self._up(task.destination)

    def _spread(self, due: datetime, delay: float) -> bool:
        return (1 - JITTER) * delay - 0.001 <= (due - self.now).total_seconds() <= (1 + JITTER) * delay + 0.001  # fmt: skip

    def _end(
        self,
        task: ModelTask,
        state: str,
        event: str,
        by: str | None,
        *,
        due: datetime | None = None,
    ) -> None:
        """End what is: an attempt, or a wait."""
        if task.state == "InProgress":
            task.claims[-1].result, task.claims[-1].by = event, by
            if by in {"release", "rescue", "cancel"}:
                self._unprobed(task)
        task.state, task.due, task.lease_ends = state, due, None
        task.unavailable_since, task.unavailable_times = None, 0
        task.history.append(event)
        self.touched.add(task.task_id)

    # Time

    def rescued(self) -> None:
        """Every lease that has run out was noticed, and every wait that took too long."""
        for task in self.tasks.values():
            if task.lease_ends is not None and task.lease_ends <= self.now:
                if not task.open:
                    self._settle(None, task, "rescue", answered=False)
                elif task.retries >= task.max_retries:
                    self._end(task, "Failed", "lease-expired", "rescue")
                else:
                    task.retries += 1
                    self._end(task, "Pending", "lease-expired", "rescue", due=self.now)
        before = self.now - timedelta(seconds=GIVE_UP)
        for task in self.tasks.values():
            destination = self.destinations.get(task.destination)
            if (
                task.state == "Pending"
                and destination is not None
                and destination.down_since is not None
                and destination.down_since <= before
                and (task.unavailable_since or task.due or self.now) <= before
            ):
                self._end(task, "Failed", "failed", None)

    def _up(self, name: str) -> None:
        destination = self.destinations.get(name)
        if destination is None or destination.down_since is None:
            return
        destination.down_since = destination.probe_at = None
        for task in self.tasks.values():
            waits = task.state == "Pending" and task.unavailable_since is not None
            if task.destination == name and waits and task.due is not None:
                task.due = min(task.due, self.now)

    def _unprobed(self, task: ModelTask) -> None:
        """It ended without a word on whether its destination is up: the next one may try."""
        destination = self.destinations.get(task.destination)
        if destination is not None and destination.down_since is not None:
            destination.probe_at = self.now

    def _down(self, task: ModelTask, probe_at: datetime | None) -> None:
        destination = self.destinations.get(task.destination)
        if destination is not None:
            destination.down_since = destination.down_since or self.now
            destination.probe_at = probe_at or task.due or self.now + timedelta(seconds=PROBE)

    # People

    def retried(self, answer: Answer, task_id: str) -> None:
        """Judge ``POST /api/tasks/{taskId}/retry``."""
        task = self.tasks[task_id]
        if task.superseded_by is not None:
            answer.expect(409, "superseded")
        elif task.state != "Failed":
            answer.expect(409, "illegal-transition")
        else:
            answer.expect(200)
            self._retry(task)

    def _retry(self, task: ModelTask) -> None:
        reopened = {"retry", "rejected", "skipped"}
        task.files = {u: "pending" if o in reopened else o for u, o in task.files.items()}
        task.retries = 0
        self._end(task, "Pending", "retried", None, due=self.now)

    def retried_all(self, answer: Answer, which: Json) -> None:
        """Judge ``POST /api/tasks/retry``."""
        answer.expect(200)
        chosen = [
            t for t in self._matching(which) if t.state == "Failed" and t.superseded_by is None
        ]
        assert answer.body == {"changed": len(chosen)}
        for task in chosen:
            self._retry(task)

    def canceled(self, answer: Answer, task_id: str) -> None:
        """Judge ``POST /api/tasks/{taskId}/cancel``."""
        task = self.tasks[task_id]
        if task.state in {"Succeeded", "Failed"}:
            answer.expect(409, "illegal-transition")
            return
        answer.expect(200)
        if task.state != "Canceled":
            self._cancel(task)

    def _cancel(self, task: ModelTask) -> None:
        self._end(task, "Canceled", "canceled", "cancel")

    def canceled_all(self, answer: Answer, which: Json) -> None:
        """Judge ``POST /api/tasks/cancel``."""
        answer.expect(200)
        chosen = [t for t in self._matching(which) if t.state in UNFINISHED]
        assert answer.body == {"changed": len(chosen)}
        for task in chosen:
            self._cancel(task)

    def _matching(self, which: Json) -> list[ModelTask]:
        return [
            t for t in self.tasks.values()
            if t.job == which.get("jobId", t.job)
            and t.agent == which.get("agent", t.agent).lower()
            and t.destination == which.get("destination", t.destination).casefold()
            and t.task_id in which.get("taskIds", [t.task_id])
        ]  # fmt: skip

    def redelivered(self, answer: Answer, task_id: str, destination: str | None) -> None:
        """Judge ``POST /api/tasks/{taskId}/redeliver``."""
        task = self.tasks[task_id]
        if task.state not in FINISHED:
            answer.expect(409, "illegal-transition")
            return
        answer.expect(201)
        self._add(
            answer.body,
            agent=task.agent,
            job=task.job,
            destination=task.destination if destination is None else destination.casefold(),
            priority=task.priority,
            max_retries=task.max_retries,
            turn=self._last_turn(task.agent, task.job) + 1,
            files=task.files,
            due=self.now,
            redelivery_of=task.task_id,
        )
        task.history.append("redelivered")
        self.touched.add(task.task_id)

    # Destinations

    def put(self, answer: Answer, name: str, max_associations: int) -> None:
        """Judge ``PUT /api/destinations/{name}``."""
        if self._set_up(answer, name):
            self.destinations[name].max_associations = max_associations
            self._up(name)  # what was wrong may be mended

    def added(self, answer: Answer, name: str, max_associations: int) -> None:
        """Judge ``POST /api/destinations``."""
        if name in self.destinations:
            answer.expect(409, "destination-exists")
        else:
            answer.expect(201)
            self.destinations[name] = ModelDestination(max_associations)

    def removed(self, answer: Answer, name: str) -> None:
        """Judge ``DELETE /api/destinations/{name}``."""
        if self._set_up(answer, name, 204):
            del self.destinations[name]

    def paused(self, answer: Answer, name: str, *, paused: bool) -> None:
        """Judge ``POST /api/destinations/{name}/pause`` and ``/resume``."""
        if self._set_up(answer, name):
            self.destinations[name].paused = paused

    def _set_up(self, answer: Answer, name: str, status: int = 200) -> bool:
        if name not in self.destinations:
            answer.expect(404, "destination-not-found")
            return False
        answer.expect(status)
        return True

    # What is to be seen

    def check_listing(self, answer: Answer) -> None:
        """Check that all tasks are there, and no others, each as it must be."""
        answer.expect(200)
        assert answer.body["nextCursor"] is None
        wanted = [task.shown() for task in reversed(self.tasks.values())]
        seen = [
            {name: moment(item[name]) if name == "dueAt" else item[name] for name in task}
            for item, task in zip(answer.body["items"], wanted, strict=True)
        ]
        for task in (*seen, *wanted):
            if task["dueAt"] is not None:
                task["dueAt"] = max(task["dueAt"], self.now)  # since when does not matter
        for is_now, must_be in zip(seen, wanted, strict=True):
            different = {name: (is_now[name], must_be[name]) for name in must_be if is_now[name] != must_be[name]}  # fmt: skip
            assert not different, f"task {must_be['taskId']} (is, must be): {different}"

    def check_destinations(self, answer: Answer) -> None:
        """Check that the destinations stand as they must."""
        answer.expect(200)
        assert {item["name"].casefold() for item in answer.body["items"]} == set(self.destinations)
        for item in answer.body["items"]:
            name = item["name"].casefold()
            destination = self.destinations[name]
            waiting = [t for t in self.tasks.values() if t.destination == name and t.state == "Pending"]  # fmt: skip
            must_be = {
                "maxAssociations": destination.max_associations,
                "paused": destination.paused,
                "downSince": destination.down_since,
                "probeAt": destination.probe_at,
                "pending": len(waiting),
                "inProgress": self.held(name),
            }
            is_now = {
                "maxAssociations": item["maxAssociations"],
                "paused": item["pausedAt"] is not None,
                "downSince": moment(item["downSince"]),
                "probeAt": moment(item["probeAt"]),
                "pending": item["pending"],
                "inProgress": item["inProgress"],
            }
            assert is_now == must_be, (name, is_now, must_be)

    def check_task(self, answer: Answer, files: Answer) -> None:
        """Check one task with all that is kept of it."""
        answer.expect(200)
        files.expect(200)
        task = self.tasks[answer.body["taskId"]]
        events = [entry["event"] for entry in answer.body["history"]]
        assert events == task.history, (events, task.history)
        kept = [(entry["instance"], entry["result"]) for entry in answer.body["attempts"]]
        claims = [(claim.instance, claim.result) for claim in task.claims]
        assert kept == claims, (kept, claims)
        told = {file["uri"]: file["outcome"] for file in files.body["items"]}
        assert told == task.files, (told, task.files)
        check_history(answer.body)
