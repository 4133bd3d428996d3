"""Anything that callers, time and restarts may do to the queue, in any order, against a small model of it.

``make test`` looks at some walks on each kind of database, ``make prove`` at many for minutes, each time at others.
A failure prints the shortest walk that shows it; ``PROVE_SEED`` repeats a long run that failed.
"""

import asyncio
import copy
import itertools
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, reject, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from clara_results.service import engine as engine_module
from clara_results.settings import Settings
from clara_results.store.database import open_database
from clara_results.store.migrations import migrate
from tests.integration.conftest import FakeClock
from tests.support import queue_model
from tests.support.in_process import InProcessService
from tests.support.queue_model import Answer, Json, Model

if TYPE_CHECKING:
    from tests.conftest import Postgres

WALKS = {1: 12, 2: 6}
"""How many walks, by the number of replicas: some twenty seconds."""
PROVE_FOR = 240.0
"""Seconds of the long proof, for each kind of database."""
AGENTS = ("Alpha", "beta")
NAMES = ("pacs", "ris", "archive")
"""Destinations that are set up, at times; the elements below name them in other ways, too."""
FILES = ("f0", "f1", "f2")
ELEMENTS: tuple[Any, ...] = ("pacs", "PACS", "pacs", "Ris", "nowhere", 7)
T = TypeVar("T")
Request = tuple[Any, ...]
"""Method, path, and if need be body and headers."""


