"""A run's frames as its lineage has them: attempt by attempt, chunk by chunk, superseded ones left out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import islice

import numpy as np

from lossguard.wire.chunk import decode
from lossguard.wire.frame import Frames, Schema
from lossguard_service.store import chunks
from lossguard_service.store.database import Database
from lossguard_service.store.series import bytes_of_parts, parts_of

_BATCH = 16


async def frames_of(
    database: Database, run_id: int, *, first: int | None = None, last: int | None = None, attempt: int | None = None
) -> AsyncIterator[Frames]:
    """The frames in [first, last], a chunk at a time, so that memory stays flat however long the run is."""
    parts, _ = await parts_of(database, run_id, first, last, attempt)
    left = iter(parts)
    while batch := list(islice(left, _BATCH)):
        data = await bytes_of_parts(database, run_id, batch)
        for part in batch:
            frames = (await asyncio.to_thread(decode, data[part.row.attempt, part.row.index])).frames
            until = part.until if last is None else min(part.until, last)
            frames = chunks.cut(frames, after=None if first is None else first - 1, until=until)
            if len(frames):
                yield frames


async def values_between(
    database: Database, run_id: int, *, first: int | None = None, last: int | None = None, attempt: int | None = None
) -> int:
    """At most how many values `frames_of` gives: what to ask before holding them all."""
    parts, schemas = await parts_of(database, run_id, first, last, attempt)
    width = {n: len(names.scalars) + len(names.layers) * len(names.stats) for n, names in schemas.items()}
    return sum(part.row.frames * width[part.row.schema] for part in parts)


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
