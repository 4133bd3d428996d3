"""Statements that are compiled once and then given to the driver as they are.

SQLAlchemy says what a statement is, in one text for both databases, and how values go in and out. To build a
statement anew and to find its compiled form again costs it some 110 µs each time, a compiled one that it runs some 35 µs,
the driver itself (sqlite3) some 9 µs; so what the queue does for each task goes this way.
"""

from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

upsert = postgresql.insert
"""An insert that can say what to do on a conflict; SQLite reads the same text."""


class Row(Protocol):
    """A row of a result: its columns are attributes."""

    def __getattr__(self, column: str, /) -> Any:
        """Return a column's value."""
        ...


class Statement:
    """A statement with named parameters.

    What is the same each time stands in it as a literal (``literal``): a partial index is of use only then, and
    SQLite would plan anew whenever the value is bound.
    """

    def __init__(self, construct: sa.Select[*tuple[Any, ...]] | sa.UpdateBase) -> None:
        """Take a construct whose every value is a ``bindparam`` or a literal."""
        self._construct = construct
        self._forms: dict[str, _Form] = {}

    def all(self, connection: sa.Connection, /, **values: Any) -> list[Any]:
        """Run it; return all rows."""
        form = self._form(connection)
        return form.rows(form.execute(connection, values).fetchall())

    def first(self, connection: sa.Connection, /, **values: Any) -> Any:
        """Run it; return the first row, or None."""
        form = self._form(connection)
        found = form.execute(connection, values).fetchone()
        return None if found is None else form.rows([found])[0]

    def scalar(self, connection: sa.Connection, /, **values: Any) -> Any:
        """Run it; return the first column of the first row, or None."""
        row = self.first(connection, **values)
        return None if row is None else row[0]

    def scalars(self, connection: sa.Connection, /, **values: Any) -> list[Any]:
        """Run it; return the first column of all rows."""
        return [row[0] for row in self.all(connection, **values)]

    def run(self, connection: sa.Connection, /, **values: Any) -> int:
        """Run it; return how many rows it met."""
        rowcount: int = self._form(connection).execute(connection, values).rowcount
        return rowcount

    def run_many(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]], /) -> int:
        """Run it once for each of some sets of values; return how many rows it met in all."""
        if not rows:
            return 0
        if len(rows) == 1:
            return self.run(connection, **rows[0])
        rowcount: int = self._form(connection).execute_many(connection, rows).rowcount
        return rowcount

    def _form(self, connection: sa.Connection) -> "_Form":
        dialect = connection.dialect
        form = self._forms.get(dialect.name)
        if form is None:
            form = self._forms[dialect.name] = _Form(self._construct, dialect)
        return form


class _Form:
    """A statement as one database reads it."""

    def __init__(
        self, construct: sa.Select[*tuple[Any, ...]] | sa.UpdateBase, dialect: sa.Dialect
    ) -> None:
        compiled = construct.compile(dialect=dialect)
        self._dialect = dialect
        self._text = str(compiled)
        self._positional = compiled.positional
        names = compiled.positiontup if compiled.positional else compiled.binds
        binds = compiled.binds
        self._binds = [
            (name, _impl(binds[name].type, dialect).bind_processor(dialect)) for name in names or ()
        ]
        self._constant = {name: bind.value for name, bind in binds.items() if not bind.required}
        """What SQLAlchemy itself adds, such as the OFFSET that SQLite wants with a LIMIT."""
        columns = list(construct.exported_columns)
        self._row: Any = namedtuple("Row", [str(column.key) for column in columns], rename=True)  # type: ignore[misc]
        processes = [
            _impl(column.type, dialect).result_processor(dialect, None) for column in columns
        ]
        self._processed = [(place, do) for place, do in enumerate(processes) if do is not None]

    def execute(self, connection: sa.Connection, values: Mapping[str, Any]) -> Any:
        try:
            cursor = connection.connection.cursor()
            return cursor.execute(self._text, self._bound(values))
        except self._dialect.loaded_dbapi.Error as error:
            raise self._fault(connection, error) from error

    def execute_many(self, connection: sa.Connection, rows: Iterable[Mapping[str, Any]]) -> Any:
        try:
            cursor = connection.connection.cursor()
            cursor.executemany(self._text, [self._bound(values) for values in rows])
        except self._dialect.loaded_dbapi.Error as error:
            raise self._fault(connection, error) from error
        return cursor

    def rows(self, found: Iterable[Sequence[Any]]) -> list[Any]:
        make = self._row._make
        if not self._processed:
            return [make(row) for row in found]
        made = []
        for row in found:
            values = list(row)
            for place, process in self._processed:
                values[place] = process(values[place])
            made.append(make(values))
        return made

    def _bound(self, values: Mapping[str, Any]) -> Any:
        if self._constant:
            values = {**self._constant, **values}
        if self._positional:
            return [
                values[name] if process is None else process(values[name])
                for name, process in self._binds
            ]
        return {
            name: values[name] if process is None else process(values[name])
            for name, process in self._binds
        }

    def _fault(self, connection: sa.Connection, error: Exception) -> BaseException:
        """Return a driver's error as SQLAlchemy has it, and give up a connection that is lost."""
        lost = self._dialect.is_disconnect(error, connection.connection.dbapi_connection, None)  # type: ignore[arg-type]
        if lost:
            connection.invalidate(error)
            connection.engine.dispose()  # those not in use are as old as this one
        return sa.exc.DBAPIError.instance(
            self._text,
            None,
            error,
            self._dialect.loaded_dbapi.Error,
            hide_parameters=True,  # an error goes into the log; a patient's name must not
            connection_invalidated=lost,
            dialect=self._dialect,
        )


def _impl(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Any:
    return kind.dialect_impl(dialect)


def literal(value: str) -> sa.ColumnClause[Any]:
    """Return a constant word of ours, such as a task's state, as a statement's text has it."""
    return sa.literal_column(f"'{value}'")


def among(column: sa.Column[Any], values: Iterable[str]) -> sa.ColumnElement[bool]:
    """Return the condition that a column has one of some constant words."""
    return column.in_([literal(value) for value in values])


def same(table: sa.Table, *columns: str) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that columns equal the parameters ``at_COLUMN``."""
    return [
        table.c[name] == sa.bindparam(f"at_{name}", type_=table.c[name].type) for name in columns
    ]


def given(table: sa.Table, *columns: str) -> dict[str, Any]:
    """Return what sets columns to the parameters of their names."""
    return {name: sa.bindparam(name, type_=table.c[name].type) for name in columns}
