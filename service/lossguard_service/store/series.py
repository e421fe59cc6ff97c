"""Series, heat maps and single steps of a run, at any zoom.

A series over few chunks is read from the chunks and cut into buckets of equal width in steps; over many, neighbouring
chunks' summaries are merged, so that a bucket begins and ends where a chunk does. Superseded frames are left out,
unless one attempt is asked for by its number. Decoding happens outside the transaction, in a worker thread.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from lossguard.wire import chunk as wire
from lossguard.wire.frame import Floats64, Frames, Schema, Steps
from lossguard_service.store import buckets, chunks, summary
from lossguard_service.store.buckets import Buckets
from lossguard_service.store.chunks import ChunkRow
from lossguard_service.store.database import Database
from lossguard_service.store.runs import attempts_of

RAW_CHUNKS: Final = 96
"""Up to so many chunks are decoded for one plot; more are read from their summaries."""
_BATCH: Final = 32


class UnknownSeries(LookupError):
    """The run has no such scalar, layer or stat; the message names what it has."""


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """One stat of every layer over buckets of steps.

    Attributes:
        stat: its name.
        layers: layer paths [L], in the model's order.
        first, last: int64 [n], the steps of each bucket.
        maximum: float64 [L, n], the largest value without NaN; NaN where nothing was measured, or only NaN.
        nonfinite: int64 [L, n], how many values are NaN or infinite.
    """

    stat: str
    layers: tuple[str, ...]
    first: Steps
    last: Steps
    maximum: Floats64
    nonfinite: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk and the last of its steps that counts."""

    row: ChunkRow
    until: int


async def columns(database: Database, run_id: int) -> Schema:
    """The names of all scalars, layers and stats that the run has had."""
    known = await database.read(lambda connection: chunks.schemas_of(connection, run_id))
    return chunks.union(list(known.values()))


async def scalar_series(
    database: Database,
    run_id: int,
    name: str,
    *,
    first: int | None = None,
    last: int | None = None,
    points: int = 1000,
    attempt: int | None = None,
) -> Buckets:
    """One scalar in at most `points` buckets (one column).

    Raises:
        UnknownSeries: no chunk of the run has it.
    """
    parts, schemas = await parts_of(database, run_id, first, last, attempt)
    holders = {number: names.scalars.index(name) for number, names in schemas.items() if name in names.scalars}
    if not holders:
        raise UnknownSeries(_unknown("scalar", name, chunks.union(list(schemas.values())).scalars))

    def from_frames(frames: Frames, number: int, edges: Steps) -> Buckets:
        at = holders[number]
        return buckets.bucket(
            frames.steps, frames.scalars[:, at : at + 1], frames.scalars_present[:, at : at + 1], edges
        )

    def from_summary(data: bytes, row: ChunkRow) -> Buckets:
        return summary.load(data).scalar(holders[row.schema], *_span(row))

    parts = [part for part in parts if part.row.schema in holders]
    return await _collect(database, run_id, parts, points, first, last, 1, from_frames, from_summary)


async def stat_series(
    database: Database,
    run_id: int,
    layer: str,
    stat: str,
    *,
    first: int | None = None,
    last: int | None = None,
    points: int = 1000,
    attempt: int | None = None,
) -> Buckets:
    """One stat of one layer in at most `points` buckets (one column).

    Raises:
        UnknownSeries: no chunk of the run has it.
    """
    parts, schemas = await parts_of(database, run_id, first, last, attempt)
    holders = {
        number: (names.layers.index(layer), names.stats.index(stat))
        for number, names in schemas.items()
        if layer in names.layers and stat in names.stats
    }
    if not holders:
        known = chunks.union(list(schemas.values()))
        raise UnknownSeries(
            _unknown("layer", layer, known.layers) if layer not in known.layers else _unknown("stat", stat, known.stats)
        )

    def from_frames(frames: Frames, number: int, edges: Steps) -> Buckets:
        place, k = holders[number]
        return buckets.bucket(
            frames.steps, frames.stats[:, place : place + 1, k], frames.stats_present[:, k : k + 1], edges
        )

    def from_summary(data: bytes, row: ChunkRow) -> Buckets:
        place, k = holders[row.schema]
        return summary.load(data).stat(k, place, *_span(row))

    parts = [part for part in parts if part.row.schema in holders]
    return await _collect(database, run_id, parts, points, first, last, 1, from_frames, from_summary)


