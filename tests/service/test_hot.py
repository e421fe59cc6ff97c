"""Statements that are handed to the driver as they are give what SQLAlchemy would give, on both databases."""

import math
import sqlite3
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from services import run
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.columns import Document, Number, Words
from lossguard_service.store.database import open_database
from lossguard_service.store.hot import Hot, insert
from lossguard_service.store.migrate import migrate
from lossguard_service.store.sqlite import SqliteDatabase

TABLES = [schema.incidents, schema.verdicts, schema.segments, schema.policies, schema.audit, schema.chunk_bytes]


def value_of(column: sa.Column[Any], empty: bool) -> Any:
    if empty and column.nullable:
        return None
    match column.type:
        case Number():
            return math.nan if "peak" in column.name else 1.5
        case Document():
            return {"nan": math.inf, "list": [1, "a\x00b"]}
        case sa.Boolean():
            return True
        case sa.LargeBinary():
            return b"\x00\xff"
        case sa.Text() | Words():
            return f"ä{column.name}"
        case _:
            return 7


@pytest.mark.parametrize("empty", [False, True], ids=["full", "nulls"])
def test_rows_are_those_of_the_general_way(database_url: str, empty: bool) -> None:
    def write(connection: Connection) -> None:
        project = {"project": "p", "name": "r", "created": 1.0, "config": {}, "status": "healthy", "attempt": 1,
                   "last_seen": 1.0, "last_progress": 1.0, "frames": 0, "dropped_frames": 0, "waiting_chunks": 0,
                   "summary": {}, "revision": 0, "id": 7}  # fmt: skip
        connection.execute(sa.insert(schema.runs).values(**project))
        for table in TABLES:
            Hot(insert(table)).run(connection, {column.name: value_of(column, empty) for column in table.c})

    def read(connection: Connection) -> None:
        for table in TABLES:
            (expected,) = connection.execute(sa.select(table)).all()
            hot = Hot(sa.select(table).where(table.c[0] == sa.bindparam("first")).limit(5))
            for _ in range(2):
                (found,) = hot.rows(connection, {"first": expected[0]})
                assert repr(found) == repr(tuple(expected))
                assert [type(value) for value in found] == [type(value) for value in expected]

    async def story() -> None:
        database = open_database(database_url)
        await migrate(database)
        await database.write(write)
        await database.read(read)
        await database.close()

    run(story())


COUNT = Hot(sa.select(sa.func.count()).select_from(schema.policies).where(schema.policies.c.name == sa.bindparam("n")))


async def add_policy(database: Any, version: int) -> None:
    values = {"name": "p", "version": version, "document": {}, "created": 1.0}
    await database.write(lambda connection: Hot(insert(schema.policies)).run(connection, values))


def test_a_glance_sees_what_another_replica_has_committed(database_url: str) -> None:
    async def story() -> list[int]:
        one, two = open_database(database_url), open_database(database_url)
        await migrate(one)
        seen = []
        for version in (1, 2, 3):
            seen.append((await one.glance(COUNT, {"n": "p"}))[0][0])
            await add_policy(two, version)
        seen.append((await one.glance(COUNT, {"n": "p"}))[0][0])
        await one.close()
        await two.close()
        return seen

    assert run(story()) == [0, 1, 2, 3]


def test_a_glance_that_fails_is_asked_again_in_a_thread_and_pins_no_snapshot(sqlite_url: str) -> None:
    async def story() -> None:
        database = open_database(sqlite_url)
        assert isinstance(database, SqliteDatabase)
        await migrate(database)
        await add_policy(database, 1)
        for _ in range(2):
            assert await database.glance(COUNT, {"n": "p"}) == [(1,)]
        opened = database._near._connection
        assert opened is not None
        with closing(sqlite3.connect(database.path)) as other:  # nobody reads now, so the log can be emptied
            assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        opened.connection.cursor().execute("CREATE TEMP TABLE policies (hides INT)")
        assert await database.glance(COUNT, {"n": "p"}) == [(1,)]
        await database.close()

    run(story())
