"""Series, heat maps and single steps of a run, at any zoom.

A bucket's width in steps follows from the points asked for. Where much of the range is in segments, heat maps read
the pyramid; then a bucket begins and ends where a chunk does.
Superseded frames are left out, unless one attempt is asked for by its number. Where retention has dropped the frames,
the pyramid answers, whatever the zoom.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from lossguard.wire.frame import Floats64, Frames, Schema, Steps
from lossguard_service.store import buckets, chunks, coarse, pyramid, schema, segments
from lossguard_service.store.buckets import Buckets
from lossguard_service.store.bytes import Held
from lossguard_service.store.database import Database
from lossguard_service.store.pieces import Piece, batches, frames_in, pieces_of
from lossguard_service.store.segments import SegmentRow

RAW_SEGMENTS: Final = 1
"""Up to so many segments are decoded for one plot of scalars or one heat map; more are read from the pyramid."""


class UnknownSeries(LookupError):
    """The run has no such scalar, layer or stat; the message names what it has."""


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """One stat of every layer over buckets of steps.

    Attributes:
        stat: its name.
        layers: layer paths [L], in the model's order.
        first, last: int64 [n], the steps of each bucket.
        maximum, minimum: float64 [L, n], without NaN; NaN where nothing was measured, or only NaN.
        nonfinite: int64 [L, n], how many values are NaN or infinite.
    """

    stat: str
    layers: tuple[str, ...]
    first: Steps
    last: Steps
    maximum: Floats64
    minimum: Floats64
    nonfinite: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Question:
    """Scalars, one layer's stat, or (with `layers`) a stat of all those layers; each a column of the answer."""

    scalars: tuple[str, ...] = ()
    stat: str | None = None
    layer: str | None = None
    layers: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return len(self.layers) or len(self.scalars) or 1

    def is_in(self, names: Schema) -> bool:
        if self.scalars:
            return not set(self.scalars).isdisjoint(names.scalars)
        return self.stat in names.stats and (self.layer is None or self.layer in names.layers)

    def of_frames(self, frames: Frames, edges: Steps) -> Buckets:
        names = frames.schema
        if self.scalars:
            have = [name for name in self.scalars if name in names.scalars]
            at = [names.scalars.index(name) for name in have]
            found = buckets.bucket(frames.steps, frames.scalars[:, at], frames.scalars_present[:, at], edges)
            return _spread(found, tuple(have), self.scalars)
        k = names.stats.index(self.stat or "")
        here = frames.stats_present[:, k : k + 1]
        if self.layer is not None:
            place = names.layers.index(self.layer)
            return buckets.bucket(frames.steps, frames.stats[:, place : place + 1, k], here, edges)
        here = np.broadcast_to(here, frames.stats.shape[:2])
        return _spread(buckets.bucket(frames.steps, frames.stats[:, :, k], here, edges), names.layers, self.layers)

    def parts(self, names: Schema) -> list[int]:
        return [pyramid.COMMON] if self.scalars else [pyramid.COMMON, names.stats.index(self.stat or "")]

    def of_pyramid(self, parts: dict[int, bytes], names: Schema) -> Buckets:
        if self.scalars:
            return _spread(pyramid.load(parts, names), names.scalars, self.scalars)
        k = names.stats.index(self.stat or "")
        if self.layer is not None:
            return pyramid.load(parts, names, stat=k, layer=names.layers.index(self.layer))
        return _spread(pyramid.load(parts, names, stat=k), names.layers, self.layers)


