"""Incidents at rest: one row per episode, updated in place while it lives, kept when a later attempt supersedes it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from lossguard.wire.incident import Incident, Mover
from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot

_FIELDS = tuple(field.name for field in fields(Incident))
_TASKS, _MOVERS = _FIELDS.index("tasks"), _FIELDS.index("movers")


@dataclass(frozen=True, slots=True)
class StoredIncident:
    """An incident with what the store knows about it.

    Attributes:
        sequence: 1, 2, ... in the order in which the run's incidents were stored; never reused.
        incident: the episode. Detectors number theirs 0, 1, 2, ...; the service's own (`stalled`) count down from -1.
        superseded: True if a later attempt took the run back to before it, or newer data showed it otherwise.
        opened, updated: Unix seconds.
    """

    sequence: int
    incident: Incident
    superseded: bool
    opened: float
    updated: float

    @property
    def is_open(self) -> bool:
        """True if it has not ended and still counts."""
        return self.incident.end_step is None and not self.superseded

    def to_json(self) -> dict[str, Any]:
        """The incident's JSON form with the store's fields beside it."""
        return self.incident.to_json() | {
            "sequence": self.sequence,
            "superseded": self.superseded,
            "opened": self.opened,
            "updated": self.updated,
        }


async def list_incidents(database: Database, run_id: int, *, superseded: bool = False) -> list[StoredIncident]:
    """The run's incidents by onset; the superseded ones only if asked for."""

    def read(connection: Connection) -> list[StoredIncident]:
        stored = incidents_of(connection, run_id, superseded=superseded)
        return sorted(stored, key=lambda one: (one.incident.onset_step, one.sequence))

    return await database.read(read)


async def open_incidents(database: Database, *, limit: int = 500) -> list[tuple[int, StoredIncident]]:
    """The newest open incidents of all runs, each with its run's id: what the fleet page and `/metrics` ask for."""
    table = schema.incidents

    def read(connection: Connection) -> list[tuple[int, StoredIncident]]:
        query = (
            sa.select(table)
            .where(table.c.superseded.is_(False), table.c.end_step.is_(None))
            .order_by(table.c.opened.desc(), table.c.run_id, table.c.sequence)
            .limit(limit)
        )
        return [(row.run_id, stored_incident(row)) for row in connection.execute(query)]

    return await database.read(read)


_TABLE = schema.incidents
_COLUMNS = tuple(_TABLE.c[name] for name in ("sequence", "superseded", "opened", "updated", *_FIELDS))
_ALL = sa.select(*_COLUMNS).where(_TABLE.c.run_id == sa.bindparam("run")).order_by(_TABLE.c.sequence)
_OF_RUN = {True: Hot(_ALL), False: Hot(_ALL.where(_TABLE.c.superseded.is_(False)))}


def incidents_of(connection: Connection, run_id: int, *, superseded: bool = False) -> list[StoredIncident]:
    """The run's incidents in the order in which they were stored, within a transaction."""
    return [_stored(row) for row in _OF_RUN[superseded].rows(connection, {"run": run_id})]


def insert(connection: Connection, run_id: int, incidents: Sequence[Incident], now: float) -> None:
    """Store new incidents; the caller holds the run's lock."""
    if not incidents:
        return
    table = schema.incidents
    last = connection.execute(sa.select(sa.func.max(table.c.sequence)).where(table.c.run_id == run_id)).scalar() or 0
    connection.execute(
        sa.insert(table),
        [
            {
                "run_id": run_id,
                "sequence": last + place,
                "superseded": False,
                "opened": now,
                "updated": now,
                **asdict(incident),
            }
            for place, incident in enumerate(incidents, start=1)
        ],
    )


def update(connection: Connection, run_id: int, sequence: int, incident: Incident, now: float) -> None:
    """Replace what is known about one episode."""
    table = schema.incidents
    connection.execute(
        sa.update(table)
        .where(table.c.run_id == run_id, table.c.sequence == sequence)
        .values(**asdict(incident), updated=now)
    )


def supersede(connection: Connection, run_id: int, sequences: Iterable[int], now: float) -> None:
    """Mark incidents as superseded."""
    wanted = list(sequences)
    if wanted:
        table = schema.incidents
        connection.execute(
            sa.update(table)
            .where(table.c.run_id == run_id, table.c.sequence.in_(wanted))
            .values(superseded=True, updated=now)
        )


def stored_incident(row: Row[Any]) -> StoredIncident:
    """The incident in a row of `schema.incidents`."""
    values = row._mapping
    return _stored(tuple(values[column.name] for column in _COLUMNS))


def _stored(row: tuple[Any, ...]) -> StoredIncident:
    sequence, superseded, opened, updated, *values = row
    values[_TASKS] = tuple(values[_TASKS])
    # NULL: stored by code of before
    values[_MOVERS] = tuple(Mover.from_json(one) for one in values[_MOVERS] or ())
    return StoredIncident(sequence, Incident(*values), bool(superseded), opened, updated)