async def heat_map(
    database: Database,
    run_id: int,
    stat: str,
    *,
    first: int | None = None,
    last: int | None = None,
    points: int = 120,
    attempt: int | None = None,
) -> HeatMap:
    """One stat of all layers in at most `points` buckets.

    Raises:
        UnknownSeries: no chunk of the run has the stat.
    """
    parts, schemas = await parts_of(database, run_id, first, last, attempt)
    known = chunks.union(list(schemas.values()))
    if stat not in known.stats:
        raise UnknownSeries(_unknown("stat", stat, known.stats))
    holders = {number: names.stats.index(stat) for number, names in schemas.items() if stat in names.stats}
    places = {number: [known.layers.index(layer) for layer in schemas[number].layers] for number in holders}
    width = len(known.layers)

    def spread(found: Buckets, number: int) -> Buckets:
        if places[number] == list(range(width)):
            return found
        wide = buckets.join([], width)
        n, at = len(found), places[number]
        arrays = {}
        for name in ("count", "nonfinite", "minimum", "maximum", "mean"):
            empty = getattr(wide, name)
            array = np.full((n, width), 0 if empty.dtype == np.int64 else np.nan, empty.dtype)
            array[:, at] = getattr(found, name)
            arrays[name] = array
        return Buckets(found.first, found.last, **arrays)

    def from_frames(frames: Frames, number: int, edges: Steps) -> Buckets:
        k = holders[number]
        here = np.broadcast_to(frames.stats_present[:, k : k + 1], frames.stats.shape[:2])
        return spread(buckets.bucket(frames.steps, frames.stats[:, :, k], here, edges), number)

    def from_summary(data: bytes, row: ChunkRow) -> Buckets:
        return spread(summary.load(data).layers(holders[row.schema], *_span(row)), row.schema)

    parts = [part for part in parts if part.row.schema in holders]
    found = await _collect(database, run_id, parts, points, first, last, width, from_frames, from_summary)
    return HeatMap(stat, known.layers, found.first, found.last, found.maximum.T, found.nonfinite.T)


async def frames_at(database: Database, run_id: int, step: int, *, attempt: int | None = None) -> Frames | None:
    """The frame of one step (a block of length 1), or None: all its scalars and stats."""
    parts, _ = await parts_of(database, run_id, step, step, attempt)
    for part in reversed(parts):
        data = (await bytes_of_parts(database, run_id, [part]))[part.row.attempt, part.row.index]
        frames = (await asyncio.to_thread(wire.decode, data)).frames
        place = int(frames.steps.searchsorted(step))
        if place < len(frames) and frames.steps[place] == step and step <= part.until:
            return frames[place : place + 1]
    return None


async def parts_of(
    database: Database, run_id: int, first: int | None, last: int | None, attempt: int | None
) -> tuple[list[Part], dict[int, Schema]]:
    """The chunks that hold steps in [first, last], and the run's column names by number.

    Of the lineage, or of one attempt with all that it did, also what a later one superseded.
    """

    def read(connection: Connection) -> tuple[list[Part], dict[int, Schema]]:
        limit = {one.number: one.superseded_after for one in attempts_of(connection, run_id)}
        parts = []
        for row in chunks.rows_of(connection, run_id, first=first, last=last, attempt=attempt):
            begin, end = _span(row)
            until = limit[row.attempt] if attempt is None else None
            until = end if until is None else min(end, until)
            if until >= begin:
                parts.append(Part(row, until))
        return parts, chunks.schemas_of(connection, run_id)

    return await database.read(read)


