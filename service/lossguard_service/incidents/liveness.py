"""Silence into incidents: a run that neither steps nor says goodbye gets a `stalled` incident.

Reads judge silence by themselves (`Run.phase`); this sweep writes it down, so that it has a beginning, an end and an
alert. The time comes in as an argument; any replica may sweep, and two at once write one incident. Who could not hear
accuses nobody: after an outage of the service or its database, silence counts from the moment it is over.
"""

from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.incidents import track
from lossguard_service.incidents.announce import announce
from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import incidents_of
from lossguard_service.store.record import lock_run, update_run


class Watch:
    """One replica's sweeps, one after the other.

    Args:
        database: where the runs are.
        clock: Unix seconds; this replica hears from now on.
        stalled_seconds: how long a run may be silent.
        sweep_seconds: how often `look` is called.
        destinations: who hears of incidents.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        *,
        stalled_seconds: float,
        sweep_seconds: float,
        destinations: Sequence[str] = (),
    ) -> None:
        self._database = database
        self._clock = clock
        self._stalled_seconds = stalled_seconds
        self._deaf_seconds = max(2.5 * sweep_seconds, stalled_seconds / 2)
        self._destinations = destinations
        self._hears_since = self._looked = clock()

    async def look(self) -> int:
        """Sweep, unless this replica has not heard for long enough; returns how many runs are newly silent."""
        now = self._clock()
        if now - self._looked > self._deaf_seconds:
            # The database was away, or this process was stopped: what was sent meanwhile waits on the trainers' side.
            self._hears_since = now
        opened = 0
        if now - self._hears_since >= self._stalled_seconds:
            opened = await sweep(
                self._database, now=now, stalled_seconds=self._stalled_seconds, destinations=self._destinations
            )
        else:
            await self._database.read(lambda connection: connection.execute(sa.select(sa.literal(1))).scalar_one())
        self._looked = now
        return opened


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