def _spread(found: Buckets, have: tuple[str, ...], wanted: tuple[str, ...]) -> Buckets:
    """The columns of `wanted`; those that are not among `have` were not measured."""
    if have == wanted:
        return found
    here = [name for name in wanted if name in have]
    taken, put = [have.index(name) for name in here], [wanted.index(name) for name in here]
    arrays = {}
    for name in ("count", "nonfinite", "minimum", "maximum", "mean"):
        old = getattr(found, name)
        arrays[name] = np.full((len(found), len(wanted)), 0 if old.dtype == np.int64 else np.nan, old.dtype)
        arrays[name][:, put] = old[:, taken]
    return Buckets(found.first, found.last, **arrays)


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
    pieces, schemas = await pieces_of(database, run_id, first=first, last=last, attempt=attempt)
    question = _Question(scalars=(name,))
    if not any(question.is_in(names) for names in schemas.values()):
        raise UnknownSeries(_unknown("scalar", name, chunks.union(list(schemas.values())).scalars))
    return await _answer(database, run_id, question, pieces, schemas, points, first, last)


async def scalar_columns(
    database: Database,
    run_id: int,
    names: Sequence[str],
    *,
    first: int | None = None,
    last: int | None = None,
    points: int = 1000,
    attempt: int | None = None,
) -> Buckets:
    """Some scalars over the same buckets, a column each; one that the run does not have was never measured."""
    pieces, schemas = await pieces_of(database, run_id, first=first, last=last, attempt=attempt)
    question = _Question(scalars=tuple(names))
    return await _answer(database, run_id, question, pieces, schemas, points, first, last)


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
    pieces, schemas = await pieces_of(database, run_id, first=first, last=last, attempt=attempt)
    question = _Question(stat=stat, layer=layer)
    if not any(question.is_in(names) for names in schemas.values()):
        known = chunks.union(list(schemas.values()))
        raise UnknownSeries(
            _unknown("layer", layer, known.layers) if layer not in known.layers else _unknown("stat", stat, known.stats)
        )
    return await _answer(database, run_id, question, pieces, schemas, points, first, last)


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
    pieces, schemas = await pieces_of(database, run_id, first=first, last=last, attempt=attempt)
    known = chunks.union(list(schemas.values()))
    if stat not in known.stats:
        raise UnknownSeries(_unknown("stat", stat, known.stats))
    question = _Question(stat=stat, layers=known.layers)
    found = await _answer(database, run_id, question, pieces, schemas, points, first, last)
    return HeatMap(stat, known.layers, found.first, found.last, found.maximum.T, found.minimum.T, found.nonfinite.T)


async def frames_at(database: Database, run_id: int, step: int, *, attempt: int | None = None) -> Frames | None:
    """The frame of one step (a block of length 1), or None: all its scalars and stats."""
    pieces, schemas = await pieces_of(database, run_id, first=step, last=step, attempt=attempt)
    for piece in reversed(pieces):
        for frames in await frames_in(database, run_id, [piece], schemas):
            place = int(frames.steps.searchsorted(step))
            if place < len(frames) and frames.steps[place] == step:
                return frames[place : place + 1]
    return None


