"""The coarsest level of the pyramid: a small row for each layer of a segment, and one for its scalars.

For plots of one series over very many steps: 512 rows of a segment are a bucket, its arrays stand as they are, and the
rows of many segments are decoded at once. It lies beside the finer parts of the pyramid and stays as long as they do.

Specification, little-endian. Part `SCALARS`: first and last steps of the buckets, int64 [n] each; then for each scalar
count, nonfinite, minimum, maximum and mean, float64 [S, 5, n]. Part `LAYER - l`, for layer l: the same with float32
[K, 5, n]. n follows from the size.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.frame import Frames
from lossguard_service.store.buckets import Buckets, bucket, join

ROWS: Final = 512
"""Frames in a bucket."""
SCALARS: Final = -10
LAYER: Final = -11
_COLUMNS: Final = ("count", "nonfinite", "minimum", "maximum", "mean")


def build(frames: Frames) -> dict[int, bytes]:
    """The parts of one segment."""
    edges = np.arange(0, len(frames), ROWS)
    scalars = bucket(frames.steps, frames.scalars, frames.scalars_present, edges)
    head = scalars.first.astype("<i8").tobytes() + scalars.last.astype("<i8").tobytes()
    parts = {SCALARS: head + _stacked(scalars, "<f8").tobytes()}
    t, layers, stats = frames.stats.shape
    columns = np.empty((layers, stats, 5, len(edges)), "<f4")
    for k in range(stats):  # one by one: all at once, as float64, are a few hundred megabytes
        here = np.broadcast_to(frames.stats_present[:, k : k + 1], (t, layers))
        columns[:, k] = _stacked(bucket(frames.steps, frames.stats[:, :, k], here, edges), "<f4")
    for layer in range(layers):
        parts[LAYER - layer] = head + columns[layer].tobytes()
    return parts


def load(parts: Sequence[bytes], *, width: int, columns: Sequence[int], is_layer: bool) -> Buckets:
    """Columns out of the same part of consecutive segments.

    Args:
        parts: one of each segment.
        width: how many columns the part has: the scalars, or a layer's stats.
        columns: which of them.
        is_layer: whose part it is.
    """
    value = np.dtype("<f4" if is_layer else "<f8")
    found = []
    for size, group in groupby(parts, key=len):
        n = size // (16 + 5 * width * value.itemsize)
        # Most segments have as many buckets as their neighbours: one array of all of them.
        raw = np.frombuffer(b"".join(group), np.uint8).reshape(-1, size)
        steps = np.ascontiguousarray(raw[:, : 16 * n]).view("<i8").reshape(-1, 2, n)
        numbers = np.ascontiguousarray(raw[:, 16 * n :]).view(value).reshape(-1, width, 5, n)[:, list(columns)]
        count, odd, low, high, mean = numbers.transpose(2, 0, 3, 1).reshape(5, -1, len(columns)).astype(np.float64)
        first, last = steps[:, 0].reshape(-1), steps[:, 1].reshape(-1)
        found.append(Buckets(first, last, count.astype(np.int64), odd.astype(np.int64), low, high, mean))
    return join(found, len(columns))


def _stacked(found: Buckets, kind: str) -> NDArray[Any]:
    """Columns [C, 5, n]."""
    return np.stack([np.asarray(getattr(found, name), kind).T for name in _COLUMNS], axis=1)
