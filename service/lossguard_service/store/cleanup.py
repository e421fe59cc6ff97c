"""Objects that no row names: those whose row is gone, and those whose transaction never came.

Both are deleted once they are older than `ByteStore.keep_seconds`, by any number of replicas, at any time, however
often. It is safe because a key is used once: an object that is old and that no row names is never going to be named, as
a transaction names no object older than half that time. Objects outside this database's own folder are not looked at,
and none are deleted while another database lays claim to them (`ownership`).
"""

import logging
from collections import defaultdict
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema, segments
from lossguard_service.store.bytes import BytesUnavailable, run_folder
from lossguard_service.store.database import Database
from lossguard_service.store.ownership import own

_log = logging.getLogger(__name__)
SWEEP_SECONDS: Final = 21_600.0
"""How often all objects are listed: a bucket of ten million takes ten thousand requests."""
ROWS_AT_ONCE: Final = 100


async def clean_up(database: Database, *, now: float, round_seconds: float) -> int:
    """One round of it, called every `round_seconds`; returns how many objects were deleted."""
    if database.bytes.objects is None:
        return 0
    try:
        if not await own(database, now=now, round_seconds=round_seconds):
            return 0
    except BytesUnavailable as error:
        _log.warning("objects are cleaned up later: %s", error)
        return 0
    return await delete_doomed(database, now=now) + await delete_orphans(database, now=now)


async def delete_doomed(database: Database, *, now: float) -> int:
    """Delete the objects whose rows went long enough ago; returns how many."""
    objects, table = database.bytes.objects, schema.doomed_objects
    if objects is None:
        return 0
    place = (table.c.run_id, table.c.attempt, table.c.first_index, table.c.kind)
    due = sa.select(*place, table.c.objects).where(table.c.since < now - database.bytes.keep_seconds)

    def read(connection: Connection) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in connection.execute(due.limit(ROWS_AT_ONCE))]

    deleted = 0
    while rows := await database.read(read):
        keys = [key for row in rows for key in row[-1]]
        await objects.delete(keys)
        await database.write(partial(_forget, places=[row[:-1] for row in rows]))
        deleted += len(keys)
    return deleted


def _forget(connection: Connection, places: list[tuple[Any, ...]]) -> None:
    table = schema.doomed_objects
    place = sa.tuple_(table.c.run_id, table.c.attempt, table.c.first_index, table.c.kind)
    connection.execute(sa.delete(table).where(place.in_(places)))


async def delete_orphans(database: Database, *, now: float) -> int:
    """Delete old objects that no row names, if nobody has looked for `SWEEP_SECONDS`; returns how many."""
    objects, table = database.bytes.objects, schema.object_folders
    if objects is None:
        return 0

    def claim(connection: Connection) -> bool:
        due = sa.update(table).where(table.c.swept <= now - SWEEP_SECONDS).values(swept=now)
        return connection.execute(due).rowcount > 0

    if not await database.write(claim):
        return 0
    deleted, runs = 0, await database.read(_folders)
    async for page in objects.listed(database.bytes.folder):
        old: dict[str, list[str]] = defaultdict(list)
        for one in page:
            place = one.key.split("/")
            if (
                len(place) > 2 and one.modified < now - database.bytes.keep_seconds
            ):  # the probe and the mark have no run
                old[place[1]].append(one.key)
        if not runs.keys() >= old.keys():
            runs = await database.read(_folders)
        for folder, keys in old.items():
            # Asked after they were listed: what is named by now is kept.
            named = await database.read(partial(_named, run_id=runs.get(folder)))
            orphans = [key for key in keys if key not in named]
            if orphans:
                await objects.delete(orphans)
                deleted += len(orphans)
    return deleted


def _folders(connection: Connection) -> dict[str, int]:
    table = schema.runs
    rows = connection.execute(sa.select(table.c.id, table.c.project, table.c.name))
    return {run_folder(project, name): run_id for run_id, project, name in rows}


def _named(connection: Connection, run_id: int | None) -> set[str]:
    """The keys that the run's rows name, also those that `delete_doomed` is still to delete."""
    found: set[str] = set()
    for table in (schema.chunk_bytes, schema.segment_parts, schema.pyramid):
        query = sa.select(table.c.object).where(table.c.run_id == run_id, table.c.object.is_not(None))
        if table is not schema.chunk_bytes:
            query = query.where(table.c.part == segments.PACKED)
        found.update(connection.execute(query).scalars())
    doomed = schema.doomed_objects
    for keys in connection.execute(sa.select(doomed.c.objects).where(doomed.c.run_id == run_id)).scalars():
        found.update(keys)
    return found
