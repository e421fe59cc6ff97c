"""The two inserts that SQLite and PostgreSQL spell alike and SQLAlchemy keeps in two dialects."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection


def insert_or_ignore(connection: Connection, table: sa.Table, values: dict[str, Any]) -> None:
    """Insert a row; do nothing if its identity is there already."""
    connection.execute(_insert(connection, table).values(**values).on_conflict_do_nothing())


def insert_or_update(connection: Connection, table: sa.Table, values: dict[str, Any]) -> None:
    """Insert a row, or set its other columns if its primary key is there already."""
    keys = [column.name for column in table.primary_key]
    statement = _insert(connection, table).values(**values)
    others = {name: statement.excluded[name] for name in values if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=others))


def _insert(connection: Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
