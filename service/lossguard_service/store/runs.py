"""Runs and attempts, as people and the gate read them."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from lossguard.wire.incident import RunStatus
from lossguard_service.store import schema
from lossguard_service.store.database import Database
from lossguard_service.store.hot import Hot
from lossguard_service.store.lineage import Attempt, limits

Phase = Literal["running", "stalled", "finished", "interrupted", "failed"]

_ATTEMPTS = Hot(
    sa.select(*(schema.attempts.c[name] for name in Attempt.__slots__ if name != "superseded_after"))
    .where(schema.attempts.c.run_id == sa.bindparam("run"))
    .order_by(schema.attempts.c.number)
)


@dataclass(frozen=True, slots=True)
class Run:
    """One training of one model, across restarts.

    Attributes:
        id: the row's number.
        project, name: its identity.
        created: when its first chunk came.
        config: what the newest attempt said about itself (`tasks`, `parameters_watched`, `optimizer`, ...).
        status: `healthy`, `recovered` or `diverged` as of `judged_step`.
        attempt: the number of the newest attempt.
        stop_reason: how the newest attempt ended; None if it runs or was killed.
        first_step: of all frames stored; None before the first.
        last_step: the newest attempt's last one, or the step it started from; None before the first.
        judged_step: the last step the detectors have seen; None before the first.
        heard_step: the last step a heartbeat told of, of the newest attempt; its chunk may still be on the way.
        last_seen: when anything came of it, a heartbeat included.
        last_progress: when its last step last rose.
        loss_last: the last `loss` judged; None if it has no such scalar.
        frames: frames stored, superseded ones included.
        dropped_frames: frames that the trainer's side dropped and counted.
        waiting_chunks: chunks that came early and wait for a gap to fill.
        summary: `scalars` (last value by name), `clippy_ratio_max`, `top_layers` ([layer, value] by clipping ratio, at
            most 5), `steps_per_second` and `time` (the trainer's) of the newest frames; non-finite numbers by name.
        revision: rises with every transaction that changes anything about the run.
    """

    id: int
    project: str
    name: str
    created: float
    config: dict[str, Any]
    status: RunStatus
    attempt: int
    stop_reason: str | None
    first_step: int | None
    last_step: int | None
    judged_step: int | None
    heard_step: int | None
    last_seen: float
    last_progress: float
    loss_last: float | None
    frames: int
    dropped_frames: int
    waiting_chunks: int
    summary: dict[str, Any]
    revision: int

    def phase(self, now: float, stalled_seconds: float) -> Phase:
        """Whether it trains; judged on read, so that silence needs no writer to be seen."""
        match self.stop_reason:
            case "finished" | "interrupted" | "failed" as reason:
                return reason
        return "stalled" if now - self.last_progress > stalled_seconds else "running"


def run_of(row: Row[Any] | tuple[Any, ...]) -> Run:
    """The run in a row of `schema.runs`."""
    return Run(*row)


async def list_runs(
    database: Database,
    *,
    project: str | None = None,
    name: str | None = None,
    status: str | None = None,
    limit: int = 200,
    offset: int = 0,
) -> list[Run]:
    """Runs, the one heard of last first."""
    query = sa.select(schema.runs).order_by(schema.runs.c.last_seen.desc(), schema.runs.c.id.desc())
    for column, value in ((schema.runs.c.project, project), (schema.runs.c.name, name), (schema.runs.c.status, status)):
        if value is not None:
            query = query.where(column == value)

    def read(connection: Connection) -> list[Run]:
        return [run_of(row) for row in connection.execute(query.limit(limit).offset(offset))]

    return await database.read(read)


async def find_run(database: Database, project: str, name: str) -> Run | None:
    """The run, or None if no chunk of it ever came."""

    def read(connection: Connection) -> Run | None:
        query = sa.select(schema.runs).where(schema.runs.c.project == project, schema.runs.c.name == name)
        row = connection.execute(query).one_or_none()
        return None if row is None else run_of(row)

    return await database.read(read)


async def list_attempts(database: Database, run_id: int) -> list[Attempt]:
    """The run's attempts in order of their numbers."""
    return await database.read(lambda connection: attempts_of(connection, run_id))


def attempts_of(connection: Connection, run_id: int) -> list[Attempt]:
    """The same within a transaction."""
    attempts = [Attempt(*row) for row in _ATTEMPTS.rows(connection, {"run": run_id})]
    limit = limits(attempts)
    return [replace(attempt, superseded_after=limit[attempt.number]) for attempt in attempts]
