"""The whole fleet at a glance, from one snapshot: what `/metrics` tells."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.runs import Run, run_of


@dataclass(frozen=True, slots=True)
class Fleet:
    """Active runs and counts.

    Attributes:
        runs: active runs, by project and name.
        incidents: number of incidents by (run id, kind, open).
        verdicts: number of verdicts ever given, by (project, outcome).
    """

    runs: list[Run]
    incidents: Mapping[tuple[int, str, bool], int]
    verdicts: Mapping[tuple[str, str], int]


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

    def read(connection: Connection) -> Fleet:
        query = sa.select(runs).where(active).order_by(runs.c.project, runs.c.name)
        return Fleet(
            runs=[run_of(row) for row in connection.execute(query)],
            incidents={(run, kind, bool(still)): count for run, kind, still, count in connection.execute(counts)},
            verdicts={(project, outcome): count for project, outcome, count in connection.execute(judged)},
        )

    return await database.read(read)
