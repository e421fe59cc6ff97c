"""Statements of every chunk: compiled once for each database, then handed to its driver as they are.

Guarantees. The same SQL, the same column types and the same errors as `Connection.execute`, inside the same
transaction; a lost connection is given up as SQLAlchemy would give it up. What is left out is what SQLAlchemy does
anew for each execution, which costs more than SQLite's own work (docs/decisions/0405-hot-statements.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect

_Processor = Callable[[Any], Any]


class Hot:
    """One statement, or several that write and of which none reads what another one wrote.

    Several are sent one by one to SQLite and as one statement to PostgreSQL, where each is a way there and back.

    Args:
        statements: with a `bindparam` for every value; the same name stands for the same value in all of them.
    """

    def __init__(self, *statements: Any) -> None:
        self._statements = statements
        self._ready: dict[str, list[_Compiled]] = {}

    def run(self, connection: Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Execute with these values; returns the rows of a SELECT as the driver gives them, no rows of others."""
        return self._run(connection, values, typed=False)

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Execute one SELECT; returns its rows with each value as its column's type has it."""
        return self._run(connection, values, typed=True)

    def prepare(self, connection: Connection) -> None:
        """Compile now what the first execution would."""
        self._of(connection.dialect)

    def plain(self, dialect: Dialect, values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
        """The one statement and its values, as the database's own driver takes them."""
        return self.parts(dialect, values)[0]

    def parts(self, dialect: Dialect, values: Mapping[str, Any]) -> list[tuple[str, tuple[Any, ...]]]:
        """All statements and their values, as the database's own driver takes them."""
        return [(one.text, one.bind(values)) for one in self._of(dialect)]

    def _of(self, dialect: Dialect) -> list["_Compiled"]:
        compiled = self._ready.get(dialect.name)
        if compiled is None:
            compiled = self._ready[dialect.name] = self._compile(dialect)
        return compiled

    def _run(self, connection: Connection, values: Mapping[str, Any], *, typed: bool) -> list[tuple[Any, ...]]:
        compiled = self._of(connection.dialect)
        cursor = connection.connection.cursor()
        try:
            for one in compiled:
                cursor.execute(one.text, one.bind(values))
            if not compiled[-1].returns_rows:
                return []
            rows = list(cursor.fetchall())
            return compiled[-1].typed(rows, cursor.description, connection.dialect) if typed else rows
        except connection.dialect.loaded_dbapi.Error as error:
            is_lost = connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor)
            if is_lost:
                connection.invalidate(error)
            raise sa.exc.DBAPIError.instance(
                compiled[-1].text,
                None,
                error,
                connection.dialect.loaded_dbapi.Error,
                hide_parameters=True,
                connection_invalidated=is_lost,
                dialect=connection.dialect,
            ) from error
        finally:
            cursor.close()

    def _compile(self, dialect: Dialect) -> list["_Compiled"]:
        if dialect.name != "postgresql" or len(self._statements) == 1:
            return [_Compiled(one, dialect) for one in self._statements]
        written = [one.cte(f"written_{place}") for place, one in enumerate(self._statements)]
        return [_Compiled(sa.select(sa.literal_column("1")).add_cte(*written), dialect)]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A transaction that is known beforehand, of which nothing happens unless a row is there and is as expected.

    Attributes:
        one: a single statement, for a database to which each is a way there and back; a row comes back if it was done.
        several: one after the other, for a database that is near; the first changes one row, or nothing must happen.
    """

    one: Hot
    several: Hot


def insert(table: sa.Table) -> sa.Insert:
    """An INSERT of all columns of a table but those that count by themselves, from values of the columns' names."""
    counts = table.autoincrement_column
    values = {one.name: sa.bindparam(one.name, type_=one.type) for one in table.c if one is not counts}
    return sa.insert(table).inline().values(values)


class _Compiled:
    """A statement in one database's words."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self.returns_rows = statement.is_select
        self._columns = list(statement.selected_columns) if statement.is_select else []
        self._makers: list[tuple[int, _Processor]] | None = None
        self._names = tuple(compiled.positiontup or ())
        binds = compiled.binds
        self._constants = {name: binds[name].value for name in self._names if not binds[name].required}
        found = (binds[name].type.dialect_impl(dialect).bind_processor(dialect) for name in self._names)
        self._binders = [(place, make) for place, make in enumerate(found) if make is not None]

    def bind(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in the statement's order, as the driver takes them."""
        if self._constants:
            values = {**self._constants, **values}
        bound = [values[name] for name in self._names]
        for place, make in self._binders:
            bound[place] = make(bound[place])
        return tuple(bound)

    def typed(self, rows: list[tuple[Any, ...]], description: Any, dialect: Dialect) -> list[tuple[Any, ...]]:
        """The rows with each value as its column's type has it; most columns need nothing done."""
        if self._makers is None:
            # The driver's own type is known with the first answer only, and PostgreSQL's processors ask for it.
            found = (
                column.type.dialect_impl(dialect).result_processor(dialect, said[1])
                for column, said in zip(self._columns, description, strict=True)
            )
            self._makers = [(place, make) for place, make in enumerate(found) if make is not None]
        if not rows or not self._makers:
            return [tuple(row) for row in rows]
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        for place, make in self._makers:
            columns[place] = [make(value) for value in columns[place]]
        return list(zip(*columns, strict=True))
