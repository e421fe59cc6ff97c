"""The database itself keeps the audit log: whoever connects may add to it, and change nothing that stands in it."""

import pytest
import sqlalchemy as sa
from alembic import command
from services import run
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from lossguard_service.store import audit, schema
from lossguard_service.store.database import open_database
from lossguard_service.store.migrate import config_for, migrate

CHANGES = {
    "changed": "UPDATE audit SET actor = 'nobody' WHERE sequence = 1",
    "deleted": "DELETE FROM audit WHERE sequence = 1",
    "all deleted": "DELETE FROM audit",
    "replaced by an upsert": "INSERT INTO audit (sequence, time, kind, actor, document) VALUES (1, 2, 'x', 'y', '{}') "
    "ON CONFLICT (sequence) DO UPDATE SET actor = excluded.actor",
    "replaced": "INSERT OR REPLACE INTO audit (sequence, time, kind, actor, document) VALUES (1, 2, 'x', 'y', '{}')",
    "truncated": "TRUNCATE audit",
}
ONLY = {"replaced": "sqlite", "truncated": "postgresql"}


def test_entries_cannot_be_changed_and_are_added_as_before(database_url: str) -> None:
    def add(connection: Connection) -> None:
        audit.append(connection, 1.0, "verdict", "p", "ann", {"id": "v"})

    async def story() -> None:
        database = open_database(database_url)
        try:
            await migrate(database)
            await database.write(add)
            before = await audit.list_entries(database)
            for name, statement in CHANGES.items():
                if ONLY.get(name, database_url[:6])[:6] != database_url[:6]:
                    continue
                with pytest.raises(DBAPIError, match="the audit log is only added to"):
                    await database.write(lambda connection, text=statement: connection.execute(sa.text(text)))
                assert await audit.list_entries(database) == before, name
            await database.write(add)
            entries = await audit.list_entries(database)
            assert entries[:1] == before
            assert [(entry.kind, entry.actor) for entry in entries] == [("verdict", "ann")] * 2
        finally:
            await database.close()

    run(story())


def test_the_triggers_go_with_their_migration(database_url: str) -> None:
    def back(connection: Connection) -> None:
        command.downgrade(config_for(connection), "0008")
        audit.append(connection, 1.0, "verdict", "p", "ann", {"id": "v"})
        connection.execute(sa.delete(schema.audit))

    async def story() -> None:
        database = open_database(database_url)
        try:
            await migrate(database)
            await database.write(back)
            assert await audit.list_entries(database) == []
            await migrate(database)
        finally:
            await database.close()

    run(story())
