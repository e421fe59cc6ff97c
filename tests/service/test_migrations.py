"""Migrations make exactly the tables that the code expects; starting several times, or at once, is the same as once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from chunk_trainer import chunks, frames
from services import Clock, Service, run, service
from sqlalchemy.engine import Connection

from lossguard_service.store.database import open_database
from lossguard_service.store.migrate import migrate, migrations_folder, pending, revisions, upgrade
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


BEFORE = revisions()[1:]


@pytest.mark.parametrize(
    ("database_url", "revision"),
    [*(("sqlite", one) for one in BEFORE), ("postgresql", BEFORE[0]), ("postgresql", BEFORE[-1])],
    indirect=["database_url"],
)
def test_a_database_of_every_earlier_schema_keeps_its_runs(
    database_url: str, tmp_path: Path, clock: Clock, revision: str
) -> None:
    """Made as that version made it, with data in, it is brought up by a service that starts, which then goes on."""
    data = chunks(frames(1, 200))
    path = "/v1/projects/video/runs/ranker"
    new = f"sqlite:///{tmp_path / 'new.db'}"

    async def ask(one: Service) -> list[Any]:
        series = await one.get(f"{path}/series", name="loss", points=5000)
        return [series, await one.get(f"{path}/steps/70"), (await one.get(path))["judged_step"]]

    async def story() -> None:
        async with service(new, clock) as one:
            for chunk in data[:4]:
                await one.put(chunk)
            before = await ask(one)
        await copy_rows(new, database_url, revision)
        async with service(database_url, clock) as one:
            assert await ask(one) == before
            await one.put_all(data[4:])
            await one.put_all(chunks(frames(1, 32), run="another"))
            assert (await one.get(path))["judged_step"] == 200

    run(story())


async def copy_rows(source_url: str, target_url: str, revision: str) -> None:
    """Into a new database of an earlier schema, what that has columns for."""
    source, target = open_database(source_url), open_database(target_url)

    def tables(connection: Connection) -> sa.MetaData:
        found = sa.MetaData()
        found.reflect(connection)
        return found

    try:
        await target.write(lambda connection: upgrade(connection, revision))
        new, old = await source.read(tables), await target.read(tables)
        for table in old.sorted_tables:
            if table.name == "alembic_version":
                continue
            both = [column.name for column in table.columns if column.name in new.tables[table.name].columns]
            query = sa.select(*(new.tables[table.name].columns[name] for name in both))
            rows = await source.read(lambda c, query=query: [dict(row) for row in c.execute(query).mappings()])
            if rows:
                await target.write(lambda c, table=table, rows=rows: c.execute(table.insert(), rows))
        if target_url.startswith("postgresql"):
            number = "SELECT setval(pg_get_serial_sequence('runs', 'id'), (SELECT max(id) FROM runs))"
            await target.write(lambda connection: connection.execute(sa.text(number)))
    finally:
        await source.close()
        await target.close()


def test_the_version_before_works_with_a_later_schema(
    database_url: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    later = sa.text("UPDATE alembic_version SET version_num = '9999'")

    async def story() -> None:
        async with service(database_url, clock) as one:
            await one.app.state.database.write(lambda connection: connection.execute(later))
            assert (await one.client.get("/readyz")).status_code == 200, "while its successor has migrated"
            assert (await one.put(chunks(frames(1, 32))[0])).status_code == 200
        async with service(database_url, clock) as one:
            assert (await one.client.get("/readyz")).status_code == 200, "and when it is started again"
            assert (await one.get("/v1/projects/video/runs/ranker"))["judged_step"] == 32

    run(story())
    assert "schema 9999 of a later version" in caplog.text
