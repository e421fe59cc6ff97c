"""Waivers at rest: who let which check of which run pass, why, and until when."""

from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from lossguard_service.store import audit, schema
from lossguard_service.store.database import Database


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
    query = sa.select(schema.waivers).where(schema.waivers.c.id == waiver_id)

    def read(connection: Connection) -> Waiver | None:
        row = connection.execute(query).one_or_none()
        return None if row is None else _waiver(row)

    return await database.read(read)


async def list_waivers(
    database: Database, *, project: str | None = None, run: str | None = None, limit: int = 1000
) -> list[Waiver]:
    """Waivers, the newest first; those that no longer count too."""
    return await database.read(lambda connection: waivers_of(connection, project, run, limit))


def waivers_of(connection: Connection, project: str | None, run: str | None, limit: int = 1000) -> list[Waiver]:
    """The same within a transaction."""
    table = schema.waivers
    query = sa.select(table).order_by(table.c.created.desc(), table.c.id).limit(limit)
    for column, value in ((table.c.project, project), (table.c.run, run)):
        if value is not None:
            query = query.where(column == value)
    return [_waiver(row) for row in connection.execute(query)]


def _waiver(row: Row[tuple[object, ...]]) -> Waiver:
    values = dict(row._mapping)
    values["checks"] = tuple(values["checks"])
    return Waiver(**values)
