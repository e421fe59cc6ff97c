"""What a run's frames lie in, chunks and segments alike, and how to get them out.

A piece is a chunk or a segment with the last of its steps that counts. Readers ask for pieces and never care which of
the two they got. Decoding happens outside the transaction, in a worker thread.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from sqlalchemy.engine import Connection

from lossguard.wire.chunk import decode
from lossguard.wire.frame import Frames, Schema
from lossguard_service.store import chunks, layout, schema, segments, slices
from lossguard_service.store.bytes import Held
from lossguard_service.store.chunks import ChunkRow
from lossguard_service.store.database import Database
from lossguard_service.store.runs import attempts_of
from lossguard_service.store.segments import SegmentRow

BATCH = 32
NARROW_BATCH = 256
"""Segments of which one layer is read together, a million steps: some 40 MB, and one statement."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk or a segment.

    Attributes:
        row: which one.
        first: its first step.
        until: the last of its steps that counts.
        is_whole: True if all its steps count.
    """

    row: ChunkRow | SegmentRow
    first: int
    until: int
    is_whole: bool


async def pieces_of(
    database: Database, run_id: int, *, first: int | None = None, last: int | None = None, attempt: int | None = None
) -> tuple[list[Piece], dict[int, Schema]]:
    """The pieces that hold steps in [first, last], in order, and the run's column names by number.

    Of the lineage, or of one attempt with all that it did, also what a later one superseded.
    """

    def read(connection: Connection) -> tuple[list[Piece], dict[int, Schema]]:
        found: list[Piece] = []
        ends = segments.ends_of(connection, run_id)
        for one in attempts_of(connection, run_id):
            if attempt is not None and one.number != attempt:
                continue
            limit = one.superseded_after if attempt is None else None
            window = {"first": first, "last": last, "attempt": one.number}
            rows: list[ChunkRow | SegmentRow] = [
                *segments.rows_of(connection, run_id, **window),
                *chunks.rows_of(connection, run_id, **window, from_index=ends.get(one.number, 0)),
            ]
            for row in rows:
                if row.first_step is None or row.last_step is None:
                    continue
                until = row.last_step if limit is None else min(row.last_step, limit)
                if until >= row.first_step:
                    found.append(Piece(row, row.first_step, until, until == row.last_step))
        return found, chunks.schemas_of(connection, run_id)

    return await database.read(read)


def batches(pieces: Sequence[Piece], *, narrow: bool = False) -> Iterator[list[Piece]]:
    """The pieces in order, in batches of one attempt, one schema and one kind.

    Chunks come up to `BATCH` together. A segment comes alone, as all its layers at once are large, unless the reading
    is `narrow`: of one layer, or of scalars.
    """

    def kind(piece: Piece) -> tuple[int, bool, int, bool]:
        row = piece.row
        return row.attempt, isinstance(row, ChunkRow), row.schema, isinstance(row, SegmentRow) and row.is_full

    for (_, is_chunk, _, _), group in groupby(pieces, key=kind):
        members = list(group)
        size = BATCH if is_chunk else NARROW_BATCH if narrow else 1
        for start in range(0, len(members), size):
            yield members[start : start + size]


async def frames_in(
    database: Database,
    run_id: int,
    batch: Sequence[Piece],
    schemas: dict[int, Schema],
    *,
    layer: str | None = None,
    stat: str | None = None,
    scalars_only: bool = False,
) -> list[Frames]:
    """The frames of the pieces of one batch that count; those that retention has dropped are left out.

    Args:
        database: where.
        run_id: which run.
        batch: one of `batches`.
        schemas: from `pieces_of`.
        stat: from a segment only this stat is read.
        layer: with `stat`, from a segment only this layer of it, and no scalars.
        scalars_only: from a segment no layer is read.
    """
    first = batch[0].row
    if isinstance(first, SegmentRow):
        if not first.is_full:
            return []
        names = schemas[first.schema]
        held = [piece.row for piece in batch if isinstance(piece.row, SegmentRow)]
        column = None if stat is None else names.stats.index(stat)
        row = None if layer is None else names.layers.index(layer)

        def read_segments(connection: Connection) -> list[dict[int, Held]]:
            table = schema.segment_parts
            if scalars_only:
                return segments.parts_of(connection, table, run_id, held, [layout.COMMON])
            if column is None:
                return segments.parts_of(connection, table, run_id, held)
            layers = range(len(names.layers)) if row is None else [row]
            common = layout.COMMON if row is None else layout.STEPS
            found = segments.parts_of(connection, table, run_id, held, [common], elsewhere=layers)
            some = slices.slices_of(connection, run_id, held, stat=column, stats=len(names.stats), layer=row)
            found = [{**one, **more} for one, more in zip(found, some, strict=True)]
            lacking = [n for n, one in enumerate(found) if row is not None and not layout.is_enough(one, row)]
            if lacking:
                more = segments.parts_of(connection, table, run_id, [held[n] for n in lacking], [layout.COMMON])
                for n, one in zip(lacking, more, strict=True):
                    found[n] |= one
            return found

        found = await database.bytes.fetch(await database.read(read_segments))
        if row is not None and column is not None:
            return await asyncio.to_thread(_loaded_series, batch, found, names, row, column)
        rows: list[int] | None = [] if scalars_only else None
        columns = None if column is None else [column]
        return await asyncio.to_thread(_loaded, batch, found, names, rows, columns)
    indexes = [piece.row.index for piece in batch if isinstance(piece.row, ChunkRow)]

    def read(connection: Connection) -> dict[int, Held]:
        found: dict[int, Held] = {}
        for run in _runs(indexes):
            found |= chunks.bytes_of(connection, run_id, first.attempt, run[0], run[-1])
        return found

    (data,) = await database.bytes.fetch([await database.read(read)])
    gone = [index for index in indexes if index not in data]
    if gone:
        # They became a segment between the two reads.
        return await _again(database, run_id, batch, schemas, layer=layer, stat=stat, scalars_only=scalars_only)

    def work() -> list[Frames]:
        found = zip(batch, indexes, strict=True)
        return [chunks.cut(decode(data[index]).frames, until=piece.until) for piece, index in found]

    return await asyncio.to_thread(work)


def _loaded(
    batch: Sequence[Piece],
    found: Sequence[dict[int, bytes]],
    names: Schema,
    layers: list[int] | None,
    stats: list[int] | None,
) -> list[Frames]:
    return [
        chunks.cut(layout.load(parts, names, layers, stats), until=piece.until)
        for piece, parts in zip(batch, found, strict=True)
        if parts  # none: retention was faster than we
    ]


def _loaded_series(
    batch: Sequence[Piece], found: Sequence[dict[int, bytes]], names: Schema, layer: int, stat: int
) -> list[Frames]:
    held = [
        (piece, layout.Laid(piece.row.first_step, piece.row.last_step, piece.row.frames, parts))
        for piece, parts in zip(batch, found, strict=True)
        if parts and isinstance(piece.row, SegmentRow)  # without parts: retention was faster than we
    ]
    result: list[Frames] = []
    for is_whole, group in groupby(held, key=lambda one: one[0].is_whole):
        some = list(group)
        if is_whole:
            result += layout.load_series([laid for _, laid in some], names, layer, stat)
            continue
        for piece, laid in some:
            result += [chunks.cut(one, until=piece.until) for one in layout.load_series([laid], names, layer, stat)]
    return result


async def _again(
    database: Database,
    run_id: int,
    batch: Sequence[Piece],
    schemas: dict[int, Schema],
    *,
    layer: str | None,
    stat: str | None,
    scalars_only: bool,
) -> list[Frames]:
    low, high = batch[0].first, batch[-1].until
    pieces, _ = await pieces_of(database, run_id, first=low, last=high, attempt=batch[0].row.attempt)
    found = []
    for part in batches(pieces, narrow=scalars_only or layer is not None):
        blocks = await frames_in(database, run_id, part, schemas, layer=layer, stat=stat, scalars_only=scalars_only)
        found += [chunks.cut(block, after=low - 1, until=high) for block in blocks]
    return found


def _runs(indexes: list[int]) -> list[list[int]]:
    """Indexes split where they are not consecutive.

    >>> _runs([1, 2, 4])
    [[1, 2], [4]]
    """
    breaks = [place for place, (one, two) in enumerate(pairwise(indexes), start=1) if two != one + 1]
    return [indexes[start:end] for start, end in pairwise([0, *breaks, len(indexes)])]
