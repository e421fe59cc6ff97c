"""The whole fleet at a glance, from one snapshot: what `/metrics` tells.

Bounded for a thousand active runs: no chunk is read but the first that waits behind a gap, of incidents the newest few,
and of runs not what their trainers said about themselves, which may be long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard.wire.incident import SEVERITY
from lossguard.wire.verdict import Verdict
from lossguard_service.store import drops, schema
from lossguard_service.store.columns import Document
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import StoredIncident, stored_incident
from lossguard_service.store.runs import Run, run_of

MOST_RECENT: Final = 3
MOST_VERDICTS: Final = 100
RECENT_SECONDS: Final = 900.0
"""A divergence of five steps may begin and end between two scrapes, so what has ended stays for a while."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Active runs and counts.

    Attributes:
        runs: active runs, by project and name; their `config` is left out.
        incidents: number of incidents by (run id, kind, open).
        verdicts: number of verdicts ever given, by (project, outcome).
        recent: incidents of the active runs that are open or were until a moment ago, notices left out, each with its
            run's id; the newest `MOST_RECENT` of a run.
        gap_steps: by run id, of runs with chunks that wait: how many steps are missing before the first of them.
        drops: by run id and reason, frames that the trainer's side dropped, of runs where it dropped some.
        judged: verdicts of a moment ago, the newest `MOST_VERDICTS`, those that let nothing through first.
        waiting: by destination of webhooks, how many notices wait and when the oldest came about (None: none waits).
        database_bytes: how large the database is.
    """

    runs: Sequence[Run]
    incidents: Mapping[tuple[int, str, bool], int]
    verdicts: Mapping[tuple[str, str], int]
    recent: Sequence[tuple[int, StoredIncident]] = ()
    gap_steps: Mapping[int, int] = field(default_factory=dict)
    drops: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    judged: Sequence[Verdict] = ()
    waiting: Mapping[str, tuple[int, float | None]] = field(default_factory=dict)
    database_bytes: int = 0


async def fleet(
    database: Database,
    *,
    now: float,
    active_seconds: float,
    goodbye_seconds: float,
    destinations: Sequence[str] = (),
) -> Fleet:
    """The fleet as of now.

    Args:
        database: where it is.
        now: Unix seconds.
        active_seconds: a run that was not heard of for so long is left out.
        goodbye_seconds: one that ended is left out after so long, when its last state has been scraped.
        destinations: the keys of the webhooks that are told of incidents.
    """
    runs, incidents = schema.runs, schema.incidents
    active = sa.and_(
        runs.c.last_seen > now - active_seconds,
        sa.or_(runs.c.stop_reason.is_(None), runs.c.last_seen > now - goodbye_seconds),
    )
    columns = [sa.literal({}, Document).label("config") if one.name == "config" else one for one in runs.c]
    seen = sa.select(*columns).where(active).order_by(runs.c.project, runs.c.name)
    is_open = incidents.c.end_step.is_(None)
    counts = (
        sa.select(incidents.c.run_id, incidents.c.kind, is_open, sa.func.count())
        .join(runs, runs.c.id == incidents.c.run_id)
        .where(active, incidents.c.superseded.is_(False))
        .group_by(incidents.c.run_id, incidents.c.kind, is_open)
    )

    def read(connection: Connection) -> Fleet:
        return Fleet(
            runs=[run_of(row) for row in connection.execute(seen)],
            incidents={(run, kind, bool(still)): count for run, kind, still, count in connection.execute(counts)},
            verdicts=_verdicts(connection),
            recent=_recent(connection, active, now),
            gap_steps=_gap_steps(connection, active),
            drops=drops.of_runs(connection, sa.select(runs.c.id).where(active, runs.c.dropped_frames > 0)),
            judged=_judged(connection, now),
            waiting=_waiting(connection, destinations),
            database_bytes=_bytes(connection),
        )

    return await database.read(read)


def _recent(connection: Connection, active: Any, now: float) -> list[tuple[int, StoredIncident]]:
    table = schema.incidents
    query = (
        sa.select(table)
        .join(schema.runs, schema.runs.c.id == table.c.run_id)
        .where(
            active,
            table.c.superseded.is_(False),
            table.c.kind.in_([kind for kind, severity in SEVERITY.items() if severity != "info"]),
            sa.or_(table.c.end_step.is_(None), table.c.updated > now - RECENT_SECONDS),
        )
        .order_by(table.c.run_id, table.c.sequence.desc())
    )
    found: dict[int, list[StoredIncident]] = {}
    for row in connection.execute(query):
        mine = found.setdefault(row.run_id, [])
        if len(mine) < MOST_RECENT:
            mine.append(stored_incident(row))
    return [(run_id, one) for run_id, mine in found.items() for one in mine]


def _gap_steps(connection: Connection, active: Any) -> dict[int, int]:
    runs, attempts, chunks = schema.runs, schema.attempts, schema.chunks
    query = (
        sa.select(chunks.c.run_id, attempts.c.last_step, attempts.c.start_step, sa.func.min(chunks.c.first_step))
        .join(runs, runs.c.id == chunks.c.run_id)
        .join(attempts, sa.and_(attempts.c.run_id == chunks.c.run_id, attempts.c.number == chunks.c.attempt))
        .where(active, runs.c.waiting_chunks > 0, chunks.c.index > attempts.c.next_index)
        .group_by(chunks.c.run_id, attempts.c.number, attempts.c.last_step, attempts.c.start_step)
    )
    found: dict[int, int] = {}
    for run_id, last, start, first in connection.execute(query):
        before = last if last is not None else start or 0
        missing = 0 if first is None else max(first - before - 1, 0)
        found[run_id] = max(found.get(run_id, 0), missing)
    return found


def _verdicts(connection: Connection) -> dict[tuple[str, str], int]:
    table = schema.verdicts
    query = sa.select(table.c.project, table.c.outcome, sa.func.count()).group_by(table.c.project, table.c.outcome)
    return {(project, outcome): count for project, outcome, count in connection.execute(query)}


def _judged(connection: Connection, now: float) -> list[Verdict]:
    table = schema.verdicts
    query = (
        sa.select(table.c.document)
        .where(table.c.created > now - RECENT_SECONDS)
        .order_by(sa.case((table.c.outcome == "pass", 1), else_=0), table.c.created.desc(), table.c.id)
        .limit(MOST_VERDICTS)
    )
    return [Verdict.from_json(row.document) for row in connection.execute(query)]


def _waiting(connection: Connection, destinations: Sequence[str]) -> dict[str, tuple[int, float | None]]:
    found: dict[str, tuple[int, float | None]] = dict.fromkeys(sorted(destinations), (0, None))
    if found:
        table = schema.outbox
        query = (
            sa.select(table.c.destination, sa.func.count(), sa.func.min(table.c.created))
            .where(table.c.destination.in_(found), table.c.done.is_(None))
            .group_by(table.c.destination)
        )
        found |= {key: (count, oldest) for key, count, oldest in connection.execute(query)}
    return found


def _bytes(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        pages, size = (connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("page_count", "page_size"))
        return int(pages or 0) * int(size or 0)
    return int(connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one())
