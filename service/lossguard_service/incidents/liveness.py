"""Silence into incidents: a run that neither steps nor says goodbye gets a `stalled` incident.

Reads judge silence by themselves (`Run.phase`); this sweep writes it down, so that it has a beginning, an end and an
alert. The time comes in as an argument; any replica may sweep, and two at once write one incident.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.incidents import track
from lossguard_service.incidents.announce import announce
from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import incidents_of
from lossguard_service.store.record import lock_run, update_run


async def sweep(database: Database, *, now: float, stalled_seconds: float, destinations: Sequence[str] = ()) -> int:
    """Open and announce a `stalled` incident for every silent run without one; returns how many runs are newly so."""
    runs, incidents = schema.runs, schema.incidents
    known = (
        sa.select(sa.literal(1))
        .where(
            incidents.c.run_id == runs.c.id,
            incidents.c.number < 0,
            incidents.c.superseded.is_(False),
            incidents.c.end_step.is_(None),
        )
        .exists()
    )
    silent = sa.select(runs.c.project, runs.c.name).where(
        runs.c.stop_reason.is_(None), runs.c.last_progress < now - stalled_seconds, ~known
    )

    def read(connection: Connection) -> list[tuple[str, str]]:
        return [(project, name) for project, name in connection.execute(silent)]

    opened = 0
    for project, name in await database.read(read):

        def write(connection: Connection, project: str = project, name: str = name) -> bool:
            run = lock_run(connection, project, name)
            if run is None or run.phase(now, stalled_seconds) != "stalled":
                return False  # it came back between the read and the lock
            stored = incidents_of(connection, run.id)
            track.stall(connection, run.id, stored, run.last_step or 0, now - run.last_progress, now)
            after = incidents_of(connection, run.id)
            announce(connection, run.id, (project, name), stored, after, destinations=destinations, now=now)
            update_run(connection, run.id, {})
            return True

        opened += await database.write(write)
    return opened
