"""The audit log: what the gate said, who changed its rules and who may do what, in order. Rows are only added."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot, insert


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    Attributes:
        sequence: increases; gaps mean nothing.
        time: Unix seconds by the service's clock.
        kind: `verdict`, `waiver_created`, `waiver_revoked`, `key_created`, `key_revoked`, `policy_created`,
            `token_created`, `token_revoked`.
        project: whose; None for what spans all projects.
        actor: who did it, as they say; "service" for what it does by itself.
        document: the particulars.
    """

    sequence: int
    time: float
    kind: str
    project: str | None
    actor: str
    document: dict[str, Any]


_INSERT = Hot(insert(schema.audit))


def append(
    connection: Connection, time: float, kind: str, project: str | None, actor: str, document: dict[str, Any]
) -> None:
    """Add an entry, within the transaction of what it tells of."""
    values = {"time": time, "kind": kind, "project": project, "actor": actor, "document": document}
    _INSERT.run(connection, values)


def prepare(connection: Connection) -> None:
    """Compile what the first entry would compile."""
    _INSERT.prepare(connection)


async def list_entries(
    database: Database, *, project: str | None = None, after: int = 0, limit: int = 1000
) -> list[Entry]:
    """Entries after a sequence number, in order."""
    table = schema.audit
    query = sa.select(table).where(table.c.sequence > after).order_by(table.c.sequence).limit(limit)
    if project is not None:
        query = query.where(table.c.project == project)
    return await database.read(lambda connection: [Entry(**row._mapping) for row in connection.execute(query)])


async def newest_entries(
    database: Database,
    *,
    project: str | None = None,
    kind: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[Entry]:
    """Entries from before a sequence number, the newest first: what a page shows."""
    table = schema.audit
    query = sa.select(table).order_by(table.c.sequence.desc()).limit(limit)
    for condition in (
        None if project is None else table.c.project == project,
        None if kind is None else table.c.kind == kind,
        None if before is None else table.c.sequence < before,
    ):
        if condition is not None:
            query = query.where(condition)
    return await database.read(lambda connection: [Entry(**row._mapping) for row in connection.execute(query)])
