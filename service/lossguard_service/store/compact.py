"""Compaction and retention: chunks' bytes into segments and a pyramid, and old segments down to their pyramid.

Both are restartable at any point and safe with several replicas: each step is one transaction under the run's lock that
first looks whether it is still to be done. Nothing is lost by compaction; retention drops frames that are older than
asked, but for those within `INCIDENT_STEPS` of an incident, and never the pyramid, the incidents or the chunks' index.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from lossguard.wire.chunk import decode
from lossguard.wire.errors import ChunkError
from lossguard.wire.frame import Frames, Schema
from lossguard_service.store import chunks, layout, pyramid, schema, segments
from lossguard_service.store.bytes import BytesLost, Held, Kept, doom, run_folder
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import incidents_of
from lossguard_service.store.runs import attempts_of, run_of

log = logging.getLogger(__name__)
SEGMENT_FRAMES: Final = 4096
INCIDENT_STEPS: Final = 500
SETTLED_SECONDS: Final = 3600.0
"""The rest of an attempt, too short for a segment of full size, becomes one when it has been quiet for so long."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Chunks of one attempt that are to become one segment.

    Attributes:
        attempt: the attempt's number.
        rows: index and frames of each chunk, without gaps; those without frames included.
        schema: the number of their column names.
        folder: the run's, see `run_folder`.
    """

    attempt: int
    rows: tuple[tuple[int, int], ...]
    schema: int
    folder: str


async def compact(database: Database, *, now: float, limit: int = 64) -> int:
    """Make up to `limit` segments out of what lies ready, whatever run it belongs to; returns how many were made."""
    made = 0
    for run_id in await database.read(lambda connection: _ready(connection, now)):
        try:
            while made < limit and await compact_one(database, run_id, now=now):
                made += 1
        except (BytesLost, ChunkError):
            # Its chunks stay as they are, and the other runs have their turn.
            log.exception("the chunks of run %d cannot be compacted", run_id)
    return made


async def compact_one(database: Database, run_id: int, *, now: float) -> bool:
    """Make the run's next segment; False if there is none to make."""

    def read(connection: Connection) -> tuple[_Plan, dict[int, Held]] | None:
        plan = _next(connection, run_id, now)
        if plan is None:
            return None
        first, last = plan.rows[0][0], plan.rows[-1][0]
        return plan, chunks.bytes_of(connection, run_id, plan.attempt, first, last)

    found = await database.read(read)
    if found is None:
        return False
    plan, held = found
    (data,) = await database.bytes.fetch([held])
    del found, held  # `data` alone holds the chunks now, and `_build` takes them out of it
    laid, levels = await asyncio.to_thread(_build, plan, data)
    first, end = plan.rows[0][0], plan.rows[-1][0] + 1
    key = {"run_id": run_id, "attempt": plan.attempt, "first_index": first}
    row = {
        **key,
        "next_index": end,
        "first_step": laid.first_step,
        "last_step": laid.last_step,
        "frames": laid.frames,
        "schema": plan.schema,
        "is_full": True,
        "created": now,
    }

    name = f"{plan.attempt}-{first:08}"
    kept = [
        await keep_parts(database, plan.folder, f"{kind}/{name}", some)
        for kind, some in (("segments", laid.parts), ("pyramids", levels))
    ]

    def write(connection: Connection) -> bool:
        _lock(connection, run_id)
        table = schema.chunk_bytes
        mine = (table.c.run_id == run_id, table.c.attempt == plan.attempt, table.c.index.between(first, end - 1))
        if connection.execute(sa.select(sa.func.count()).where(*mine)).scalar_one() != len(plan.rows):
            return False  # another replica was faster
        for one in kept:
            database.bytes.check(one)
        connection.execute(sa.insert(schema.segments), row)
        connection.execute(sa.insert(schema.segment_parts), segments.rows_for(kept[0], laid.parts, key))
        connection.execute(sa.insert(schema.pyramid), segments.rows_for(kept[1], levels, key))
        objects = connection.execute(sa.select(table.c.object).where(*mine, table.c.object.is_not(None))).scalars()
        doom(connection, run_id, plan.attempt, first, "chunks", list(objects), now)
        for gone in (schema.chunk_bytes, schema.chunk_summaries):
            connection.execute(
                sa.delete(gone).where(
                    gone.c.run_id == run_id, gone.c.attempt == plan.attempt, gone.c.index.between(first, end - 1)
                )
            )
        return True

    if not await database.write(write):
        for one in kept:
            await database.bytes.discard(one)
    return True


