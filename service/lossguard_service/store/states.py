"""Snapshots of detector states, so that a replica that has not seen a run need not replay all of it.

A state is a function of the chunks, so a snapshot is only a shortcut: losing all of them loses nothing. A few are kept
per run, the old ones ever further apart, because a later attempt may take the run back to any step.
"""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema

KEPT: Final = 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A detector state at rest.

    Attributes:
        sequence: 1, 2, ... within the run.
        position: how far it had judged, as `lossguard_service.incidents.position` writes it.
        frames: frames judged.
    """

    sequence: int
    position: Any
    frames: int


def snapshots_of(connection: Connection, run_id: int) -> list[Snapshot]:
    """The run's snapshots without their states, the newest first."""
    table = schema.detector_states
    query = (
        sa.select(table.c.sequence, table.c.position, table.c.frames)
        .where(table.c.run_id == run_id)
        .order_by(table.c.sequence.desc())
    )
    return [Snapshot(*row) for row in connection.execute(query)]


def state_of(connection: Connection, run_id: int, sequence: int) -> bytes:
    """The state in a snapshot."""
    table = schema.detector_states
    query = sa.select(table.c.state).where(table.c.run_id == run_id, table.c.sequence == sequence)
    return bytes(connection.execute(query).scalar_one())


def add(connection: Connection, run_id: int, position: Any, frames: int, state: bytes) -> None:
    """Keep a snapshot, and drop one if there are too many."""
    table = schema.detector_states
    kept = snapshots_of(connection, run_id)
    sequence = kept[0].sequence + 1 if kept else 1
    connection.execute(
        sa.insert(table).values(run_id=run_id, sequence=sequence, position=position, frames=frames, state=state)
    )
    surplus = superfluous([snapshot.frames for snapshot in kept])
    if len(kept) >= KEPT:
        connection.execute(sa.delete(table).where(table.c.run_id == run_id, table.c.sequence == kept[surplus].sequence))


def superfluous(frames: list[int]) -> int:
    """Which of the snapshots, newest first, is missed least: the one in the tightest place relative to its age.

    >>> superfluous([4000, 3000, 2000, 1000])
    1
    """
    if len(frames) < 3:
        return len(frames) - 1
    newest = frames[0]
    cost = [(frames[i - 1] - frames[i + 1]) / (newest - frames[i] + 1) for i in range(1, len(frames) - 1)]
    best = min(cost)
    return 1 + max(place for place, value in enumerate(cost) if value == best)