async def _answer(
    database: Database,
    run_id: int,
    question: _Question,
    pieces: Sequence[Piece],
    schemas: dict[int, Schema],
    points: int,
    first: int | None,
    last: int | None,
) -> Buckets:
    pieces = [piece for piece in pieces if question.is_in(schemas[piece.row.schema])]
    if not pieces:
        return buckets.join([], question.width)
    low = pieces[0].first if first is None else max(pieces[0].first, first)
    high = pieces[-1].until if last is None else min(pieces[-1].until, last)
    width = max(1, -(-(high - low + 1) // points))
    held = [piece.row for piece in pieces if isinstance(piece.row, SegmentRow)]
    per_chunk = sum(row.frames for row in held) / max(1, sum(row.next_index - row.first_index for row in held))
    whole = all(piece.is_whole for piece in pieces)
    from_pyramid = question.layer is None and len(held) > RAW_SEGMENTS and width >= per_chunk and whole
    found: list[Buckets] = []
    for is_coarse, some in groupby(pieces, key=lambda piece: _suits(piece, question, low, high, width)):
        for batch in batches(list(some), narrow=not question.layers or from_pyramid):
            row = batch[0].row
            if is_coarse and (quick := await _from_coarse(database, run_id, question, batch, schemas)) is not None:
                found.append(quick)
            elif isinstance(row, SegmentRow) and (not row.is_full or from_pyramid):
                found.extend(await _from_pyramid(database, run_id, question, batch, low, high, schemas))
            else:
                only: dict[str, Any] = {"layer": question.layer, "stat": question.stat}
                blocks = await frames_in(database, run_id, batch, schemas, **only, scalars_only=bool(question.scalars))
                found.extend(await asyncio.to_thread(_from_frames, question, blocks, low, high, width))
    joined = buckets.join(found, question.width)
    if width == 1 and bool((joined.first[1:] > joined.first[:-1]).all()):
        return joined
    # A bucket may have begun in one piece and ended in the next.
    return buckets.merge(joined, buckets.edges_by_width(joined.first.clip(low, high), low, width))


def _suits(piece: Piece, question: _Question, low: int, high: int, width: int) -> bool:
    """True if the coarsest level of the pyramid is fine enough, and all of the segment is asked for."""
    row = piece.row
    if not isinstance(row, SegmentRow) or question.layers or not piece.is_whole:
        return False
    steps = (row.last_step - row.first_step + 1) / -(-row.frames // coarse.ROWS)
    return width >= steps and low <= row.first_step and row.last_step <= high


async def _from_coarse(
    database: Database, run_id: int, question: _Question, batch: Sequence[Piece], schemas: dict[int, Schema]
) -> Buckets | None:
    """The buckets of segments, or None if some were made by a version that knew no such level."""
    rows = [piece.row for piece in batch if isinstance(piece.row, SegmentRow)]
    names = schemas[rows[0].schema]
    part = coarse.SCALARS if question.layer is None else coarse.LAYER - names.layers.index(question.layer)

    def read(connection: Connection) -> list[dict[int, Held]]:
        return segments.parts_of(connection, schema.pyramid, run_id, rows, [part])

    parts = await database.bytes.fetch(await database.read(read))
    if not all(parts):
        return None
    data = [one[part] for one in parts]
    if question.layer is not None:
        column = names.stats.index(question.stat or "")
        return coarse.load(data, width=len(names.stats), columns=[column], is_layer=True)
    have = tuple(name for name in question.scalars if name in names.scalars)
    at = [names.scalars.index(name) for name in have]
    return _spread(coarse.load(data, width=len(names.scalars), columns=at, is_layer=False), have, question.scalars)


def _from_frames(question: _Question, blocks: Sequence[Frames], low: int, high: int, width: int) -> list[Buckets]:
    found = []
    for block in blocks:
        frames = chunks.cut(block, after=low - 1, until=high)
        if len(frames):
            found.append(question.of_frames(frames, buckets.edges_by_width(frames.steps, low, width)))
    return found


async def _from_pyramid(
    database: Database,
    run_id: int,
    question: _Question,
    batch: Sequence[Piece],
    low: int,
    high: int,
    schemas: dict[int, Schema],
) -> list[Buckets]:
    """The buckets that reach into [low, high], but for one that reaches beyond what counts of a superseded attempt."""
    rows = [piece.row for piece in batch if isinstance(piece.row, SegmentRow)]
    names = schemas[rows[0].schema]

    def read(connection: Connection) -> list[dict[int, Held]]:
        return segments.parts_of(connection, schema.pyramid, run_id, rows, question.parts(names))

    def work(parts: list[dict[int, bytes]]) -> list[Buckets]:
        result = []
        for piece, held in zip(batch, parts, strict=True):
            found = question.of_pyramid(held, names)
            here = (found.last >= low) & (found.first <= high) & (found.last <= piece.until)
            result.append(Buckets(*(getattr(found, name)[here] for name in Buckets.__slots__)))
        return result

    return await asyncio.to_thread(work, await database.bytes.fetch(await database.read(read)))


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    have = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return f"the run has no {kind} {name!r}; it has {have}" if known else f"the run has no {kind}s yet"
