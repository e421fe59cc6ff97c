"""Which batches came where an incident began: the pages and the webhooks tell the same ones.

Batches are told by step, and only where every step is still stored alone.
"""

from lossguard.trace.batches import BATCH, Batch, span
from lossguard.trace.batches import batches as named
from lossguard.wire.frame import Schema
from lossguard.wire.incident import Incident
from lossguard_service.store.buckets import Buckets, column
from lossguard_service.store.database import Database
from lossguard_service.store.series import scalar_columns


async def read_batches(database: Database, run_id: int, names: Schema, incident: Incident) -> tuple[Batch, ...]:
    """The batches of an incident that counts; none, and nothing is read, where the run recorded none."""
    if BATCH not in names.scalars:
        return ()
    first, last = span(incident)
    table = await scalar_columns(database, run_id, [BATCH], first=first, last=last, points=last - first + 1)
    return batches(incident, column(table, 0))


def batches(incident: Incident, found: Buckets | None) -> tuple[Batch, ...]:
    """The batches from the first signal to where it was flagged, and one before."""
    if found is None or not len(found) or bool((found.first != found.last).any()):
        return ()
    return named(incident, zip(found.first.tolist(), found.mean[:, 0].tolist(), strict=True))
