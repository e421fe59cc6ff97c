"""The bytes of a segment: a few thousand consecutive steps of an attempt, laid out by series, in numbered parts.

Guarantees. `load` gives back the frames that `build` was given, bit for bit.

Specification, integers little-endian, arrays as in `lossguard.wire.arrays`, several byte strings in one as in
`sections`. Part -1: seven uint32 (version 1, T, and the sizes of five sections), then steps int64 [T], times float64
[T], scalars float64 [S, T], scalars_present bits [T, S], stats_present bits [T, K] (no bytes where all is present).
Version 1 has part l for layer l: K float32 arrays [T] in one, so that its first 4 K bytes tell where each stat's array
lies. In version 2, one float32 array [K, L, T] follows in part -1.

Part -3, for reading one series without the scalars: steps (no bytes where they are all from the first to the last) and
stats_present in one. Segments of the first release do not have it.

The odd choice: version 2 for segments of few values, 1 for others. What is decoded as a whole within half a millisecond
needs no rows of its own for each layer, and is a tenth smaller in one piece (docs/decisions/0412-small-segments.md).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from lossguard.wire.arrays import pack, unpack
from lossguard.wire.frame import Floats32, Frames, Schema
from lossguard_service.store import sections

BY_LAYER, IN_ONE = 1, 2
"""The versions."""
IN_ONE_VALUES: Final = 1 << 17
"""Up to so many values of stats, a segment has version 2."""
COMMON: Final = -1
"""The number of the part that all layers share."""
STEPS: Final = -3
"""The number of the part with the steps alone; segments of the first release do not have it."""
SLICES: Final = 1 << 20
"""Numbers from here on are of no part: under `SLICES + l` stands one array of layer l, where only one was read."""
_HEAD: Final = struct.Struct("<7I")
_STEPS, _FLOATS, _VALUES = np.dtype("<i8"), np.dtype("<f8"), np.dtype("<f4")


class NewerSegment(ValueError):
    """A replica of a later version laid this segment out: such a replica reads it, this one must be updated."""


@dataclass(frozen=True, slots=True)
class Laid:
    """A segment and some of its parts.

    Attributes:
        first_step, last_step: of its frames.
        frames: how many.
        parts: by number.
    """

    first_step: int
    last_step: int
    frames: int
    parts: Mapping[int, bytes]


def build(frames: Frames) -> dict[int, bytes]:
    """The parts of a segment."""
    stat_bits = sections.pack_bits(frames.stats_present)
    common = [
        pack(frames.steps),
        pack(frames.times),
        pack(np.ascontiguousarray(frames.scalars.T)),
        sections.pack_bits(frames.scalars_present),
        stat_bits,
    ]
    is_dense = int(frames.steps[-1]) - int(frames.steps[0]) + 1 == len(frames)
    steps = sections.join([b"" if is_dense else common[0], stat_bits])
    in_one = 0 < frames.stats.size <= IN_ONE_VALUES
    head = _HEAD.pack(IN_ONE if in_one else BY_LAYER, len(frames), *map(len, common))
    if in_one:
        block = pack(np.ascontiguousarray(frames.stats.transpose(2, 1, 0)))
        return {COMMON: b"".join([head, *common, block]), STEPS: steps}
    parts = {COMMON: b"".join([head, *common]), STEPS: steps}
    by_layer = np.ascontiguousarray(frames.stats.transpose(1, 2, 0))
    return parts | {layer: sections.join([pack(series) for series in stats]) for layer, stats in enumerate(by_layer)}


def place_of(head: bytes, stat: int) -> tuple[int, int]:
    """Where in a layer's part the array of a stat begins and how many bytes it has, by the part's first 4 K bytes."""
    sizes = np.frombuffer(head, "<u4")
    return len(head) + int(sizes[:stat].sum()), int(sizes[stat])


def load(
    parts: Mapping[int, bytes],
    names: Schema,
    layers: Sequence[int] | None = None,
    stats: Sequence[int] | None = None,
) -> Frames:
    """The frames in a segment's parts.

    Args:
        parts: the common part and, in version 1, those of `layers`, or slices of these if `stats` is one.
        names: the segment's column names.
        layers, stats: which ones; the frames then have these only. All of them by default.

    Raises:
        NewerSegment: see there.
    """
    data = parts[COMMON]
    version, t, *sizes = _head(data)
    steps, times, scalars, scalar_bits, stat_bits = sections.split(data, _HEAD.size, sizes)
    s, k = len(names.scalars), len(names.stats)
    rows = list(range(len(names.layers)) if layers is None else layers)
    columns = list(range(k) if stats is None else stats)
    if version == IN_ONE:
        found = _block(parts, names, t)[columns][:, rows].swapaxes(0, 1)
    else:
        found = np.empty((len(rows), len(columns), t), np.float32)
        for row, layer in enumerate(rows):
            for column, packed in enumerate(_of_layer(parts, layer, columns, k)):
                found[row, column] = unpack(packed, _VALUES, (t,))
    return Frames(
        schema=Schema(
            names.scalars, tuple(names.layers[layer] for layer in rows), tuple(names.stats[stat] for stat in columns)
        ),
        steps=unpack(steps, _STEPS, (t,)),
        times=unpack(times, _FLOATS, (t,)),
        scalars=np.ascontiguousarray(unpack(scalars, _FLOATS, (s, t)).T),
        stats=np.ascontiguousarray(found.transpose(2, 0, 1)),
        scalars_present=sections.unpack_bits(scalar_bits, (t, s)),
        stats_present=sections.unpack_bits(stat_bits, (t, k))[:, columns],
    )


def load_series(held: Sequence[Laid], names: Schema, layer: int, stat: int) -> list[Frames]:
    """One stat of one layer, and nothing else: a block, or one for each segment if steps come again.

    Args:
        held: consecutive segments, each with `STEPS` and the layer's part or the slice of it, or else (where these are
            not enough, see `is_enough`) with the common part.
        names: their column names.
        layer, stat: which one.

    Returns:
        Frames without scalars, whose times are not known.

    Raises:
        NewerSegment: see there.
    """
    ends = np.cumsum([0, *(one.frames for one in held)]).tolist()
    total = ends[-1]
    values, present = np.empty(total, np.float32), np.ones(total, np.bool_)
    # The steps of a segment rise, so as many of them as there are from the first to the last are all of them.
    rises = all(one.last_step < two.first_step for one, two in pairwise(held))
    first, last = held[0].first_step, held[-1].last_step
    is_dense = rises and last - first + 1 == total
    steps = np.arange(first, last + 1) if is_dense else np.empty(total, np.int64)
    for one, (start, end) in zip(held, pairwise(ends), strict=True):
        t = one.frames
        if one.parts.keys().isdisjoint((layer, SLICES + layer)):
            values[start:end] = _block(one.parts, names, t)[stat, layer]
        else:
            (packed,) = _of_layer(one.parts, layer, [stat], len(names.stats))
            values[start:end] = unpack(packed, _VALUES, (t,))
        steps_part, bits = _steps_of(one.parts)
        if len(bits):
            present[start:end] = sections.unpack_bits(bits, (t, len(names.stats)))[:, stat]
        if is_dense:
            continue
        if one.last_step - one.first_step + 1 == t:
            steps[start:end] = np.arange(one.first_step, one.last_step + 1)
        else:
            steps[start:end] = unpack(steps_part, _STEPS, (t,))
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
        for start, end in pairwise([0, total] if rises else ends)
    ]


def is_enough(parts: Mapping[int, object], layer: int) -> bool:
    """True if a series of the layer can be read without the common part: not in version 2, nor in the first release."""
    return STEPS in parts and not parts.keys().isdisjoint((layer, SLICES + layer))


def _head(data: bytes) -> tuple[int, ...]:
    """Version, frames and the sizes of the sections of the common part."""
    head: tuple[int, ...] = _HEAD.unpack_from(data)
    if head[0] not in (BY_LAYER, IN_ONE):
        raise NewerSegment(f"a segment of version {head[0]}, this replica reads versions up to {IN_ONE}: update it")
    return head


def _block(parts: Mapping[int, bytes], names: Schema, t: int) -> Floats32:
    """All stats [K, L, T] of version 2."""
    data = parts[COMMON]
    start = _HEAD.size + sum(_head(data)[2:])
    return unpack(memoryview(data)[start:], _VALUES, (len(names.stats), len(names.layers), t))


def _of_layer(parts: Mapping[int, bytes], layer: int, stats: Sequence[int], k: int) -> list[bytes | memoryview]:
    """The packed arrays of some stats of a layer."""
    if (one := parts.get(SLICES + layer)) is not None:
        return [one]
    held = sections.take(parts[layer], k)
    return [held[stat] for stat in stats]


def _steps_of(parts: Mapping[int, bytes]) -> tuple[memoryview, memoryview]:
    """The sections of the steps and of the stats' presence."""
    if STEPS in parts:
        steps, bits = sections.take(parts[STEPS], 2)
    else:
        data = parts[COMMON]
        steps, *_, bits = sections.split(data, _HEAD.size, _head(data)[2:])
    return steps, bits
