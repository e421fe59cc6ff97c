"""A run's frames as its lineage has them: attempt by attempt, piece by piece, superseded ones left out."""

from collections.abc import AsyncIterator, Sequence

import numpy as np

from lossguard.wire.frame import Frames, Schema
from lossguard_service.store import chunks
from lossguard_service.store.database import Database
from lossguard_service.store.pieces import batches, frames_in, pieces_of


async def frames_of(
    database: Database, run_id: int, *, first: int | None = None, last: int | None = None, attempt: int | None = None
) -> AsyncIterator[Frames]:
    """The frames in [first, last], a piece at a time, so that memory stays flat however long the run is."""
    pieces, schemas = await pieces_of(database, run_id, first=first, last=last, attempt=attempt)
    for batch in batches(pieces):
        for block in await frames_in(database, run_id, batch, schemas):
            frames = chunks.cut(block, after=None if first is None else first - 1, until=last)
            if len(frames):
                yield frames


async def values_between(
    database: Database, run_id: int, *, first: int | None = None, last: int | None = None, attempt: int | None = None
) -> int:
    """About how many values `frames_of` gives, never too few: what to ask before holding them all."""
    pieces, schemas = await pieces_of(database, run_id, first=first, last=last, attempt=attempt)
    width = {n: len(names.scalars) + len(names.layers) * len(names.stats) for n, names in schemas.items()}
    total = 0
    for piece in pieces:
        low = piece.first if first is None else max(first, piece.first)
        high = piece.until if last is None else min(last, piece.until)
        total += min(piece.row.frames, high - low + 1) * width[piece.row.schema]
    return total


def joined(blocks: Sequence[Frames], schema: Schema) -> Frames:
    """Blocks as one, over the columns of `schema`; what a block does not have was not measured in it."""
    t = sum(len(block) for block in blocks)
    scalars = np.full((t, len(schema.scalars)), np.nan)
    stats = np.full((t, len(schema.layers), len(schema.stats)), np.nan, np.float32)
    scalars_present = np.zeros(scalars.shape, np.bool_)
    stats_present = np.zeros((t, len(schema.stats)), np.bool_)
    start = 0
    for block in blocks:
        rows = slice(start, start + len(block))
        columns = [schema.scalars.index(name) for name in block.schema.scalars]
        layers = [schema.layers.index(name) for name in block.schema.layers]
        kinds = [schema.stats.index(name) for name in block.schema.stats]
        scalars[rows, columns] = block.scalars
        scalars_present[rows, columns] = block.scalars_present
        if layers and kinds:
            stats[rows, np.array(layers)[:, None], np.array(kinds)[None, :]] = block.stats
        stats_present[rows, kinds] = block.stats_present
        start = rows.stop
    steps = np.concatenate([block.steps for block in blocks]) if blocks else np.empty(0, np.int64)
    times = np.concatenate([block.times for block in blocks]) if blocks else np.empty(0)
    return Frames(schema, steps, times, scalars, stats, scalars_present, stats_present)