class Bench:
    """Where the machines work: one replica of the service on SQLite, two on PostgreSQL.

    Each walk begins with an empty database, which is copied from one that was made beforehand.
    """

    def __init__(self, folder: Path, postgres: "Postgres | None") -> None:
        self._folder = folder
        self._postgres = postgres
        self._runner = asyncio.Runner()
        self.services = [InProcessService() for _ in range(1 if postgres is None else 2)]
        self.calls = self.walks = self.silent = 0
        self.events: Counter[str] = Counter()
        self._url = self._template = self._new_template()
        self.clock = FakeClock()
        for name in FILES:  # to be sent again, they must be there
            path = folder / "payloads" / "y" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")

    def _new_template(self) -> str:
        if self._postgres is None:
            url = f"sqlite:///{self._folder / 'template.db'}"
        else:
            url = self._postgres.new_database()
        database = open_database(url)
        migrate(database.engine)
        database.close()
        return url

    def begin(self) -> None:
        """Start the service on an empty database."""
        self.walks += 1
        self.clock = FakeClock()
        if self._postgres is None:
            path = self._folder / f"walk-{self.walks}.db"
            shutil.copyfile(self._template.removeprefix("sqlite:///"), path)
            self._url = f"sqlite:///{path}"
        else:
            template = self._template.rpartition("/")[2]
            name = f"{template}_walk_{self.walks}"
            self._run_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
            self._url = self._template.rpartition("/")[0] + "/" + name
        self.start()

    def start(self) -> None:
        """Start all replicas."""
        using = Settings(
            data=self._folder,
            database=self._url,
            retry_delay=queue_model.FIRST_DELAY,
            retry_delay_max=queue_model.LONGEST_DELAY,
            give_up=queue_model.GIVE_UP,
            max_retries=queue_model.MAX_RETRIES,
            retention=0,
            retention_failed=0,
            keep_tasks=0,
        )
        for service in self.services:
            self._runner.run(service.open(using, self.clock))

    def stop(self) -> None:
        """Stop all replicas."""
        for service in self.services:
            service.close()

    def end(self) -> None:
        """Stop the service and throw its database away."""
        self.stop()
        if self._postgres is None:
            for path in self._folder.glob(f"walk-{self.walks}.db*"):
                path.unlink()
        else:
            self._run_sql(f"DROP DATABASE {self._url.rpartition('/')[2]} WITH (FORCE)")

    def close(self) -> None:
        """End for good."""
        self.stop()
        self._runner.close()

    def together(self, *running: Awaitable[T]) -> list[T]:
        """Wait for all that runs."""

        async def gathered() -> list[T]:
            return await asyncio.gather(*running)

        return self._runner.run(gathered())

    def send(self, requests: Sequence[Request], replica: int = 0) -> list[Answer]:
        """Send requests at the same moment, to the replicas in turn."""
        self.calls += len(requests)
        services = itertools.islice(itertools.cycle(self.services), replica, None)
        answers = self.together(*[next(services).call(*request) for request in requests])
        if any(answer.status == 503 for answer in answers):
            self.silent += 1
            reject()  # the machine is so busy that the database fell silent: nobody knows what was done
        return answers

    def _run_sql(self, statement: str) -> None:
        assert self._postgres is not None
        with psycopg.connect(self._postgres.url, autocommit=True) as connection:
            connection.execute(statement)


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and what judges its answer."""

    method: str
    path: str
    judge: Callable[[Model, Answer], None]
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def request(self) -> "Request":
        """What is sent."""
        return (self.method, self.path, self.body, self.headers)


@dataclass(frozen=True, slots=True)
class Seen:
    """The service as it shows itself."""

    tasks: Answer
    destinations: Answer
    closely: list[tuple[Answer, Answer]]

    def check(self, model: Model) -> None:
        """Check that it is as a model is."""
        model.check_listing(self.tasks)
        model.check_destinations(self.destinations)
        for task, files in self.closely:
            model.check_task(task, files)


# What callers may say. Nothing here depends on the service's state, so that a walk can be repeated and shortened:
# tasks are picked by number, counted from the newest.

picks = st.integers(0, 15)
replicas = st.integers(0, 1)
sizes = st.sampled_from([1, 1, 2, 3, 10])
leases = st.sampled_from([5, 20, 60, 300])
tokens = st.sampled_from(["own", "own", "own", "own", "older", "another's", "none"])
outcomes = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["delivered", "delivered", "skipped", "retry", "rejected"]),
    ),
    max_size=3,
)
maybe_outcomes = st.none() | outcomes
registrations = st.fixed_dictionaries(
    {
        "agent": st.sampled_from(AGENTS),
        "jobId": st.sampled_from(["j1", "j2", "j3", "j4"]),
        "data": st.sampled_from([True] * 5 + [False]).flatmap(
            lambda some: (
                st.lists(st.sampled_from(ELEMENTS), min_size=1, max_size=3) if some else st.none()
            )
        ),
        "files": st.integers(1, 3),
        "priority": st.sampled_from([0, 0, 0, 5, -5]),
        "notBefore": st.sampled_from([None, None, None, -10, 30]),
        "maxRetries": st.sampled_from([None, None, None, 0, 1]),
    }
)
reports = st.fixed_dictionaries(
    {
        "call": st.sampled_from(
            [
                "success",
                "success",
                "failure",
                "failure",
                "unavailable",
                "unavailable",
                "release",
                "renew",
                "renew",
                "cancel",
                "retry",
            ]
        ),
        "pick": picks,
        "held": st.sampled_from([True, True, True, False]),
        "token": tokens,
        "files": maybe_outcomes,
        "slip": st.sampled_from(
            [None] * 8 + ["a file of another task", "a failure in a report of success"]
        ),
        "retry_later": st.booleans(),
        "seconds": st.none() | leases,
    }
)


STEPS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "register": (3, {
        "replica": replicas,
        "what": registrations,
        "how": st.sampled_from(["keyed", "keyed", "twice", "newer", "without a key"]),
    }),
    "register_again": (1, {
        "replica": replicas,
        "pick": picks,
        "how": st.sampled_from(["same", "same", "same", "changed", "newer", "newer"]),
        "count": st.integers(1, 3),
    }),
    "work": (6, {
        "replica": replicas,
        "agent": st.sampled_from(AGENTS),
        "size": sizes,
        "lease": st.none() | leases,
        "whats": st.lists(reports, max_size=4),
    }),
    "claim_together": (1, {
        "agent": st.sampled_from(AGENTS),
        "wanted": st.lists(st.tuples(sizes, leases), min_size=2, max_size=4),
    }),
    "report": (3, {
        "replica": replicas,
        "whats": st.lists(reports, min_size=1, max_size=3),
        "repeat": st.sampled_from([None, None, 0, 1]),
    }),
    "report_together": (2, {"pick": picks, "wanted": st.lists(reports, min_size=2, max_size=3)}),
    "mend": (2, {
        "replica": replicas,
        "pick": picks,
        "to": st.sampled_from([None, *NAMES, "nowhere"]),
        "what": st.sampled_from(["redeliver", "redeliver", "redeliver", "retry", "cancel"]),
        "by": st.sampled_from(["taskIds", "taskIds", "jobId", "destination", "agent"]),
    }),
    "change_destination": (1, {
        "replica": replicas,
        "name": st.sampled_from(NAMES),
        "limit": st.integers(1, 3),
        "what": st.sampled_from(["pause", "resume", "resume", "put", "add", "add", "remove"]),
    }),
    "time_passes": (3, {
        "seconds": st.sampled_from([0.001, 4, 11, 25, 25, 61, 301, 601]),
        "noticed": st.sampled_from([True, True, True, False]),
        "restart": st.sampled_from([False] * 5 + [True]),
    }),
}  # fmt: skip
"""What may happen: how often in proportion, and with what."""
steps = st.sampled_from(
    [name for name, (weight, _) in STEPS.items() for _ in range(weight)]
).flatmap(lambda name: st.tuples(st.just(name), st.fixed_dictionaries(STEPS[name][1])))


class QueueMachine(RuleBasedStateMachine):
    """Walks through what may happen; after every step the service must be as the model is."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.bench.begin()
        self.model = Model(self.bench.clock.now())
        self.silent_before = bench.silent
        self.keys = 0
        self.without: set[str] = set()

    def teardown(self) -> None:
        self.bench.events.update(e for task in self.model.tasks.values() for e in task.history)
        try:
            if self.bench.silent == self.silent_before:
                self.seen(set(self.model.tasks)).check(self.model)
        finally:
            self.bench.end()

    @initialize(
        limit=st.integers(1, 3),
        first=st.lists(registrations, min_size=1, max_size=4),
        without=st.sets(
            st.sampled_from(["report", "report_together", "mend", "change_destination"])
        ),
    )
    def set_up(self, limit: int, first: list[Json], without: set[str]) -> None:
        """Begin with some tasks; some walks never see some kinds of steps."""
        self.without = without
        for name in NAMES:
            self.do(0, self.addition(name, limit))
        for what in first:
            self.do(0, self.registration(self.new_key(), self.body(what)))

    @rule(step=steps)
    def step(self, step: tuple[str, Json]) -> None:
        name, how = step
        if name not in self.without:
            getattr(self, name)(**how)

    # Steps

    def register(self, replica: int, what: Json, how: str) -> None:
        """Twice: at the same moment, as where a connection was cut and the call made again; newer: with another key."""
        key = None if how == "without a key" else self.new_key()
        call = self.registration(key, self.body(what))
        if how == "twice":
            self.do_together([call, call])
        elif how == "newer":
            self.do_together([call, self.registration(self.new_key(), self.body(what))])
        else:
            self.do(replica, call)

    def register_again(self, replica: int, pick: int, how: str, count: int) -> None:
        known = self.model.registrations
        if not known:
            return
        chosen = known[-1 - pick % len(known)]
        if how == "newer":
            body = chosen.body | {"uris": list(FILES[-count:])}
            self.do(replica, self.registration(self.new_key(), body))
        elif chosen.key is not None:
            body = chosen.body | ({"operator": "another"} if how == "changed" else {})
            self.do(replica, self.registration(chosen.key, body))

    def claim_together(self, agent: str, wanted: list[tuple[int, int]]) -> None:
        calls = [self.claiming(agent, *one, instance=f"i{number}") for number, one in enumerate(wanted)]  # fmt: skip
        answers = self.bench.send([call.request for call in calls])
        self.model.claimed_together(
            answers, agent.lower(), [size for size, _ in wanted], [lease for _, lease in wanted]
        )

    def work(
        self, replica: int, agent: str, size: int, lease: int | None, whats: list[Json]
    ) -> None:
        """As an agent does: look, claim, and tell of what it claimed."""
        path = f"/api/tasks/{agent}/pending?peek=true&size={size}"
        self.do(replica, Call("GET", path, lambda m, a: m.peeked(a, agent.lower(), size)))
        self.do(replica, self.claiming(agent, size, lease))
        for number, what in enumerate(whats):
            self.tell(replica, what | {"pick": number, "held": True, "token": "own"})

    def report(self, replica: int, whats: list[Json], repeat: int | None) -> None:
        """Anyone tells anything of any task, once or twice."""
        for what in whats:
            call = self.tell(replica, what)
            if call is not None and repeat is not None:
                self.do(repeat, call)

    def report_together(self, pick: int, wanted: list[Json]) -> None:
        """Several speak of one task at the same moment: as if one after the other, in whatever order."""
        task_id = self.picked(pick, "InProgress")
        calls = [self.reporting(what, task_id) for what in wanted]
        self.do_together([call for call in calls if call is not None])

    def mend(self, replica: int, pick: int, what: str, to: str | None, by: str) -> None:
        """A person sends tasks again, or cancels or retries many."""
        task_id = self.picked(pick, {"redeliver": "Succeeded", "retry": "Failed"}.get(what))
        if task_id is None:
            return
        task = self.model.tasks[task_id]
        values = {"jobId": task.job, "agent": task.agent, "destination": task.destination, "taskIds": [task_id]}  # fmt: skip
        which = {by: values[by]}
        calls = {
            "redeliver": Call("POST", f"/api/tasks/{task_id}/redeliver",
                              lambda m, a: m.redelivered(a, task_id, to), {"destination": to}),
            "cancel": Call("POST", "/api/tasks/cancel", lambda m, a: m.canceled_all(a, which), which),
            "retry": Call("POST", "/api/tasks/retry", lambda m, a: m.retried_all(a, which), which),
        }  # fmt: skip
        self.do(replica, calls[what])

    def change_destination(self, replica: int, name: str, what: str, limit: int) -> None:
        path = f"/api/destinations/{name}"
        calls = {
            "pause": Call("POST", path + "/pause", lambda m, a: m.paused(a, name, paused=True)),
            "resume": Call("POST", path + "/resume", lambda m, a: m.paused(a, name, paused=False)),
            "put": Call(
                "PUT", path, lambda m, a: m.put(a, name, limit), self.destination(name, limit)
            ),
            "add": self.addition(name, limit),
            "remove": Call("DELETE", path, lambda m, a: m.removed(a, name)),
        }
        self.do(replica, calls[what])

    def time_passes(self, seconds: float, noticed: bool, restart: bool) -> None:
        """And, but for a moment, all replicas look for leases that ran out, at the same time."""
        if restart:
            self.bench.stop()
        self.bench.clock.advance(seconds)
        self.model.now = self.bench.clock.now()
        if restart:
            self.bench.start()
        if noticed:
            self.bench.together(*[service.rescue() for service in self.bench.services])
            self.model.rescued()

    # What must be so after each

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        """Files, attempts and histories are kept: they are looked at in the end."""
        self.seen().check(self.model)

    def seen(self, closely: Iterable[str] = ()) -> Seen:
        """Look at all tasks and destinations, and closely at some tasks."""
        paths = ["/api/tasks?limit=1000", "/api/destinations"]
        for task_id in closely:
            paths += [f"/api/tasks/{task_id}", f"/api/tasks/{task_id}/files"]
        answers = self.bench.send([("GET", path) for path in paths])
        return Seen(answers[0], answers[1], list(zip(answers[2::2], answers[3::2], strict=True)))

    # How steps are done

    def do(self, replica: int, call: Call) -> None:
        (answer,) = self.bench.send([call.request], replica)
        call.judge(self.model, answer)

    def tell(self, replica: int, what: Json) -> Call | None:
        call = self.reporting(what)
        if call is not None:
            self.do(replica, call)
        return call

    def do_together(self, calls: list[Call]) -> None:
        """Make calls at the same moment; some order must explain all answers, and what the service is like now."""
        answers = self.bench.send([call.request for call in calls])
        self.model.touched.clear()
        explained, faults = [], []
        for order in itertools.permutations(zip(calls, answers, strict=True)):
            model = copy.deepcopy(self.model)
            try:
                for call, answer in order:
                    call.judge(model, answer)
            except AssertionError as fault:
                faults.append(fault)
            else:
                explained.append(model)
        seen = self.seen(set().union(*(model.touched for model in explained)))
        for model in explained:
            try:
                seen.check(model)
            except AssertionError as fault:
                faults.append(fault)
            else:
                self.model = model
                return
        raise AssertionError(f"no order explains {answers}: {faults}")

    def new_key(self) -> str:
        self.keys += 1
        return f"key-{self.keys}"

    def picked(self, pick: int, wanted: str | None) -> str | None:
        """Pick a task, counted from the newest: of those that are in a state, if there are some; None: of all."""
        tasks = list(self.model.tasks.values())
        chosen = [task for task in tasks if task.state == wanted] or tasks
        return chosen[-1 - pick % len(chosen)].task_id if chosen else None

    def body(self, what: Json) -> Json:
        body = {name: what[name] for name in ("agent", "jobId", "data", "priority", "maxRetries")}
        body |= {"pipelineId": "p", "payloadId": "y", "uris": list(FILES[: what["files"]])}
        if what["notBefore"] is not None:
            body["notBefore"] = (self.model.now + timedelta(seconds=what["notBefore"])).isoformat()
        return {name: value for name, value in body.items() if value is not None}

    def registration(self, key: str | None, body: Json) -> Call:
        headers = () if key is None else (("Idempotency-Key", key),)
        judge = lambda m, a: m.registered(a, key, body)  # noqa: E731
        return Call("POST", "/api/tasks", judge, body, headers)

    def claiming(self, agent: str, size: int, lease: int | None, instance: str = "i0") -> Call:
        path = f"/api/tasks/{agent}/pending?size={size}" + (
            "" if lease is None else f"&lease={lease}"
        )
        judge = lambda m, a: m.claimed(a, agent.lower(), size, lease, instance)  # noqa: E731
        return Call("GET", path, judge, headers=(("Clara-Results-Instance", instance),))

    def addition(self, name: str, limit: int) -> Call:
        body = self.destination(name, limit)
        return Call("POST", "/api/destinations", lambda m, a: m.added(a, name, limit), body)

    @staticmethod
    def destination(name: str, limit: int) -> Json:
        return {
            "name": name.upper(),
            "aeTitle": "X",
            "host": "h",
            "port": 104,
            "maxAssociations": limit,
        }

    def reporting(self, what: Json, task_id: str | None = None) -> Call | None:
        if task_id is None:
            wanted = "Failed" if what["call"] == "retry" else "InProgress"
            task_id = self.picked(what["pick"], wanted if what["held"] else None)
        if task_id is None:
            return None
        by_person = {
            "cancel": lambda m, a: m.canceled(a, task_id),
            "retry": lambda m, a: m.retried(a, task_id),
        }
        if what["call"] in by_person:
            path = f"/api/tasks/{task_id}/{what['call']}"
            return Call("POST", path, by_person[what["call"]])
        return self.agents_report(what, task_id)

    def agents_report(self, what: Json, task_id: str) -> Call:
        token = self.token(what["token"], task_id)
        files = self.told(what, task_id)
        body: Json = {"leaseToken": token, "files": files}
        if what["call"] == "success":
            path, judge = "success/{}", lambda m, a: m.succeeded(a, task_id, token, files)
        elif what["call"] in {"failure", "unavailable"}:
            how = {"retry_later": what["retry_later"], "unavailable": what["call"] == "unavailable"}
            body |= {"RetryLater": how["retry_later"], "unavailable": how["unavailable"]}
            path, judge = "failure/{}", lambda m, a: m.failed(a, task_id, token, files, **how)
        elif what["call"] == "release":
            body["leaseToken"] = token = token or "x"
            path, judge = "{}/release", lambda m, a: m.released(a, task_id, token, files)
        else:
            body |= {"leaseToken": token or "x", "seconds": what["seconds"]}
            token = token or "x"
            path, judge = (
                "{}/lease",
                lambda m, a: m.renewed(a, task_id, token, files, what["seconds"]),
            )
        return Call("PUT", "/api/tasks/" + path.format(task_id), judge, body)

    def token(self, kind: str, task_id: str) -> str | None:
        claims = self.model.tasks[task_id].claims
        if kind == "none":
            return None
        if kind == "own" and claims:
            return claims[-1].token
        if kind == "older" and len(claims) > 1:
            return claims[-2].token
        others = [t.token for t in self.model.tasks.values() if t.task_id != task_id and t.token]
        return others[0] if others else "made-up"

    def told(self, what: Json, task_id: str) -> list[Json] | None:
        if what["files"] is None:
            return None
        uris = list(self.model.tasks[task_id].files)
        told: dict[str, str] = {}
        for number, outcome in what["files"]:
            if what["call"] == "success" and what["slip"] is None and outcome != "skipped":
                outcome = "delivered"  # noqa: PLW2901
            uri = uris[number % len(uris)]
            told[uri] = "delivered" if told.get(uri) == "delivered" else outcome
        if what["slip"] == "a file of another task":
            told["stranger"] = "delivered"
        return [{"uri": uri, "outcome": outcome} for uri, outcome in told.items()]


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """Give a bench on SQLite or PostgreSQL; leases are looked at when a machine says so."""
    monkeypatch.setattr(engine_module, "RESCUE_EVERY", 3600.0)
    postgres = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    bench = Bench(tmp_path, postgres)
    yield bench
    bench.close()


