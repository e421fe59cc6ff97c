"""Min, max and mean of values over buckets of steps: pure NumPy.

What each bucket holds: how many values were measured in it, how many of those are not finite, their minimum and
maximum without NaN (NaN only if nothing else is there; the infinities count), and their mean with everything in it, so
that one NaN shows. Values that were not measured (presence bit off) count nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.frame import Bits, Floats64, Steps


@dataclass(frozen=True, slots=True, eq=False)
class Buckets:
    """Columns [C] in buckets [n].

    Attributes:
        first, last: int64 [n], the first and last step that was measured in each.
        count: int64 [n, C], values measured.
        nonfinite: int64 [n, C], those that are NaN or infinite.
        minimum, maximum, mean: float64 [n, C]; NaN where count is 0.
    """

    first: Steps
    last: Steps
    count: NDArray[np.int64]
    nonfinite: NDArray[np.int64]
    minimum: Floats64
    maximum: Floats64
    mean: Floats64

    def __len__(self) -> int:
        return len(self.first)


def bucket(steps: Steps, values: NDArray[np.floating], present: Bits, edges: Steps) -> Buckets:
    """Reduce values to buckets.

    Args:
        steps: int64 [T], not decreasing.
        values: [T, C].
        present: bool [T, C].
        edges: the first row of each bucket, int64 [n], strictly increasing, `edges[0] == 0`.
    """
    if len(steps) == 0:
        return _empty(values.shape[1])
    everything = bool(present.all())
    if len(edges) == len(steps):
        return _each(steps, values, None if everything else present)
    full = values.astype(np.float64, copy=False)
    holes = full if everything else np.where(present, full, np.nan)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        count = np.add.reduceat(present.astype(np.int64), edges, axis=0)
        finite = np.isfinite(full) if everything else np.isfinite(full) | ~present
        total = np.add.reduceat(full if everything else np.where(present, full, 0.0), edges, axis=0)
        return Buckets(
            first=steps[edges],
            last=steps[np.append(edges[1:], len(steps)) - 1],
            count=count,
            nonfinite=np.add.reduceat((~finite).astype(np.int64), edges, axis=0),
            minimum=np.fmin.reduceat(holes, edges, axis=0),
            maximum=np.fmax.reduceat(holes, edges, axis=0),
            mean=np.where(count > 0, total / count, np.nan),
        )


def _each(steps: Steps, values: NDArray[np.floating], present: Bits | None) -> Buckets:
    """Every step by itself; `present` is None where all is.

    A million of them take 3 ms where 200 went by. Half of that is the memory that the numbers need, so columns that
    hold one number over and over take none: they are read-only.
    """
    finite = np.isfinite(values)
    count: NDArray[np.int64] = np.broadcast_to(np.int64(1), values.shape)
    odd: NDArray[np.int64] = np.broadcast_to(np.int64(0), values.shape)
    if present is not None:
        count = present.astype(np.int64)
        finite |= ~present
    if not finite.all():
        odd = (~finite).astype(np.int64)
    full = values.astype(np.float64, copy=False)
    holes = full if present is None else np.where(present, full, np.nan)
    return Buckets(steps, steps, count, odd, holes, holes, holes)


def edges_by_width(steps: Steps, first: int, width: int) -> Steps:
    """Where buckets of `width` steps, the first of them at step `first`, begin among the rows of `steps`."""
    if len(steps) == 0:
        return np.empty(0, np.int64)
    if width == 1 and bool((steps[1:] > steps[:-1]).all()):
        return np.arange(len(steps))
    place = (steps - first) // width
    return np.flatnonzero(np.diff(place, prepend=place[0] - 1)).astype(np.int64)


def join(parts: Sequence[Buckets], columns: int) -> Buckets:
    """Buckets one after the other."""
    if not parts:
        return _empty(columns)
    if len(parts) == 1:
        return parts[0]
    done: dict[tuple[int, ...], NDArray[np.generic]] = {}  # where every step stands by itself, columns are the same

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        key = tuple(map(id, arrays))
        if key not in done:
            done[key] = np.concatenate(arrays)
        return done[key]

    return Buckets(*(joined(name) for name in Buckets.__slots__))


def merge(buckets: Buckets, edges: Steps) -> Buckets:
    """Neighbours merged into wider buckets, each beginning at one of `edges`."""
    if len(edges) == len(buckets):  # nothing has a neighbour to be merged with
        return buckets
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        count = np.add.reduceat(buckets.count, edges, axis=0)
        total = np.add.reduceat(np.where(buckets.count > 0, buckets.mean * buckets.count, 0.0), edges, axis=0)
        return Buckets(
            first=buckets.first[edges],
            last=buckets.last[np.append(edges[1:], len(buckets)) - 1],
            count=count,
            nonfinite=np.add.reduceat(buckets.nonfinite, edges, axis=0),
            minimum=np.fmin.reduceat(buckets.minimum, edges, axis=0),
            maximum=np.fmax.reduceat(buckets.maximum, edges, axis=0),
            mean=np.where(count > 0, total / count, np.nan),
        )


def column(table: Buckets, place: int) -> Buckets:
    """One column of several, without the buckets in which it was not measured."""
    here = table.count[:, place] > 0
    arrays = {name: getattr(table, name)[here, place : place + 1] for name in Buckets.__slots__[2:]}
    return Buckets(table.first[here], table.last[here], **arrays)


def _empty(columns: int) -> Buckets:
    whole = np.empty((0, columns), np.int64)
    number = np.empty((0, columns), np.float64)
    return Buckets(np.empty(0, np.int64), np.empty(0, np.int64), whole, whole, number, number, number)
