"""The first step at which runs are not the same, by their exact frames.

Guarantees. The answer is a step, not a bucket: buckets only serve to skip what is equal, from there on the frames are
read in blocks until one differs. Where retention has dropped the frames only buckets are left; then the answer says
between which steps. Values that are both NaN are the same.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lossguard_service.store.buckets import Buckets
from lossguard_service.store.database import Database
from lossguard_service.store.series import scalar_columns

BLOCK_STEPS: Final = 20_000
_EXACT: Final = ("first", "last", "count", "nonfinite", "minimum", "maximum", "mean")


@dataclass(frozen=True, slots=True)
class Apart:
    """Where two runs part.

    Attributes:
        first, last: the step; two steps where only the bucket is known.
        scalar: one that differs there.
    """

    first: int
    last: int
    scalar: str


async def first_difference(
    database: Database, one: int, other: int, scalars: Sequence[str], about: tuple[Buckets, Buckets]
) -> Apart | None:
    """Where two runs part; None if they agree as far as both go.

    Args:
        database: where their frames are.
        one, other: the runs' ids.
        scalars: those that both have.
        about: one scalar's buckets of each run, over all its steps.
    """
    start, end = same_until(*about), min(int(data.last[-1]) if len(data) else 0 for data in about)
    while start <= end and scalars:
        reach = {"first": start, "last": min(end, start + BLOCK_STEPS - 1), "points": BLOCK_STEPS}
        pair = await asyncio.gather(*(scalar_columns(database, run, scalars, **reach) for run in (one, other)))
        found = parting(pair[0], pair[1], scalars)
        if found is not None:
            return found
        start += BLOCK_STEPS
    return None


def same_until(one: Buckets, other: Buckets) -> int:
    """The first step of the first bucket that is not the same in both; 0 if one has none."""
    length = min(len(one), len(other))
    if not length:
        return 0
    same = np.ones(length, np.bool_)
    for name in _EXACT:
        a, b = (np.reshape(getattr(data, name)[:length], (length, -1)) for data in (one, other))
        same &= ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    at = int(np.argmin(same)) if not same.all() else length - 1
    return min(int(data.first[at]) for data in (one, other))


def parting(one: Buckets, other: Buckets, scalars: Sequence[str]) -> Apart | None:
    """The first of the steps that both hold at which a value differs; columns are those of `scalars`."""
    _, a, b = np.intersect1d(one.first, other.first, assume_unique=True, return_indices=True)
    x, y = one.mean[a], other.mean[b]
    differs = (one.count[a] > 0) & (other.count[b] > 0) & (x != y) & ~(np.isnan(x) & np.isnan(y))
    rows = np.flatnonzero(differs.any(axis=1))
    if not len(rows):
        return None
    row = int(rows[0])
    last = min(int(one.last[a[row]]), int(other.last[b[row]]))
    return Apart(int(one.first[a[row]]), last, scalars[int(np.argmax(differs[row]))])