each_database = pytest.mark.parametrize("bench", ["sqlite", "postgresql"], indirect=True)


def walk(bench: Bench, number: int, walks: int) -> None:
    """Look at some walks, chosen by a number."""
    profile = settings(
        max_examples=walks,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    machine = cast("type[QueueMachine]", seed(number)(lambda: QueueMachine(bench)))
    run_state_machine_as_test(machine, settings=profile)
    assert bench.silent <= bench.walks // 5, "the database keeps falling silent"


@pytest.mark.timeout(600)  # to find the shortest walk takes its time
@each_database
def test_whatever_happens_the_queue_is_as_its_model(bench: Bench) -> None:
    walk(bench, random.getrandbits(32), WALKS[len(bench.services)])


@pytest.mark.prove
@pytest.mark.timeout(PROVE_FOR * 4)
@each_database
def test_whatever_happens_for_minutes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    given = os.environ.get("PROVE_SEED")
    deadline = time.monotonic() + PROVE_FOR
    while True:
        number = int(given) if given is not None else random.SystemRandom().getrandbits(32)
        with capsys.disabled():
            sys.stdout.write(f"\nPROVE_SEED={number}")
        walk(bench, number, 100)
        with capsys.disabled():
            sys.stdout.write(f": {bench.walks} walks, {bench.calls} calls; {dict(bench.events)}")
        if given is not None or time.monotonic() > deadline:
            return
