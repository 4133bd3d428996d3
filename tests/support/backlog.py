"""A database that has grown: one task's rows multiplied by SQL, since a million registrations take too long."""

from typing import Any

import sqlalchemy as sa


def multiply(url: str, task_id: str, times: int, jobs: int, destinations: int) -> None:
    """Add tasks like one that there is, each with a registration, files, attempts, history and series of its own.

    No service may write meanwhile. Rows are taken as they are, whatever columns they have.

    Args:
        url: The database.
        task_id: The task.
        times: How many to add.
        jobs: Over how many jobs they are spread, each with a payload of its own.
        destinations: Over how many destinations: ``destination-0``, …; a tenth of them more urgent than the rest.
    """
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        made = sa.MetaData()
        made.reflect(
            connection,
            only=[
                "registrations",
                "payloads",
                "tasks",
                "files",
                "attempts",
                "history",
                "series",
                "instances",
            ],
        )
        _Growth(connection, made, times, jobs, destinations).of(task_id)
    if engine.dialect.name == "postgresql":
        # As autovacuum leaves it. Nobody analyzes a SQLite file.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))
    engine.dispose()


class _Growth:
    """The statements of ``multiply``, in one transaction."""

    def __init__(
        self, connection: sa.Connection, made: sa.MetaData, times: int, jobs: int, destinations: int
    ) -> None:
        self._connection = connection
        self._tables = made.tables
        self._postgres = connection.dialect.name == "postgresql"
        self._times, self._jobs, self._destinations = times, jobs, destinations

    def of(self, task_id: str) -> None:
        tasks, registrations = self._tables["tasks"], self._tables["registrations"]
        chosen = sa.select(tasks).where(tasks.c.task_id == task_id)
        template = self._connection.execute(chosen).one()
        last, last_registration = self._last(tasks), self._last(registrations)
        numbers = _numbers(self._times)
        number = numbers.c.n
        job = sa.cast(number % self._jobs, sa.Text)
        own = f"{last}-"
        turn = number / sa.literal_column(str(self._jobs))  # of whole numbers, on both
        self._copy(
            "registrations", numbers, registrations.c.id == template.registration_id,
            id=last_registration + number, idempotency_key=self._digits(), scope_sha256=self._digits(),
        )  # fmt: skip
        self._copy(
            "tasks", numbers, tasks.c.id == template.id,
            id=last + number,
            task_id=self._uuid(),
            registration_id=last_registration + number,
            job_id=sa.literal(f"job-{own}").concat(job),
            payload_id=sa.literal(f"payload-{own}").concat(job),
            destination=sa.literal("destination-").concat(sa.cast(number % self._destinations, sa.Text)),
            priority=sa.case((number % 10 == 0, 5), else_=0),
            turn=1 + sa.cast(turn, sa.BigInteger),
        )  # fmt: skip
        unlike = sa.literal(f".{own}").concat(sa.cast(number, sa.Text))
        for name in ("files", "attempts", "history", "series"):
            table = self._tables[name]
            identifiers = {
                each.name: each.concat(unlike)
                for each in table.c
                if each.name.endswith("instance_uid")
                or each.name in {"accession_number", "patient_id"}
            }
            self._copy(
                name, numbers, table.c.task == template.id, task=last + number, **identifiers
            )
        instances = self._tables["instances"]
        self._copy(
            "instances", numbers, instances.c.task_id == task_id,
            sop_instance_uid=instances.c.sop_instance_uid.concat(unlike),
        )  # fmt: skip
        of_jobs = _numbers(self._jobs)
        self._copy(
            "payloads", of_jobs, self._tables["payloads"].c.payload_id == template.payload_id,
            payload_id=sa.literal(f"payload-{own}").concat(sa.cast(of_jobs.c.n - 1, sa.Text)),
        )  # fmt: skip
        if self._postgres:
            for name in ("tasks", "registrations"):
                counter = sa.func.pg_get_serial_sequence(name, "id")
                last = self._last(self._tables[name])
                self._connection.execute(sa.select(sa.func.setval(counter, last)))

    def _last(self, table: sa.Table) -> int:
        return self._connection.scalar(sa.select(sa.func.max(table.c.id))) or 0

    def _digits(self) -> sa.ColumnElement[str]:
        """Return 32 random hex digits."""
        if self._postgres:
            return sa.func.md5(sa.cast(sa.func.random(), sa.Text))
        return sa.func.lower(sa.func.hex(sa.func.randomblob(16)))

    def _uuid(self) -> sa.ColumnElement[str]:
        parts = [sa.func.substr(self._digits(), 1, length) for length in (8, 4, 4, 4, 12)]
        text: sa.ColumnElement[str] = parts[0]
        for part in parts[1:]:
            text = text.concat("-").concat(part)
        return text

    def _copy(
        self, name: str, numbers: sa.CTE, which: sa.ColumnElement[bool], **changed: Any
    ) -> None:
        """Insert a table's chosen rows once for each number, with changes; an id that is not given counts up."""
        table = self._tables[name]
        columns = [each.name for each in table.c if each.name != "id" or "id" in changed]
        chosen = sa.select(*[changed.get(each, table.c[each]) for each in columns])
        chosen = chosen.select_from(sa.join(table, numbers, sa.true())).where(which)
        self._connection.execute(table.insert().from_select(columns, chosen))


def _numbers(times: int) -> sa.CTE:
    """Return a table of 1, 2, … as its column ``n``."""
    numbers = sa.select(sa.cast(sa.literal_column("1"), sa.BigInteger).label("n")).cte(
        "numbers", recursive=True
    )
    more = sa.select(numbers.c.n + 1).where(numbers.c.n < times)
    return numbers.union_all(more)
