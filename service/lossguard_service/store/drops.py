"""Frames that the trainer's side dropped, by reason: one row per run and reason, written when a chunk tells of some.

Reasons come from outside, so a run has at most `MOST_REASONS` of them; what is beyond is counted as `other`.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lossguard_service.store import schema
from lossguard_service.store.columns import clean
from lossguard_service.store.upsert import insert_or_update

MOST_REASONS: Final = 16
OTHER: Final = "other"
_CHARACTERS: Final = 64


def add(connection: Connection, run_id: int, counts: Mapping[str, int]) -> None:
    """Add a chunk's counts; the caller holds the run's lock and knows that the chunk is new."""
    if not counts:
        return
    known = of_run(connection, run_id)
    for given, frames in counts.items():
        reason = clean(given[:_CHARACTERS])
        if reason not in known and len(known) >= MOST_REASONS - 1:
            reason = OTHER
        known[reason] = known.get(reason, 0) + frames
        insert_or_update(connection, schema.dropped, {"run_id": run_id, "reason": reason, "frames": known[reason]})


def of_run(connection: Connection, run_id: int) -> dict[str, int]:
    """The run's counts by reason."""
    return of_runs(connection, [run_id]).get(run_id, {})


def of_runs(connection: Connection, runs: Iterable[int] | sa.Select[tuple[int]]) -> dict[int, dict[str, int]]:
    """Counts by run and reason, of those runs that dropped any."""
    table = schema.dropped
    found: dict[int, dict[str, int]] = {}
    query = sa.select(table).where(table.c.run_id.in_(runs)).order_by(table.c.run_id, table.c.reason)
    for run_id, reason, frames in connection.execute(query):
        found.setdefault(run_id, {})[reason] = frames
    return found
