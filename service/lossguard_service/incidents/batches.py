"""Which batches came where an incident began: pages, webhooks and metrics tell the same ones.

Batches are told by step, and only where every step is still stored alone.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lossguard.trace.batches import BATCH, FILE, Batch, span
from lossguard.trace.batches import batches as named
from lossguard.wire.frame import Schema
from lossguard.wire.incident import Incident
from lossguard_service.recent import Recent
from lossguard_service.store.buckets import Buckets, column
from lossguard_service.store.database import Database
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.series import columns, scalar_columns

READ_AT_ONCE: Final = 32
KEPT: Final = 4096

log = logging.getLogger(__name__)


async def read_batches(database: Database, run_id: int, names: Schema, incident: Incident) -> tuple[Batch, ...]:
    """The batches of an incident that counts; none, and nothing is read, where the run recorded none."""
    if BATCH not in names.scalars:
        return ()
    first, last = span(incident)
    table = await scalar_columns(database, run_id, [BATCH, FILE], first=first, last=last, points=last - first + 1)
    return batches(incident, column(table, 0), column(table, 1))


def batches(incident: Incident, found: Buckets | None, files: Buckets | None = None) -> tuple[Batch, ...]:
    """The batches from the first signal to where it was flagged, and one before.

    Args:
        incident: whose.
        found: the numbers of batches, by step.
        files: those of their files.
    """
    if found is None or not len(found) or bool((found.first != found.last).any()):
        return ()
    of_files = {} if files is None else dict(zip(files.first.tolist(), files.mean[:, 0].tolist(), strict=True))
    return named(incident, zip(found.first.tolist(), found.mean[:, 0].tolist(), strict=True), of_files)


def as_json(found: Sequence[Batch]) -> list[dict[str, Any]]:
    """Batches as notices and the API show them."""
    return [{"step": one.step, "batch_id": one.name, "note": one.note} for one in found]


class FlaggedBatches:
    """The batches up to where incidents were flagged, read once for each: they do not change any more.

    A data set that breaks a thousand trainings at once shall not hold up a scrape, so that at most `READ_AT_ONCE` are
    read at a time, and the others' the next times.

    Args:
        database: where the frames are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: Recent[tuple[int, int, int, int], tuple[Batch, ...]] = Recent(KEPT)

    async def of(self, stored: Sequence[tuple[int, StoredIncident]]) -> Mapping[tuple[int, int], tuple[Batch, ...]]:
        """By run and sequence, of the incidents whose batches are known and some.

        Args:
            stored: incidents with their runs' ids.
        """
        keys = {(run_id, one.sequence): _key(run_id, one) for run_id, one in stored}
        new = [(run_id, one) for run_id, one in stored if self._known.get(_key(run_id, one)) is None]
        await asyncio.gather(*(self._read(run_id, one) for run_id, one in new[:READ_AT_ONCE]))
        found = {place: self._known.get(key) for place, key in keys.items()}
        return {place: batches for place, batches in found.items() if batches}

    async def _read(self, run_id: int, stored: StoredIncident) -> None:
        incident = stored.incident
        try:
            found = await read_batches(self._database, run_id, await columns(self._database, run_id), incident)
        except Exception:
            # Whatever is wrong with what is stored, the incident itself must be told.
            log.exception("the batches of incident %d of run %d cannot be read", stored.sequence, run_id)
            return
        last = max(incident.detected_step, incident.onset_step)
        self._known.put(_key(run_id, stored), tuple(one for one in found if one.step <= last))


def _key(run_id: int, stored: StoredIncident) -> tuple[int, int, int, int]:
    return run_id, stored.sequence, stored.incident.onset_step, stored.incident.detected_step