async def keep_parts(database: Database, folder: str, name: str, parts: Mapping[int, bytes]) -> Kept:
    """Put a segment's parts, or its pyramid's, where they belong; into their rows if there is no object store."""
    if database.bytes.objects is None:
        return Kept(b"")
    whole, index = await asyncio.to_thread(segments.packed, parts)
    return await database.bytes.keep(folder, name, whole, index=index)


async def retain(
    database: Database, *, now: float, full_seconds: float | None, of_projects: Mapping[str, float] | None = None
) -> int:
    """Drop the frames of segments that are old enough and away from incidents; returns how many.

    Args:
        database: where.
        now: Unix seconds.
        full_seconds: how long frames are kept; None for ever.
        of_projects: the same for projects that have a time of their own.
    """
    own = dict(of_projects or {})
    table, runs = schema.segments, schema.runs
    is_old = [sa.and_(runs.c.project == name, table.c.created < now - seconds) for name, seconds in own.items()]
    if full_seconds is not None:
        is_old.append(sa.and_(runs.c.project.not_in(list(own)), table.c.created < now - full_seconds))
    if not is_old:
        return 0

    def read(connection: Connection) -> list[tuple[int, int, int, float]]:
        query = (
            sa.select(table.c.run_id, table.c.attempt, table.c.first_index, runs.c.project)
            .join(runs, runs.c.id == table.c.run_id)
            .where(table.c.is_full.is_(True), sa.or_(*is_old))
        )
        return [(row[0], row[1], row[2], own.get(row[3], full_seconds or 0.0)) for row in connection.execute(query)]

    dropped = 0
    for run_id, attempt, first_index, seconds in await database.read(read):

        def write(
            connection: Connection,
            run_id: int = run_id,
            attempt: int = attempt,
            first_index: int = first_index,
            seconds: float = seconds,
        ) -> bool:
            run = run_of(_lock(connection, run_id))
            rows = segments.rows_of(connection, run_id, attempt=attempt)
            row = next((one for one in rows if one.first_index == first_index), None)
            # While a run trains, a restart may need its frames judged anew.
            if row is None or not row.is_full or (run.stop_reason is None and run.last_seen > now - seconds):
                return False
            limit = {one.number: one.superseded_after for one in attempts_of(connection, run_id)}[attempt]
            if limit is not None and row.first_step <= limit < row.last_step:
                return False  # a bucket of the pyramid would hold what counts and what does not
            for stored in incidents_of(connection, run_id, superseded=True):
                onset, end = stored.incident.onset_step, stored.incident.end_step
                until = stored.incident.peak_step if end is None else end
                if row.first_step <= until + INCIDENT_STEPS and row.last_step >= onset - INCIDENT_STEPS:
                    return False
            parts, head = schema.segment_parts, schema.segments
            these = (parts.c.run_id == run_id, parts.c.attempt == attempt, parts.c.first_index == first_index)
            objects = connection.execute(sa.select(parts.c.object).where(*these, parts.c.object.is_not(None))).scalars()
            doom(connection, run_id, attempt, first_index, "segment", list(objects), now)
            connection.execute(sa.delete(parts).where(*these))
            connection.execute(
                sa.update(head)
                .where(head.c.run_id == run_id, head.c.attempt == attempt, head.c.first_index == first_index)
                .values(is_full=False)
            )
            return True

        dropped += await database.write(write)
    return dropped


