"""Migrations make exactly the tables that the code expects; starting several times, or at once, is the same as once."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from chunk_trainer import chunks, frames
from services import Clock, Service, run, service
from sqlalchemy.engine import Connection

from lossguard_service.store.database import open_database
from lossguard_service.store.migrate import migrate, migrations_folder, pending, upgrade
from lossguard_service.store.schema import metadata


def test_the_migrations_and_the_schema_agree(database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async def story() -> list[Any]:
        database = open_database(database_url)
        try:
            assert await pending(database)
            await migrate(database)
            assert not await pending(database)
            return await database.read(differences)
        finally:
            await database.close()

    assert run(story()) == []


def test_replicas_that_start_at_once_migrate_once(database_url: str) -> None:
    async def story() -> None:
        replicas = [open_database(database_url, connections=2) for _ in range(4)]
        try:
            await asyncio.gather(*(migrate(replica) for replica in replicas))
            assert not any([await pending(replica) for replica in replicas])
        finally:
            for replica in replicas:
                await replica.close()

    run(story())


def test_the_migrations_are_found() -> None:
    assert (migrations_folder() / "versions" / "0001_initial.py").is_file()


@pytest.mark.parametrize("revision", [f"{number:04}" for number in range(1, 8)])
def test_a_database_of_every_earlier_schema_keeps_its_runs(tmp_path: Path, clock: Clock, revision: str) -> None:
    """Made as that version made it, with data in, it is brought up by a service that starts, which then goes on."""
    data = chunks(frames(1, 200))
    path = "/v1/projects/video/runs/ranker"
    new, old = tmp_path / "new.db", tmp_path / "old.db"

    async def ask(one: Service) -> list[Any]:
        series = await one.get(f"{path}/series", name="loss", points=5000)
        return [series, await one.get(f"{path}/steps/70"), (await one.get(path))["judged_step"]]

    async def story() -> None:
        async with service(f"sqlite:///{new}", clock) as one:
            for chunk in data[:4]:
                await one.put(chunk)
            before = await ask(one)
        database = open_database(f"sqlite:///{old}")
        try:
            await database.write(lambda connection: upgrade(connection, revision))
        finally:
            await database.close()
        copy_rows(new, old)
        async with service(f"sqlite:///{old}", clock) as one:
            assert await ask(one) == before
            for chunk in data[4:]:
                assert (await one.put(chunk)).status_code == 200
            assert (await one.get(path))["judged_step"] == 200

    run(story())


def copy_rows(source: Path, target: Path) -> None:
    """What both have, but for Alembic's own table."""
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as two, two:

        def columns(connection: sqlite3.Connection, table: str) -> list[str]:
            return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]

        for (table,) in two.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            both = [name for name in columns(two, table) if name in columns(one, table)]
            if table.startswith(("alembic", "sqlite_")) or not both:
                continue
            names, marks = ", ".join(f'"{name}"' for name in both), ", ".join("?" * len(both))
            rows = one.execute(f"SELECT {names} FROM {table}").fetchall()
            two.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)
