"""Waivers at rest: who let which check of which run pass, why, and until when."""

from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import audit, schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot


@dataclass(frozen=True, slots=True)
class Waiver:
    """One waiver.

    Attributes:
        id: 32 hex digits.
        project, run: for whose exports.
        first_step, last_step: for exports at these steps; None is open to that side.
        checks: the names of the checks that it lets pass.
        author, reason: who, and why.
        created, expires, revoked: Unix seconds; it counts from `created` until the first of the others.
    """

    id: str
    project: str
    run: str
    first_step: int | None
    last_step: int | None
    checks: tuple[str, ...]
    author: str
    reason: str
    created: float
    expires: float
    revoked: float | None = None


async def add_waiver(database: Database, waiver: Waiver) -> None:
    """Store a waiver and say so in the audit log."""

    def write(connection: Connection) -> None:
        values = asdict(waiver)
        connection.execute(sa.insert(schema.waivers).values(**values))
        audit.append(connection, waiver.created, "waiver_created", waiver.project, waiver.author, values)

    await database.write(write)


async def revoke_waiver(database: Database, waiver_id: str, *, now: float, actor: str) -> bool:
    """It counts no more; False if there is no such waiver that counts."""
    table = schema.waivers

    def write(connection: Connection) -> bool:
        project = connection.execute(sa.select(table.c.project).where(table.c.id == waiver_id)).scalar()
        statement = sa.update(table).where(table.c.id == waiver_id, table.c.revoked.is_(None)).values(revoked=now)
        done = connection.execute(statement).rowcount > 0
        if done:
            audit.append(connection, now, "waiver_revoked", project, actor, {"waiver": waiver_id})
        return done

    return await database.write(write)


async def find_waiver(database: Database, waiver_id: str) -> Waiver | None:
    """The waiver of that id, or None."""
    query = sa.select(*_COLUMNS).where(schema.waivers.c.id == waiver_id)

    def read(connection: Connection) -> Waiver | None:
        row = connection.execute(query).one_or_none()
        return None if row is None else _waiver(tuple(row))

    return await database.read(read)


async def list_waivers(
    database: Database, *, project: str | None = None, run: str | None = None, limit: int = 1000
) -> list[Waiver]:
    """Waivers, the newest first; those that no longer count too."""
    table = schema.waivers
    query = sa.select(*_COLUMNS).order_by(*_NEWEST).limit(limit)
    for column, value in ((table.c.project, project), (table.c.run, run)):
        if value is not None:
            query = query.where(column == value)
    return await database.read(lambda connection: [_waiver(tuple(row)) for row in connection.execute(query)])


_COLUMNS = tuple(schema.waivers.c[name] for name in Waiver.__slots__)
_NEWEST = (schema.waivers.c.created.desc(), schema.waivers.c.id)
_OF_RUN = Hot(
    sa.select(*_COLUMNS)
    .where(schema.waivers.c.project == sa.bindparam("project"), schema.waivers.c.run == sa.bindparam("run"))
    .order_by(*_NEWEST)
    .limit(1000)
)


def waivers_of(connection: Connection, project: str, run: str) -> list[Waiver]:
    """A run's waivers within a transaction, the newest first."""
    return [_waiver(row) for row in _OF_RUN.rows(connection, {"project": project, "run": run})]


def _waiver(row: tuple[Any, ...]) -> Waiver:
    values = list(row)
    values[_CHECKS] = tuple(values[_CHECKS])
    return Waiver(*values)


_CHECKS = Waiver.__slots__.index("checks")
