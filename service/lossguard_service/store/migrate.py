"""Brings a database to the schema of this version; safe when several replicas start at once.

The migrations lie beside the sources in a checkout (`migrations/`) and inside the package when it is installed from a
wheel. One replica migrates, the others wait for its lock and then find nothing to do.

A schema that is newer than this version's is left alone and worked with: every migration works with the code of the
version before it, which still runs, and may be started again, while replicas are replaced one by one or put back.
"""

import logging
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from lossguard_service.store.database import Database

_log = logging.getLogger(__name__)
_LOCK = 0x4C4F5353
"""The PostgreSQL advisory lock of migrations; an arbitrary number that is the same in every version."""


def migrations_folder() -> Path:
    """Where the migrations are.

    Raises:
        FileNotFoundError: neither in the package nor beside the sources.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "migrations", package.parents[1] / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise FileNotFoundError("the service's migrations are not installed: reinstall lossguard")


def config_for(connection: Connection | None = None) -> Config:
    """Alembic's configuration, working on `connection`."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Migrate up to `revision` within the connection's transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    newer = _newer(connection)
    if newer is not None:
        _log.warning(
            "the database has schema %s of a later version: fine while replicas are replaced one by one, if this one "
            "is the version before it",
            newer,
        )
        return
    command.upgrade(config_for(connection), revision)


def _newer(connection: Connection) -> str | None:
    """The database's revision if this version does not know it."""
    current = MigrationContext.configure(connection).get_current_revision()
    return None if current is None or current in revisions() else current


@cache
def revisions() -> tuple[str, ...]:
    """What this version knows, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(config_for()).walk_revisions())


async def migrate(database: Database) -> None:
    """Migrate up to this version's schema."""
    await database.write(upgrade)


async def pending(database: Database) -> bool:
    """True if the database is not yet at this version's schema."""

    def behind(connection: Connection) -> bool:
        current = MigrationContext.configure(connection).get_current_revision()
        return current != revisions()[0] and _newer(connection) is None

    return await database.read(behind)
