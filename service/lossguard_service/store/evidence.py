"""Everything the store knows of one run that a verdict may rest on, from one snapshot."""

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire.errors import ChunkError, UnsupportedVersion
from lossguard.wire.frame import Frames
from lossguard.wire.incident import Incident
from lossguard_service.store import schema
from lossguard_service.store.bytes import BytesLost
from lossguard_service.store.checkpoints import Checkpoint, checkpoints_of
from lossguard_service.store.chunks import cut, decoded, rows_of
from lossguard_service.store.coverage import Drops, Span, drops_of, spans_of
from lossguard_service.store.hot import Hot
from lossguard_service.store.incidents import incidents_of
from lossguard_service.store.lineage import Attempt, lineage
from lossguard_service.store.runs import Run, attempts_of, run_of


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


_RUN = Hot(
    sa.select(schema.runs).where(
        schema.runs.c.project == sa.bindparam("project"), schema.runs.c.name == sa.bindparam("name")
    )
)


_FROM = Hot(
    sa.select(schema.chunks.c.index)
    .where(schema.chunks.c.run_id == sa.bindparam("run"), schema.chunks.c.attempt == sa.bindparam("attempt"))
    .where(schema.chunks.c.first_step <= sa.bindparam("step"))
    .order_by(schema.chunks.c.index.desc())
    .limit(1)
)
"""The chunk that a step lies in or after: chunks before it need not be looked at, and most exports are of the end."""


def evidence_of(connection: Connection, project: str, name: str, first: int, last: int) -> Evidence | None:
    """What a verdict about step `last` may rest on, with the frames of steps `first` to `last`; None if unknown."""
    rows = _RUN.rows(connection, {"project": project, "name": name})
    return _evidence(connection, run_of(rows[0]), first, last) if rows else None


def _evidence(connection: Connection, run: Run, first: int, last: int) -> Evidence:
    attempts = tuple(attempts_of(connection, run.id))
    stretches = {part.attempt: part for part in lineage(attempts)}
    counted = [one for one in checkpoints_of(connection, run.id) if one.attempt in stretches]
    incidents = [one.incident for one in incidents_of(connection, run.id)]
    return Evidence(
        run=run,
        attempts=attempts,
        spans=spans_of(connection, run.id),
        drops=drops_of(connection, run.id) if run.dropped_frames else (),
        incidents=tuple(sorted(incidents, key=lambda incident: (incident.onset_step, incident.number))),
        checkpoints=tuple(one for one in counted if stretches[one.attempt].holds(one.step)),
        frames=frames_of(connection, run.id, attempts, first, last),
    )


def frames_of(
    connection: Connection, run_id: int, attempts: tuple[Attempt, ...], first: int, last: int
) -> tuple[Frames, ...]:
    """The lineage's frames of steps `first` to `last`, in step order.

    None at all where a chunk's bytes rotted or went: they are as good as missing, and must not stop a verdict. Those of
    a later version are not missing, but for another replica to read.

    Raises:
        UnsupportedVersion, NewerSegment: this replica must be updated.
    """
    try:
        return tuple(_frames(connection, run_id, attempts, first, last))
    except UnsupportedVersion:
        raise
    except (ChunkError, BytesLost):
        return ()


def _frames(
    connection: Connection, run_id: int, attempts: tuple[Attempt, ...], first: int, last: int
) -> Iterator[Frames]:
    for part in lineage(attempts):
        until = last if part.limit is None else min(last, part.limit)
        after = max(first - 1, part.start_step)
        if after >= until:
            continue
        place = {"run": run_id, "attempt": part.attempt, "step": after + 1}
        found = _FROM.run(connection, place)
        begin = found[0][0] if found else 0
        rows = rows_of(connection, run_id, first=after + 1, last=until, attempt=part.attempt, from_index=begin)
        wanted = [row.index for row in rows if row.index < part.next_index]
        if not wanted:
            continue
        for _, block in decoded(connection, run_id, part.attempt, wanted[0], wanted[-1] + 1):
            frames = cut(block, after=after, until=until)
            if len(frames):
                yield frames
