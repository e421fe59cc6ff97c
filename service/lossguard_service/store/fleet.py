"""The whole fleet at a glance, from one snapshot: what `/metrics` tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire.incident import SEVERITY
from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import StoredIncident, stored_incident
from lossguard_service.store.runs import Run, run_of

MOST_RECENT: Final = 3
RECENT_SECONDS: Final = 900.0
"""A divergence of five steps may begin and end between two scrapes, so what has ended stays for a while."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Active runs and counts.

    Attributes:
        runs: active runs, by project and name.
        incidents: number of incidents by (run id, kind, open).
        verdicts: number of verdicts ever given, by (project, outcome).
        recent: incidents of the active runs that are open or were until a moment ago, notices left out, each with its
            run's id; the newest `MOST_RECENT` of a run.
    """

    runs: list[Run]
    incidents: Mapping[tuple[int, str, bool], int]
    verdicts: Mapping[tuple[str, str], int]
    recent: Sequence[tuple[int, StoredIncident]] = ()


async def fleet(database: Database, *, now: float, active_seconds: float, goodbye_seconds: float) -> Fleet:
    """The fleet as of now.

    Args:
        database: where it is.
        now: Unix seconds.
        active_seconds: a run that was not heard of for so long is left out.
        goodbye_seconds: one that ended is left out after so long, when its last state has been scraped.
    """
    runs, incidents, verdicts = schema.runs, schema.incidents, schema.verdicts
    active = sa.and_(
        runs.c.last_seen > now - active_seconds,
        sa.or_(runs.c.stop_reason.is_(None), runs.c.last_seen > now - goodbye_seconds),
    )
    is_open = incidents.c.end_step.is_(None)
    counts = (
        sa.select(incidents.c.run_id, incidents.c.kind, is_open, sa.func.count())
        .join(runs, runs.c.id == incidents.c.run_id)
        .where(active, incidents.c.superseded.is_(False))
        .group_by(incidents.c.run_id, incidents.c.kind, is_open)
    )
    judged = sa.select(verdicts.c.project, verdicts.c.outcome, sa.func.count()).group_by(
        verdicts.c.project, verdicts.c.outcome
    )

    loud = (
        sa.select(incidents)
        .join(runs, runs.c.id == incidents.c.run_id)
        .where(
            active,
            incidents.c.superseded.is_(False),
            incidents.c.kind.in_([kind for kind, severity in SEVERITY.items() if severity != "info"]),
            sa.or_(is_open, incidents.c.updated > now - RECENT_SECONDS),
        )
        .order_by(incidents.c.run_id, incidents.c.sequence.desc())
    )

    def read(connection: Connection) -> Fleet:
        recent: dict[int, list[StoredIncident]] = {}
        for row in connection.execute(loud):
            mine = recent.setdefault(row.run_id, [])
            if len(mine) < MOST_RECENT:
                mine.append(stored_incident(row))
        query = sa.select(runs).where(active).order_by(runs.c.project, runs.c.name)
        return Fleet(
            runs=[run_of(row) for row in connection.execute(query)],
            incidents={(run, kind, bool(still)): count for run, kind, still, count in connection.execute(counts)},
            verdicts={(project, outcome): count for project, outcome, count in connection.execute(judged)},
            recent=[(run_id, one) for run_id, mine in recent.items() for one in mine],
        )

    return await database.read(read)
