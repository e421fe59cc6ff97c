"""What ingest writes about runs and attempts; each function works inside a transaction that holds the run's lock.

The lock is the run's row: SELECT ... FOR UPDATE on PostgreSQL; on SQLite the write transaction itself is the lock.
"""

from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.hot import Hot
from lossguard_service.store.lineage import Attempt
from lossguard_service.store.runs import Run, run_of
from lossguard_service.store.upsert import insert_or_ignore

# Building a statement costs as much as running it, so those of every chunk are built once for each set of columns.
_LOCK = (
    sa.select(schema.runs)
    .where(schema.runs.c.project == sa.bindparam("project"), schema.runs.c.name == sa.bindparam("name"))
    .with_for_update()
)


_LOCK_REVISION = Hot(
    sa.select(schema.runs.c.id, schema.runs.c.revision)
    .where(schema.runs.c.project == sa.bindparam("project"), schema.runs.c.name == sa.bindparam("name"))
    .with_for_update()
)


@lru_cache
def run_update(names: tuple[str, ...]) -> sa.Update:
    """Set these columns of run `run_id`, from values of the name `run_` and the column's; its revision rises."""
    table = schema.runs
    values = {name: sa.bindparam(f"run_{name}", type_=table.c[name].type) for name in names}
    return (
        sa.update(table)
        .where(table.c.id == sa.bindparam("run_id"))
        .values(revision=table.c.revision + sa.literal_column("1"), **values)
    )


@lru_cache
def attempt_update(names: tuple[str, ...]) -> sa.Update:
    """Set these columns of attempt `attempt` of run `run_id`, from values of the name `attempt_` and the column's."""
    table = schema.attempts
    values = {name: sa.bindparam(f"attempt_{name}", type_=table.c[name].type) for name in names}
    this = (table.c.run_id == sa.bindparam("run_id"), table.c.number == sa.bindparam("attempt"))
    return sa.update(table).where(*this).values(**values)


def lock_revision(connection: Connection, project: str, name: str) -> tuple[int, int] | None:
    """The run's id and revision, the run locked until the transaction ends; None if there is none."""
    found = _LOCK_REVISION.run(connection, {"project": project, "name": name})
    return (int(found[0][0]), int(found[0][1])) if found else None


def lock_run(connection: Connection, project: str, name: str) -> Run | None:
    """The run, locked until the transaction ends; None if there is none."""
    row = connection.execute(_LOCK, {"project": project, "name": name}).one_or_none()
    return None if row is None else run_of(row)


def lock_or_open_run(connection: Connection, project: str, name: str, now: float) -> Run:
    """The run, locked until the transaction ends; made if this is the first that is heard of it."""
    run = lock_run(connection, project, name)
    if run is not None:
        return run
    # Another replica may be making it: whoever comes second waits here for the first one's commit.
    values = {
        "project": project,
        "name": name,
        "created": now,
        "config": {},
        "status": "healthy",
        "attempt": 0,
        "last_seen": now,
        "last_progress": now,
        "frames": 0,
        "dropped_frames": 0,
        "waiting_chunks": 0,
        "summary": {},
        "revision": 0,
    }
    insert_or_ignore(connection, schema.runs, values)
    run = lock_run(connection, project, name)
    if run is None:
        raise LookupError(f"run {project}/{name} was deleted while it was being opened")
    return run


def update_run(connection: Connection, run_id: int, values: dict[str, Any]) -> None:
    """Set columns of the run's row; its revision rises, also if there are none to set."""
    named = {f"run_{name}": value for name, value in values.items()}
    connection.execute(run_update(tuple(values)), {"run_id": run_id, **named})


def open_attempt(connection: Connection, run_id: int, number: int, key: str) -> Attempt:
    """A new attempt, of which nothing is known yet but its key."""
    values = {"run_id": run_id, "number": number, "key": key, "next_index": 0, "config": {}}
    connection.execute(sa.insert(schema.attempts).values(**values))
    return Attempt(number, key, None, None, None, None, next_index=0, last_step=None)


def config_of(connection: Connection, run_id: int, number: int) -> dict[str, Any]:
    """What the attempt said about itself when it began."""
    table = schema.attempts
    found = connection.execute(
        sa.select(table.c.config).where(table.c.run_id == run_id, table.c.number == number)
    ).scalar()
    return dict(found or {})


def contiguous(connection: Connection, run_id: int, attempt: int, index: int) -> tuple[int, int | None]:
    """From chunk `index` on: the first index that is not here, and the last step before it (None: no frames)."""
    table = schema.chunks
    query = (
        sa.select(table.c.index, table.c.last_step)
        .where(table.c.run_id == run_id, table.c.attempt == attempt, table.c.index >= index)
        .order_by(table.c.index)
    )
    last: int | None = None
    for found, step in connection.execute(query):
        if found != index:
            break
        index, last = index + 1, last if step is None else step
    return index, last
