"""A chunk's summary: its frames as one bucket, for overviews of runs that are not compacted yet.

Written at ingest, so that an overview need not decode every chunk. Specification: seven little-endian uint32 (version
1, T, S, L, K, and the sizes of the two sections), then two sections of `lossguard.wire.arrays`. Section one, float64:
the scalars' count, nonfinite, minimum, maximum, mean, each [S]. Section two, float32: the stats' count [K], and
nonfinite, minimum, maximum, mean, each [K, L]. The mean is rounded to 16 mantissa bits: stats have 10 by default.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.arrays import pack, unpack
from lossguard.wire.chunk import round_mantissa
from lossguard.wire.frame import Frames
from lossguard_service.store.buckets import Buckets

VERSION: Final = 1
MINIMUM_FRAMES: Final = 8
"""Chunks with fewer frames have no summary: it would be as large as they are."""
_PREFIX = struct.Struct("<7I")


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What `load` gives back; arrays as in the module's specification."""

    stat_count: NDArray[np.float32]
    stats: NDArray[np.float32]

    def stat(self, stat: int, layer: int, first: int, last: int) -> Buckets:
        """One stat of one layer as a bucket that spans the chunk."""
        return _one(first, last, self.stat_count[stat], *self.stats[:, stat, layer])

    def layers(self, stat: int, first: int, last: int) -> Buckets:
        """One stat of all layers as a bucket that spans the chunk."""
        nonfinite, low, high, mean = self.stats[:, stat].astype(np.float64)
        count = np.full((1, len(low)), int(self.stat_count[stat]), np.int64)
        return Buckets(
            np.array([first]),
            np.array([last]),
            count,
            nonfinite[None].astype(np.int64),
            low[None],
            high[None],
            mean[None],
        )


def summarize(frames: Frames) -> bytes:
    """The summary of frames that belong to one chunk."""
    t, s = frames.scalars.shape
    n_layers, k = len(frames.schema.layers), len(frames.schema.stats)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scalars = np.empty((5, s), np.float64)
        present = frames.scalars_present
        holes = np.where(present, frames.scalars, np.nan)
        scalars[0] = present.sum(axis=0)
        scalars[1] = (~np.isfinite(frames.scalars) & present).sum(axis=0)
        scalars[2] = np.fmin.reduce(holes, axis=0, initial=np.nan)
        scalars[3] = np.fmax.reduce(holes, axis=0, initial=np.nan)
        scalars[4] = np.where(present, frames.scalars, 0.0).sum(axis=0) / scalars[0]
        stat_count = frames.stats_present.sum(axis=0).astype(np.float32)
        stats = np.zeros((4, n_layers, k), np.float32)
        if stats.size and t:
            measured = total = frames.stats
            if not frames.stats_present.all():
                here = frames.stats_present[:, None, :]
                measured, total = np.where(here, total, np.float32(np.nan)), np.where(here, total, np.float32(0))
            if not np.isfinite(total).all():
                stats[0] = (~np.isfinite(total)).sum(axis=0)
            stats[1] = np.fmin.reduce(measured, axis=0)
            stats[2] = np.fmax.reduce(measured, axis=0)
            stats[3] = np.add.reduce(total, axis=0, dtype=np.float64) / stat_count
            stats[3] = round_mantissa(stats[3], 16)
    flat = np.concatenate([stat_count, stats.transpose(0, 2, 1).ravel()])
    sections = [pack(scalars), pack(flat)]
    return _PREFIX.pack(VERSION, t, s, n_layers, k, *map(len, sections)) + b"".join(sections)


def load(data: bytes) -> Summary:
    """The inverse of `summarize`; it reads what this service wrote."""
    version, _, _, n_layers, k, size, size_stats = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"a chunk summary of version {version}: update this replica")
    start = _PREFIX.size + size
    flat = unpack(data[start : start + size_stats], np.dtype("<f4"), (k + 4 * k * n_layers,))
    return Summary(flat[:k], flat[k:].reshape(4, k, n_layers))


def load_scalars(data: bytes, first: int, last: int) -> Buckets:
    """All scalars as a bucket that spans the chunk, without unpacking the stats."""
    version, _, s, _, _, size, _ = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"a chunk summary of version {version}: update this replica")
    scalars = unpack(data[_PREFIX.size : _PREFIX.size + size], np.dtype("<f8"), (5, s))
    count, nonfinite, low, high, mean = scalars[:, None, :]
    return Buckets(
        np.array([first]), np.array([last]), count.astype(np.int64), nonfinite.astype(np.int64), low, high, mean
    )


def _one(first: int, last: int, count: float, nonfinite: float, low: float, high: float, mean: float) -> Buckets:
    number = [np.array([[value]], np.float64) for value in (low, high, mean)]
    whole = [np.array([[int(value)]], np.int64) for value in (count, nonfinite)]
    return Buckets(np.array([first]), np.array([last]), whole[0], whole[1], number[0], number[1], number[2])
