"""Whose the objects are: a small object, `<folder>/owner`, holds the same secret as this database's row.

Guarantees. Nothing is put into a store that has lost the mark (a folder that is not mounted, another bucket), and
nothing is deleted unless the mark was found to be this database's own in the same round. A copy of the database that
runs on the same objects is found out: each owner renews the secret, so that the copy, or the original, meets one that
it does not know. It says so in the mark, and from then on neither deletes, until `lossguard db own-objects` settles it.
Both meet at least once within a quarter of `ByteStore.keep_seconds`, long before anything that one of them alone knows
is old enough to be deleted by the other. Decision: docs/decisions/0408-objects-have-an-owner.md.

The row goes first: it holds the next secret before the mark does, so a crash in between is finished by whoever comes
next, and any number of replicas may renew at once.
"""

import logging
import secrets
from dataclasses import dataclass
from functools import partial
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.bytes import AnotherStore, BytesLost, BytesUnavailable, Objects
from lossguard_service.store.database import Database
from lossguard_service.store.upsert import insert_or_ignore

DISPUTED: Final = "disputed"
_LOST: Final = ""
"""In place of the secret: another database owns the objects."""
_TABLE: Final = schema.object_folders

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    secret: str | None
    next_secret: str | None
    renewed: float


async def identify(database: Database, *, now: float) -> None:
    """Learn the name of the folder in the object store that is this database's own; the first replica draws it."""

    def write(connection: Connection) -> str:
        insert_or_ignore(connection, _TABLE, {"number": 1, "name": secrets.token_hex(8), "swept": now, "renewed": now})
        return _read(connection).name

    database.bytes.folder = await database.write(write)
    database.bytes.hold = partial(hold, database)


async def hold(database: Database) -> None:
    """Make sure that the store is the one with this database's objects; the first time of all, mark it.

    Raises:
        AnotherStore: it is not.
        BytesUnavailable: it does not answer.
    """
    objects = _objects(database)
    row = await database.read(_read)
    if row.secret is None:
        await _renew(database, row)
    elif await _marked(objects, database.bytes.mark) is None:
        raise AnotherStore(_missing(database))


async def own(database: Database, *, now: float, round_seconds: float) -> bool:
    """Whether this round of cleaning may delete; to be asked in each, and renews the secret when it is time.

    Args:
        database: whose objects.
        now: Unix seconds.
        round_seconds: time between two rounds.

    Raises:
        BytesUnavailable: the store does not answer.
    """
    objects = _objects(database)
    row = await database.read(_read)
    if row.secret is None:
        await _renew(database, row)
        return False
    marked = await _marked(objects, database.bytes.mark)
    if marked is None:
        _log.error("%s; nothing is deleted", _missing(database))
        return False
    if marked not in (row.secret, row.next_secret):
        # A renewal of this moment by another replica is no dispute.
        row = await database.read(_read)
    if marked not in (row.secret, row.next_secret):
        if row.secret != _LOST:
            if marked != DISPUTED:
                await objects.put(database.bytes.mark, DISPUTED.encode())
            await database.write(_lose)
        _log.error(
            "the objects in folder %s are another database's, or it says so too, a copy of this one perhaps: this one "
            "deletes none, so the store grows; run `lossguard db own-objects` on the database whose objects they are, "
            "and give the other one a copy of the folder",
            database.bytes.folder,
        )
        return False
    if row.next_secret is not None or now - row.renewed >= max(database.bytes.keep_seconds / 4, 3 * round_seconds):
        # Not in the round that renews: whoever else uses the objects must have had the time to object.
        await _renew(database, row, now=now)
        return False
    return True


async def claim(database: Database, *, now: float) -> None:
    """Mark the store as this database's, whatever the mark says now: an operator has decided.

    Raises:
        BytesUnavailable: the store does not answer.
    """
    await _renew(database, await database.read(_read), now=now)


async def disown(database: Database) -> None:
    """Give the objects up before a copy of a database runs: it may read and write, and never deletes any.

    To the mark, a copy that runs while the original rests is the original itself; this is how it learns that it is not.
    """
    await database.write(_lose)


async def _renew(database: Database, row: _Row, *, now: float | None = None) -> None:
    def draw(connection: Connection) -> _Row:
        mine = sa.update(_TABLE).where(_TABLE.c.next_secret.is_(None), _TABLE.c.secret.is_not_distinct_from(row.secret))
        connection.execute(mine.values(next_secret=secrets.token_hex(16)))
        return _read(connection)

    drawn = (await database.write(draw)).next_secret
    if drawn is None:
        return  # another replica has renewed it meanwhile
    await _objects(database).put(database.bytes.mark, drawn.encode())

    def finish(connection: Connection) -> None:
        done = sa.update(_TABLE).where(_TABLE.c.next_secret == drawn)
        values = {} if now is None else {"renewed": now}
        connection.execute(done.values(secret=drawn, next_secret=None, **values))

    await database.write(finish)


def _lose(connection: Connection) -> None:
    connection.execute(sa.update(_TABLE).values(secret=_LOST, next_secret=None))


def _read(connection: Connection) -> _Row:
    columns = (_TABLE.c.name, _TABLE.c.secret, _TABLE.c.next_secret, _TABLE.c.renewed)
    return _Row(*connection.execute(sa.select(*columns)).one())


async def _marked(objects: Objects, mark: str) -> str | None:
    try:
        (found,) = await objects.get(mark)
    except BytesLost:
        return None
    return found.decode("ascii", "replace")


def _objects(database: Database) -> Objects:
    if database.bytes.objects is None:
        raise BytesUnavailable("this service was told of no object store: set bytes_url")
    return database.bytes.objects


def _missing(database: Database) -> str:
    return (
        f"the object store has no {database.bytes.mark}, so it is not the one with this database's objects: is the "
        "folder mounted, is bytes_url the one of before? If they were moved there, run `lossguard db own-objects`"
    )