def _lock(connection: Connection, run_id: int) -> sa.Row[tuple[object, ...]]:
    return connection.execute(sa.select(schema.runs).where(schema.runs.c.id == run_id).with_for_update()).one()


def _ready(connection: Connection, now: float) -> list[int]:
    """Runs that may have a segment to make: enough frames for a full one, or nothing heard of them for long.

    One statement for all: to ask a thousand runs that train one by one took a replica a tenth of its time.
    """
    held, table, runs = schema.chunk_bytes, schema.chunks, schema.runs
    same = (table.c.run_id == held.c.run_id, table.c.attempt == held.c.attempt, table.c.index == held.c.index)
    query = (
        sa.select(held.c.run_id)
        .join(table, sa.and_(*same))
        .join(runs, runs.c.id == held.c.run_id)
        .group_by(held.c.run_id)
        .having(
            sa.or_(
                sa.func.sum(table.c.frames) >= SEGMENT_FRAMES,
                sa.func.max(runs.c.last_seen) < now - SETTLED_SECONDS,
            )
        )
        .order_by(held.c.run_id)
    )
    return list(connection.execute(query).scalars())


def _next(connection: Connection, run_id: int, now: float) -> _Plan | None:
    row = connection.execute(sa.select(schema.runs).where(schema.runs.c.id == run_id)).one_or_none()
    if row is None:
        return None
    run = run_of(row)
    quiet = run.last_seen < now - SETTLED_SECONDS
    ends = segments.ends_of(connection, run_id)
    table = schema.chunks
    for attempt in attempts_of(connection, run_id):
        start = ends.get(attempt.number, 0)
        query = (
            sa.select(table.c.index, table.c.frames, table.c.schema, table.c.first_step, table.c.last_step)
            .where(table.c.run_id == run_id, table.c.attempt == attempt.number)
            .where(table.c.index >= start, table.c.index < attempt.next_index)
            .order_by(table.c.index)
            .limit(SEGMENT_FRAMES)
        )
        found: list[tuple[int, int]] = []
        number, total, is_done, through = None, 0, False, 0
        for index, frames, names, first_step, last_step in connection.execute(query):
            if frames and number is not None and (names != number or first_step <= through):
                is_done = True  # other columns, or steps again: the segment ends here, short as it is
                break
            if frames:
                number, through = names, last_step
            found.append((index, frames))
            total += frames
            if total >= SEGMENT_FRAMES:
                is_done = True
                break
        if number is not None and total and (is_done or quiet):
            return _Plan(attempt.number, tuple(found), number, run_folder(run.project, run.name))
    return None


def _build(plan: _Plan, data: dict[int, bytes]) -> tuple[layout.Laid, dict[int, bytes]]:
    """The segment and the parts of its pyramid; takes the chunks out of `data`.

    A segment is large (39 MB with 200 layers of 12 stats), so its stats are here once, laid out as they will be stored.
    """
    counts = [count for _, count in plan.rows if count]
    ends = list(accumulate(counts))
    edges = np.array([0, *ends[:-1]], np.int64)
    series = np.empty((0, 0, 0), np.float32)
    names = Schema(())
    rest: list[tuple[NDArray[Any], ...]] = []
    for index, count in plan.rows:
        if not count:
            continue
        block = decode(data.pop(index)).frames
        if not rest:
            names, series = block.schema, np.empty((*block.stats.shape[1:], ends[-1]), np.float32)
        end = ends[len(rest)]
        series[:, :, end - count : end] = block.stats.transpose(1, 2, 0)
        rest.append((block.steps, block.times, block.scalars, block.scalars_present, block.stats_present))
    steps, times, scalars, *present = (np.concatenate(column) for column in zip(*rest, strict=True))
    whole = Frames(names, steps, times, scalars, series.transpose(2, 0, 1), *present)
    laid = layout.Laid(int(steps[0]), int(steps[-1]), len(whole), layout.build(whole))
    return laid, pyramid.build(whole, edges)
