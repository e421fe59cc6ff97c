"""The pyramid of a segment: minimum, maximum and mean of every series, a bucket for each chunk with frames.

It lies beside the segment's parts and stays when retention drops those. Specification, integers little-endian, arrays
as in `lossguard.wire.arrays`. Part -1: n, seven sizes, then first and last int64 [n], and for the scalars count,
nonfinite, minimum, maximum, mean, each float64 [S, n]. Part k, for stat k: five sizes, then count [n], nonfinite,
minimum, maximum, mean [L, n], float32, the mean rounded to 16 mantissa bits. Parts from -10 down are `coarse`.
"""

import struct
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.arrays import pack, unpack
from lossguard.wire.chunk import round_mantissa
from lossguard.wire.frame import Frames, Schema
from lossguard_service.store import coarse, sections
from lossguard_service.store.buckets import Buckets, bucket

COMMON: Final = -1
"""The number of the part with the steps and the scalars."""
_COLUMNS: Final = ("count", "nonfinite", "minimum", "maximum", "mean")


def build(frames: Frames, edges: NDArray[np.int64]) -> dict[int, bytes]:
    """The pyramid's parts; a bucket begins at each row in `edges`."""
    scalars = bucket(frames.steps, frames.scalars, frames.scalars_present, edges)
    columns = [np.asarray(getattr(scalars, name), np.float64).T for name in _COLUMNS]
    common = [pack(scalars.first), pack(scalars.last), *(pack(np.ascontiguousarray(column)) for column in columns)]
    parts = {COMMON: struct.pack("<I", len(scalars)) + sections.join(common)}
    for k in range(len(frames.schema.stats)):
        here = np.broadcast_to(frames.stats_present[:, k : k + 1], frames.stats.shape[:2])
        found = bucket(frames.steps, frames.stats[:, :, k], here, edges)
        arrays = [np.ascontiguousarray(getattr(found, name).T, np.float32) for name in _COLUMNS]
        arrays[-1] = round_mantissa(arrays[-1], 16)
        arrays[0] = arrays[0][:1]  # a stat is measured for all layers of a step or for none
        parts[k] = sections.join([pack(array) for array in arrays])
    return parts | coarse.build(frames)


def load(
    parts: Mapping[int, bytes],
    names: Schema,
    *,
    stat: int | None = None,
    layer: int | None = None,
) -> Buckets:
    """Columns of the pyramid: all scalars, one layer's stat, or a stat of all layers (`layer` None)."""
    (n,) = struct.unpack_from("<I", parts[COMMON])
    common = sections.take(parts[COMMON][4:], 7)
    whole = np.dtype("<i8")
    first, last = (unpack(common[place], whole, (n,)) for place in (0, 1))
    if stat is None:
        columns = [unpack(part, np.dtype("<f8"), (len(names.scalars), n)) for part in common[2:]]
    else:
        rows = len(names.layers)
        found = sections.take(parts[stat], 5)
        count = unpack(found[0], np.dtype("<f4"), (1, n)) if rows else np.zeros((1, n), np.float32)
        chosen = slice(None) if layer is None else slice(layer, layer + 1)
        others = [unpack(part, np.dtype("<f4"), (rows, n))[chosen] for part in found[1:]]
        columns = [np.broadcast_to(count, others[0].shape), *others]
    count, nonfinite, low, high, mean = (np.asarray(column.T, np.float64) for column in columns)
    return Buckets(first, last, count.astype(np.int64), nonfinite.astype(np.int64), low, high, mean)
