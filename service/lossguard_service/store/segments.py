"""Segments: a few thousand consecutive steps of an attempt, laid out by series, in place of the chunks' bytes.

Reading one layer's stat over a million steps touches one small row per segment instead of every chunk. Nothing is
lost: `load` gives back the frames bit for bit. Chunks keep their index rows, so identity, gaps and positions stay.

Specification, integers little-endian, arrays as in `lossguard.wire.arrays`. Part -1: seven uint32 (version 1, T, and
the sizes of five sections), then steps int64 [T], times float64 [T], scalars float64 [S, T], scalars_present bits
[T, S], stats_present bits [T, K] (no bytes where all is present). Part l, for layer l: K uint32 sizes, then K float32
arrays [T].

Part -3, for reading one series without the scalars: the sizes of two sections as uint32, steps and stats_present.

In an object, the parts lie one after the other, and the one row that is left has the number -2: the object's key, and
as its data number and size of each part, int32 [n, 2].

The pyramid has a bucket for each chunk with frames. Its part -1: n, seven sizes, then first and last int64 [n], and for
the scalars count, nonfinite, minimum, maximum, mean, each float64 [S, n]. Its part k, for stat k: five sizes, then
count [n], nonfinite, minimum, maximum, mean [L, n], float32, the mean rounded to 16 mantissa bits. Parts from -10 down
are `coarse`.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from lossguard.wire.arrays import pack, unpack
from lossguard.wire.chunk import round_mantissa
from lossguard.wire.frame import Frames, Schema
from lossguard_service.store import coarse
from lossguard_service.store import schema as tables
from lossguard_service.store.buckets import Buckets, bucket
from lossguard_service.store.bytes import Elsewhere, Held, Kept
from lossguard_service.store.hot import Hot

VERSION: Final = 1
COMMON: Final = -1
"""The number of the part that all layers share."""
STEPS: Final = -3
"""The number of the part with the steps alone; segments of versions before do not have it."""
PACKED: Final = -2
"""The number of the row that stands for all parts where they are in an object."""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment without its parts.

    Attributes:
        attempt: the attempt's number.
        first_index, next_index: it holds the chunks from the first to before the next.
        first_step, last_step: of its frames.
        frames: how many.
        schema: the number of its column names within the run.
        is_full: False if retention has dropped the frames, so that only the pyramid is left.
    """

    attempt: int
    first_index: int
    next_index: int
    first_step: int
    last_step: int
    frames: int
    schema: int
    is_full: bool


def rows_of(
    connection: Connection,
    run_id: int,
    *,
    first: int | None = None,
    last: int | None = None,
    attempt: int | None = None,
) -> list[SegmentRow]:
    """Segments with frames in [first, last], by attempt and index."""
    table = tables.segments
    query = sa.select(*(table.c[name] for name in SegmentRow.__slots__)).where(table.c.run_id == run_id)
    if first is not None:
        query = query.where(table.c.last_step >= first)
    if last is not None:
        query = query.where(table.c.first_step <= last)
    if attempt is not None:
        query = query.where(table.c.attempt == attempt)
    return [SegmentRow(*row) for row in connection.execute(query.order_by(table.c.attempt, table.c.first_index))]


_AFTER = Hot(
    sa.select(*(tables.segments.c[name] for name in SegmentRow.__slots__))
    .where(tables.segments.c.run_id == sa.bindparam("run"), tables.segments.c.attempt == sa.bindparam("attempt"))
    .where(tables.segments.c.next_index > sa.bindparam("index"))
    .order_by(tables.segments.c.first_index)
)


def rows_after(connection: Connection, run_id: int, attempt: int, index: int) -> list[SegmentRow]:
    """The segment of an attempt that holds chunk `index`, if one does, and those after it."""
    return [SegmentRow(*row) for row in _AFTER.rows(connection, {"run": run_id, "attempt": attempt, "index": index})]


