"""Migrations make exactly the tables that the code expects; starting several times, or at once, is the same as once."""

import asyncio
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from services import run
from sqlalchemy.engine import Connection

from lossguard_service.store.database import open_database
from lossguard_service.store.migrate import migrate, migrations_folder, pending
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
