"""Everything the store knows that a verdict may rest on, from one snapshot.

Coverage is answered in SQL: a run of a million steps has some sixteen thousand chunks, and only the few places where
one does not follow on the other leave the database.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire.errors import ChunkError
from lossguard.wire.frame import Frames
from lossguard.wire.incident import Incident
from lossguard_service.store import schema
from lossguard_service.store.checkpoints import Checkpoint, checkpoints_of
from lossguard_service.store.chunks import cut, decoded, rows_of
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import incidents_of
from lossguard_service.store.lineage import Attempt, lineage
from lossguard_service.store.runs import Run, attempts_of, run_of


@dataclass(frozen=True, slots=True)
class Span:
    """Chunks of one attempt that follow on one another without a hole.

    Attributes:
        attempt: the attempt's number.
        first, last: its steps, each of which has its frame.
    """

    attempt: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Drops:
    """Frames that a chunk reports as dropped.

    Attributes:
        attempt: the attempt's number.
        first_step: the first step of the chunk that says so; None if it carries no frames.
        counts: how many, by reason.
    """

    attempt: int
    first_step: int | None
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known about a run up to a step.

    Attributes:
        run: the run's row.
        attempts: in order of their numbers.
        spans: what is stored, by attempt and step.
        drops: every report of dropped frames.
        incidents: those that count, by onset.
        checkpoints: those of the lineage, by step.
        frames: the frames of the lineage in the window that was asked for, in step order.
    """

    run: Run
    attempts: tuple[Attempt, ...]
    spans: tuple[Span, ...]
    drops: tuple[Drops, ...]
    incidents: tuple[Incident, ...]
    checkpoints: tuple[Checkpoint, ...]
    frames: tuple[Frames, ...]


async def find_evidence(database: Database, project: str, name: str, first: int, last: int) -> Evidence | None:
    """What a verdict about step `last` may rest on, with the frames of steps `first` to `last`; None if unknown."""

    def read(connection: Connection) -> Evidence | None:
        query = sa.select(schema.runs).where(schema.runs.c.project == project, schema.runs.c.name == name)
        row = connection.execute(query).one_or_none()
        return None if row is None else _evidence(connection, run_of(row), first, last)

    return await database.read(read)


def _evidence(connection: Connection, run: Run, first: int, last: int) -> Evidence:
    attempts = tuple(attempts_of(connection, run.id))
    stretches = {part.attempt: part for part in lineage(attempts)}
    counted = [one for one in checkpoints_of(connection, run.id) if one.attempt in stretches]
    incidents = [one.incident for one in incidents_of(connection, run.id)]
    return Evidence(
        run=run,
        attempts=attempts,
        spans=tuple(_spans(connection, run.id)),
        drops=tuple(_drops(connection, run.id)),
        incidents=tuple(sorted(incidents, key=lambda incident: (incident.onset_step, incident.number))),
        checkpoints=tuple(one for one in counted if stretches[one.attempt].holds(one.step)),
        frames=_readable(connection, run.id, attempts, first, last),
    )


def _spans(connection: Connection, run_id: int) -> list[Span]:
    table = schema.chunks
    before = sa.func.sum(table.c.frames).over(partition_by=table.c.attempt, order_by=table.c.index) - table.c.frames
    whole = (
        sa.select(
            table.c.attempt,
            table.c.first_step,
            table.c.last_step,
            table.c.frames,
            # Constant as long as each chunk begins where the one before ended.
            (table.c.first_step - before).label("island"),
        )
        .where(table.c.run_id == run_id, table.c.frames > 0)
        .where(table.c.frames == table.c.last_step - table.c.first_step + 1)
        .subquery()
    )
    first, last = sa.func.min(whole.c.first_step), sa.func.max(whole.c.last_step)
    query = sa.select(whole.c.attempt, first, last, sa.func.sum(whole.c.frames)).group_by(
        whole.c.attempt, whole.c.island
    )
    rows = connection.execute(query).all()
    holey = _around_holes(connection, run_id)
    # A chunk that repeats steps can make two stretches with a hole between them share their constant.
    if any(frames != last_step - first_step + 1 for _, first_step, last_step, frames in rows):
        whole_chunks = [
            Span(row.attempt, row.first_step, row.last_step)
            for row in rows_of(connection, run_id)
            if row.first_step is not None
            and row.last_step is not None
            and row.frames == row.last_step - row.first_step + 1
        ]
        return [*whole_chunks, *holey]
    return [*(Span(*row[:3]) for row in rows), *holey]


def _around_holes(connection: Connection, run_id: int) -> Iterator[Span]:
    """What is there of chunks that have holes in them."""
    table = schema.chunks
    query = (
        sa.select(table.c.attempt, table.c.first_step, table.c.last_step, table.c.missing)
        .where(table.c.run_id == run_id, table.c.frames > 0)
        .where(table.c.frames != table.c.last_step - table.c.first_step + 1)
    )
    for attempt, first, last, missing in connection.execute(query):
        start = first
        for gap_first, gap_last in missing:
            if gap_first > start:
                yield Span(attempt, start, gap_first - 1)
            start = gap_last + 1
        if missing and start <= last:
            yield Span(attempt, start, last)


def _drops(connection: Connection, run_id: int) -> list[Drops]:
    table = schema.chunks
    query = (
        sa.select(table.c.attempt, table.c.first_step, table.c.drops)
        .where(table.c.run_id == run_id, table.c.drops != {})
        .order_by(table.c.attempt, table.c.index)
    )
    return [Drops(attempt, first_step, counts) for attempt, first_step, counts in connection.execute(query)]


def _readable(
    connection: Connection, run_id: int, attempts: tuple[Attempt, ...], first: int, last: int
) -> tuple[Frames, ...]:
    """The frames, or none: bytes that rotted in the database are as good as missing, and must not stop a verdict."""
    try:
        return tuple(_frames(connection, run_id, attempts, first, last))
    except ChunkError:
        return ()


def _frames(
    connection: Connection, run_id: int, attempts: tuple[Attempt, ...], first: int, last: int
) -> Iterator[Frames]:
    for part in lineage(attempts):
        until = last if part.limit is None else min(last, part.limit)
        if part.start_step >= until:
            continue
        rows = rows_of(connection, run_id, first=max(first, part.start_step + 1), last=until, attempt=part.attempt)
        wanted = [row.index for row in rows if row.index < part.next_index]
        if not wanted:
            continue
        for _, block in decoded(connection, run_id, part.attempt, wanted[0], wanted[-1] + 1):
            frames = cut(block, after=max(first - 1, part.start_step), until=until)
            if len(frames):
                yield frames
