"""What is missing of a run: steps that nobody will ever see, or has not seen yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.engine import Connection

from lossguard_service.store import chunks
from lossguard_service.store.database import Database
from lossguard_service.store.runs import attempts_of


@dataclass(frozen=True, slots=True)
class Gap:
    """Consecutive steps without a frame that counts.

    Attributes:
        attempt: in which attempt they were trained.
        first_step, last_step: the first and the last of them.
        kind: `missing_chunk` if a chunk before the next frame has not come (it still may); `dropped` if the chunks on
            both sides are here, so that the trainer's side dropped the frames; `missing_start` if they are here, but
            not the attempt's first chunk, which says from which step it began: none of its frames count until then.
    """

    attempt: int
    first_step: int
    last_step: int
    kind: Literal["missing_chunk", "dropped", "missing_start"]

    @property
    def steps(self) -> int:
        """How many."""
        return self.last_step - self.first_step + 1


async def list_gaps(database: Database, run_id: int, *, until: int | None = None) -> list[Gap]:
    """The gaps in the run's lineage up to step `until` (the last one stored by default), in order."""
    return await database.read(lambda connection: gaps_of(connection, run_id, until))


def gaps_of(connection: Connection, run_id: int, until: int | None = None) -> list[Gap]:
    """The same within a transaction."""
    found: list[Gap] = []
    rows = chunks.rows_of(connection, run_id, last=until)
    for attempt in attempts_of(connection, run_id):
        mine = [row for row in rows if row.attempt == attempt.number]
        limit = min((value for value in (attempt.superseded_after, until) if value is not None), default=None)
        if attempt.start_step is None:
            found += _without_start(attempt.number, mine, limit)
            continue
        expected = attempt.start_step + 1
        index = 0
        for row in mine:
            if row.first_step is None or row.last_step is None or (limit is not None and row.first_step > limit):
                break
            end = row.last_step if limit is None else min(row.last_step, limit)
            if row.first_step > expected:
                # Chunks without frames have no row here, so an index may be skipped although nothing is missing.
                missing = row.index > index and row.index > attempt.next_index
                found.append(
                    Gap(attempt.number, expected, row.first_step - 1, "missing_chunk" if missing else "dropped")
                )
            for first, last in row.missing:
                if first <= end:
                    found.append(Gap(attempt.number, first, min(last, end), "dropped"))
            expected, index = row.last_step + 1, row.index + 1
        if limit is not None and attempt.superseded_after == limit and expected <= limit:
            found.append(Gap(attempt.number, expected, limit, "missing_chunk"))
    return found


def _without_start(attempt: int, rows: Sequence[chunks.ChunkRow], limit: int | None) -> list[Gap]:
    spans = [
        (row.first_step, row.last_step) for row in rows if row.first_step is not None and row.last_step is not None
    ]
    if not spans:
        return []
    first, last = min(one for one, _ in spans), max(one for _, one in spans)
    last = last if limit is None else min(last, limit)
    return [Gap(attempt, first, last, "missing_start")] if first <= last else []
