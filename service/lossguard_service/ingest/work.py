"""What a replica remembers of a run, and what a chunk makes of it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from lossguard.detect.record import Record
from lossguard.wire import chunk as wire
from lossguard.wire.chunk import AttemptStart, AttemptStop
from lossguard.wire.frame import Schema
from lossguard.wire.numbers import from_json_number
from lossguard_service.ingest.prepare import Prepared, digest
from lossguard_service.store import chunks
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.lineage import Attempt
from lossguard_service.store.runs import Run


@dataclass(frozen=True, slots=True)
class View:
    """What a replica remembers of a run's rows; true as long as the run's revision is the same.

    Attributes:
        run, attempts, incidents: as stored.
        schemas: the numbers of the column names.
        records: the detectors' records that the incidents and the run's status are of; None where that is not known.
    """

    run: Run
    attempts: list[Attempt]
    incidents: list[StoredIncident]
    schemas: dict[Schema, int]
    records: list[Record] | None


@dataclass(frozen=True, slots=True)
class Work(chunks.NewChunk):
    """What a chunk changes, and the run after it.

    Attributes:
        before: the run that it was worked out for.
        attempt: its attempt, after it.
        after: the run, after it.
    """

    before: View
    attempt: Attempt
    after: View


def run_values(
    run: Run, attempt: Attempt, prepared: Prepared, absorbed: int, newest: dict[str, Any] | None, now: float
) -> dict[str, Any]:
    """The run's changed columns; a function of which chunks are here, not of the order in which they came."""
    values: dict[str, Any] = {
        "last_seen": max(run.last_seen, now),
        "frames": run.frames + len(prepared.chunk.frames),
        "dropped_frames": run.dropped_frames + sum(prepared.chunk.drops.values()),
        "waiting_chunks": run.waiting_chunks + (1 if absorbed < 0 else -absorbed),
    }
    if prepared.first_step is not None:
        steps = (run.first_step, prepared.first_step)
        values["first_step"] = min(step for step in steps if step is not None)
    if attempt.number != run.attempt:
        return values
    for start in prepared.events(AttemptStart):
        values["config"] = start.config
    for stop in prepared.events(AttemptStop):
        values["stop_reason"] = stop.reason
    if prepared.first_step is not None:
        values["last_progress"] = max(run.last_progress, now)
    if absorbed >= 0:
        values["last_step"] = attempt.start_step if attempt.last_step is None else attempt.last_step
        if newest is not None:
            loss = newest["scalars"].get("loss")
            values |= {"summary": newest, "loss_last": None if loss is None else from_json_number(loss)}
    return values


def digest_of_last(connection: Connection, run_id: int, attempt: Attempt) -> dict[str, Any] | None:
    """The digest of the attempt's last contiguous chunk that holds frames."""
    rows = chunks.rows_of(connection, run_id, attempt=attempt.number, first=attempt.last_step)
    last = max((row.index for row in rows if row.index < attempt.next_index), default=None)
    if last is None:
        return None
    data = chunks.bytes_now(connection, chunks.bytes_of(connection, run_id, attempt.number, last, last))
    return digest(wire.decode(data[last]).frames)