def ends_of(connection: Connection, run_id: int) -> dict[int, int]:
    """By attempt, the first chunk index that is in no segment; attempts without segments are left out."""
    table = tables.segments
    query = (
        sa.select(table.c.attempt, sa.func.max(table.c.next_index))
        .where(table.c.run_id == run_id)
        .group_by(table.c.attempt)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def parts_of(
    connection: Connection,
    table: sa.Table,
    run_id: int,
    held: Sequence[SegmentRow],
    parts: Sequence[int] | None = None,
) -> list[dict[int, Held]]:
    """Parts of segments of one attempt, or of their pyramids, by number, a dictionary each; all parts by default."""
    found: dict[int, dict[int, Held]] = {row.first_index: {} for row in held}
    place = {"run": run_id, "attempt": held[0].attempt, "first": held[0].first_index, "last": held[-1].first_index}
    chosen = {f"part_{n}": part for n, part in enumerate((PACKED, *parts))} if parts is not None else {}
    for first_index, part, data, key in _parts(table.name, len(chosen)).rows(connection, place | chosen):
        if first_index not in found:
            continue
        if key is None:
            found[first_index][part] = data
        else:
            found[first_index] |= _places(key, data, parts)
    return list(found.values())


@lru_cache
def _parts(name: str, chosen: int) -> Hot:
    table = tables.metadata.tables[name].c
    query = (
        sa.select(table.first_index, table.part, table.data, table.object)
        .where(table.run_id == sa.bindparam("run"), table.attempt == sa.bindparam("attempt"))
        .where(table.first_index.between(sa.bindparam("first"), sa.bindparam("last")))
    )
    return Hot(query.where(table.part.in_([sa.bindparam(f"part_{n}") for n in range(chosen)])) if chosen else query)


def packed(parts: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """All parts as one object's bytes, and the data of the row that names it."""
    index = np.array([(part, len(data)) for part, data in parts.items()], "<i4")
    return b"".join(parts.values()), index.tobytes()


def rows_for(kept: Kept, parts: Mapping[int, bytes], key: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows of a segment's parts, or of its pyramid's: one each, or one for all where they are in an object."""
    if kept.object is None:
        return [{**key, "part": part, "data": data, "object": None} for part, data in parts.items()]
    return [{**key, "part": PACKED, "data": kept.data, "object": kept.object}]


def _places(key: str, data: bytes, parts: Sequence[int] | None) -> dict[int, Held]:
    index = np.frombuffer(data, "<i4").reshape(-1, 2)
    sizes = index[:, 1].astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    found = zip(index[:, 0].tolist(), starts.tolist(), sizes.tolist(), strict=True)
    return {part: Elsewhere(key, start, size) for part, start, size in found if parts is None or part in parts}


def build(frames: Frames) -> dict[int, bytes]:
    """The parts of a segment."""
    common = [
        pack(frames.steps),
        pack(frames.times),
        pack(np.ascontiguousarray(frames.scalars.T)),
        _pack_bits(frames.scalars_present),
        _pack_bits(frames.stats_present),
    ]
    head = struct.pack("<7I", VERSION, len(frames), *map(len, common))
    parts = {COMMON: head + b"".join(common), STEPS: _joined([common[0], common[4]])}
    by_layer = np.ascontiguousarray(frames.stats.transpose(1, 2, 0))
    for layer in range(len(frames.schema.layers)):
        parts[layer] = _joined([pack(series) for series in by_layer[layer]])
    return parts


def load(parts: Mapping[int, bytes], names: Schema, layers: Sequence[int] | None = None) -> Frames:
    """The frames in a segment's parts.

    Args:
        parts: the common part and those of `layers`.
        names: the segment's column names.
        layers: which layers; the frames then have these only. All of them by default.
    """
    data = parts[COMMON]
    version, t, *sizes = struct.unpack_from("<7I", data)
    if version != VERSION:
        raise ValueError(f"a segment of version {version}: update this replica")
    steps, times, scalars, scalar_bits, stat_bits = _split(data, 28, sizes)
    s, k = len(names.scalars), len(names.stats)
    chosen = list(range(len(names.layers))) if layers is None else list(layers)
    stats = np.empty((len(chosen), k, t), np.float32)
    for place, layer in enumerate(chosen):
        for stat, packed in enumerate(_sections(parts[layer], k)):
            stats[place, stat] = unpack(packed, np.dtype("<f4"), (t,))
    return Frames(
        schema=Schema(names.scalars, tuple(names.layers[layer] for layer in chosen), names.stats),
        steps=unpack(steps, np.dtype("<i8"), (t,)),
        times=unpack(times, np.dtype("<f8"), (t,)),
        scalars=np.ascontiguousarray(unpack(scalars, np.dtype("<f8"), (s, t)).T),
        stats=np.ascontiguousarray(stats.transpose(2, 0, 1)),
        scalars_present=_unpack_bits(scalar_bits, (t, s)),
        stats_present=_unpack_bits(stat_bits, (t, k)),
    )


def load_series(
    held: Sequence[tuple[SegmentRow, Mapping[int, bytes]]], names: Schema, layer: int, stat: int
) -> list[Frames]:
    """One stat of one layer, and nothing else: a block, or one for each segment if steps come again.

    Args:
        held: consecutive segments with the parts `STEPS` (or `COMMON`) and that of the layer.
        names: their column names.
        layer, stat: which one.

    Returns:
        Frames without scalars, whose times are not known.
    """
    ends = np.cumsum([0, *(row.frames for row, _ in held)]).tolist()
    total = ends[-1]
    steps, values, present = np.empty(total, np.int64), np.empty(total, np.float32), np.ones(total, np.bool_)
    for (row, parts), (start, end) in zip(held, pairwise(ends), strict=True):
        t = row.frames
        if STEPS in parts:
            steps_part, bits = _sections(parts[STEPS], 2)
        else:
            steps_part, *_, bits = _split(parts[COMMON], 28, struct.unpack_from("<7I", parts[COMMON])[2:])
        # They rise, so as many of them as there are steps are all of them.
        is_dense = row.last_step - row.first_step + 1 == t
        steps[start:end] = (
            np.arange(row.first_step, row.last_step + 1) if is_dense else unpack(steps_part, np.dtype("<i8"), (t,))
        )
        values[start:end] = unpack(_sections(parts[layer], len(names.stats))[stat], np.dtype("<f4"), (t,))
        if len(bits):
            present[start:end] = _unpack_bits(bits, (t, len(names.stats)))[:, stat]
    if all(one.last_step < two.first_step for (one, _), (two, _) in pairwise(held)):
        ends = [0, total]  # no step comes again, so it is one block
    return [
        Frames(
            schema=Schema((), (names.layers[layer],), (names.stats[stat],)),
            steps=steps[start:end],
            times=np.broadcast_to(np.nan, end - start),
            scalars=np.empty((end - start, 0)),
            stats=values[start:end].reshape(-1, 1, 1),
            scalars_present=np.empty((end - start, 0), np.bool_),
            stats_present=present[start:end].reshape(-1, 1),
        )
        for start, end in pairwise(ends)
    ]


def build_pyramid(frames: Frames, edges: NDArray[np.int64]) -> dict[int, bytes]:
    """The pyramid's parts; a bucket begins at each row in `edges`."""
    scalars = bucket(frames.steps, frames.scalars, frames.scalars_present, edges)
    columns = [np.asarray(getattr(scalars, name), np.float64).T for name in _COLUMNS]
    common = [pack(scalars.first), pack(scalars.last), *(pack(np.ascontiguousarray(column)) for column in columns)]
    parts = {COMMON: struct.pack("<I", len(scalars)) + _joined(common)}
    for k in range(len(frames.schema.stats)):
        here = np.broadcast_to(frames.stats_present[:, k : k + 1], frames.stats.shape[:2])
        found = bucket(frames.steps, frames.stats[:, :, k], here, edges)
        arrays = [np.ascontiguousarray(getattr(found, name).T, np.float32) for name in _COLUMNS]
        arrays[-1] = round_mantissa(arrays[-1], 16)
        arrays[0] = arrays[0][:1]  # a stat is measured for all layers of a step or for none
        parts[k] = _joined([pack(array) for array in arrays])
    return parts | coarse.build(frames)


def load_pyramid(
    parts: Mapping[int, bytes],
    names: Schema,
    *,
    stat: int | None = None,
    layer: int | None = None,
) -> Buckets:
    """Columns of the pyramid: all scalars, one layer's stat, or a stat of all layers (`layer` None)."""
    (n,) = struct.unpack_from("<I", parts[COMMON])
    sections = _sections(parts[COMMON][4:], 7)
    whole = np.dtype("<i8")
    first, last = (unpack(sections[place], whole, (n,)) for place in (0, 1))
    if stat is None:
        columns = [unpack(part, np.dtype("<f8"), (len(names.scalars), n)) for part in sections[2:]]
    else:
        rows = len(names.layers)
        found = _sections(parts[stat], 5)
        count = unpack(found[0], np.dtype("<f4"), (1, n)) if rows else np.zeros((1, n), np.float32)
        chosen = slice(None) if layer is None else slice(layer, layer + 1)
        others = [unpack(part, np.dtype("<f4"), (rows, n))[chosen] for part in found[1:]]
        columns = [np.broadcast_to(count, others[0].shape), *others]
    count, nonfinite, low, high, mean = (np.asarray(column.T, np.float64) for column in columns)
    return Buckets(first, last, count.astype(np.int64), nonfinite.astype(np.int64), low, high, mean)


_COLUMNS: Final = ("count", "nonfinite", "minimum", "maximum", "mean")


def _joined(sections: Sequence[bytes]) -> bytes:
    return struct.pack(f"<{len(sections)}I", *map(len, sections)) + b"".join(sections)


def _sections(data: bytes, count: int) -> list[memoryview]:
    return _split(data, 4 * count, struct.unpack_from(f"<{count}I", data))


def _split(data: bytes, start: int, sizes: Sequence[int]) -> list[memoryview]:
    view, result = memoryview(data), []
    for size in sizes:
        result.append(view[start : start + size])
        start += size
    return result


def _pack_bits(present: NDArray[np.bool_]) -> bytes:
    return b"" if bool(present.all()) else np.packbits(present).tobytes()


def _unpack_bits(data: memoryview, shape: tuple[int, int]) -> NDArray[np.bool_]:
    if not len(data):
        return np.ones(shape, np.bool_)
    bits: NDArray[Any] = np.unpackbits(np.frombuffer(data, np.uint8), count=shape[0] * shape[1])
    return bits.astype(np.bool_).reshape(shape)