async def _collect(
    database: Database,
    run_id: int,
    parts: Sequence[Part],
    points: int,
    first: int | None,
    last: int | None,
    width: int,
    from_frames: Callable[[Frames, int, Steps], Buckets],
    from_summary: Callable[[bytes, ChunkRow], Buckets],
) -> Buckets:
    if not parts:
        return buckets.join([], width)
    low = max(_span(parts[0].row)[0], first if first is not None else 0)
    high = parts[-1].until if last is None else min(parts[-1].until, last)
    step_width = max(1, -(-(high - low + 1) // points))
    # A bucket narrower than a chunk can only come from frames; a wider one from summaries, unless the chunks are few.
    whole = len(parts) > max(RAW_CHUNKS, points)
    found: list[Buckets] = []
    for batch in _batches(parts):
        if whole:
            found.extend(await _from_summaries(database, run_id, batch, from_frames, from_summary))
            continue
        data = await bytes_of_parts(database, run_id, batch)

        def work(batch: Sequence[Part] = batch, data: dict[tuple[int, int], bytes] = data) -> list[Buckets]:
            result = []
            for part in batch:
                frames = wire.decode(data[part.row.attempt, part.row.index]).frames
                frames = chunks.cut(frames, after=None if first is None else first - 1, until=min(part.until, high))
                if len(frames):
                    edges = buckets.edges_by_width(frames.steps, low, step_width)
                    result.append(from_frames(frames, part.row.schema, edges))
            return result

        found.extend(await asyncio.to_thread(work))
    joined = buckets.join(found, width)
    if whole:
        group = -(-len(joined) // points)
        return buckets.merge(joined, np.arange(0, len(joined), max(1, group)))
    # A bucket may have begun in one chunk and ended in the next.
    return buckets.merge(joined, buckets.edges_by_width(joined.first, low, step_width))


async def _from_summaries(
    database: Database,
    run_id: int,
    batch: Sequence[Part],
    from_frames: Callable[[Frames, int, Steps], Buckets],
    from_summary: Callable[[bytes, ChunkRow], Buckets],
) -> list[Buckets]:
    """One bucket per chunk; a chunk without a summary, or of which only a part counts, is decoded."""
    attempt = batch[0].row.attempt

    def read(connection: Connection) -> dict[int, bytes]:
        return chunks.summaries_of(connection, run_id, attempt, batch[0].row.index, batch[-1].row.index)

    summaries = await database.read(read)
    rest = [part for part in batch if part.row.index not in summaries or part.until < _span(part.row)[1]]
    data = await bytes_of_parts(database, run_id, rest) if rest else {}

    def work() -> list[Buckets]:
        result = []
        for part in batch:
            if (part.row.attempt, part.row.index) in data:
                frames = wire.decode(data[part.row.attempt, part.row.index]).frames
                frames = chunks.cut(frames, until=part.until)
                if len(frames):
                    result.append(from_frames(frames, part.row.schema, np.zeros(1, np.int64)))
            else:
                result.append(from_summary(summaries[part.row.index], part.row))
        return result

    return await asyncio.to_thread(work)


async def bytes_of_parts(database: Database, run_id: int, parts: Sequence[Part]) -> dict[tuple[int, int], bytes]:
    """The chunks' bytes by (attempt, index)."""

    def read(connection: Connection) -> dict[tuple[int, int], bytes]:
        found = {}
        for attempt, group in groupby(parts, key=lambda part: part.row.attempt):
            for indexes in _runs([part.row.index for part in group]):
                data = chunks.bytes_of(connection, run_id, attempt, indexes[0], indexes[-1])
                found.update({(attempt, index): value for index, value in data.items()})
        return found

    return await database.read(read)


def _runs(indexes: list[int]) -> list[list[int]]:
    """Indexes split where they are not consecutive.

    >>> _runs([1, 2, 4])
    [[1, 2], [4]]
    """
    breaks = [place for place, (one, two) in enumerate(pairwise(indexes), start=1) if two != one + 1]
    return [indexes[start:end] for start, end in pairwise([0, *breaks, len(indexes)])]


def _batches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    for _, group in groupby(parts, key=lambda part: part.row.attempt):
        members = list(group)
        for start in range(0, len(members), _BATCH):
            yield members[start : start + _BATCH]


def _span(row: ChunkRow) -> tuple[int, int]:
    if row.first_step is None or row.last_step is None:
        raise ValueError(f"chunk {row.index} of attempt {row.attempt} holds no frames")
    return row.first_step, row.last_step


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    have = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return f"the run has no {kind} {name!r}; it has {have}" if known else f"the run has no {kind}s yet"
