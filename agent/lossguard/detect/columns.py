"""The stats that detectors look at, each as one array.

Where a block holds them side by side, which is slow to read, they are laid out anew; what was not measured is NaN here,
whatever the block holds in its place. The least and the largest value come with each, because most questions (is
everything finite, is anything zero) end there.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lossguard.wire.frame import Bits, Floats32, Frames
from lossguard.wire.stats import (
    CLIPPY_RATIO,
    GRADIENT_NORM,
    NONFINITE_COUNT,
    UPDATE_NORM,
    WEIGHT_NORM,
)

WATCHED = frozenset({WEIGHT_NORM, GRADIENT_NORM, UPDATE_NORM, CLIPPY_RATIO, NONFINITE_COUNT})
"""What is looked at in every frame."""


class Column(NamedTuple):
    """One stat of a block.

    Attributes:
        values: NaN where not measured, in one piece, the frames or the layers side by side [T, L].
        here: whether each frame has it; None where all have [T].
        low: the least value; NaN where any is.
        high: the largest; NaN where any is.
    """

    values: Floats32
    here: Bits | None
    low: float
    high: float

    @property
    def is_finite(self) -> bool:
        """Whether every value was measured and is finite."""
        return self.low > -np.inf and self.high < np.inf


def columns(frames: Frames) -> dict[str, Column]:
    """The watched stats of a block by name, those that it has."""
    places = _places(frames.schema.stats)
    if not (frames.schema.layers and places):
        return {}
    by_stat = frames.stats.transpose(2, 0, 1)
    in_place = by_stat.transpose(0, 2, 1).flags.c_contiguous  # as chunks hold them
    whole = np.count_nonzero(frames.stats_present) == frames.stats_present.size
    found = {}
    for name, k in places.items():
        values = by_stat[k] if in_place else np.ascontiguousarray(by_stat[k])
        here: Bits | None = None
        if not whole and not frames.stats_present[:, k].all():
            here = frames.stats_present[:, k]
            values = np.where(here[:, None], values, np.float32(np.nan))
        low, high = np.minimum.reduce(values, axis=None), np.maximum.reduce(values, axis=None)
        found[name] = Column(values, here, float(low), float(high))
    return found


@lru_cache(maxsize=256)
def _places(stats: tuple[str, ...]) -> dict[str, int]:
    """Where the watched stats are; not to be changed."""
    return {name: k for k, name in enumerate(stats) if name in WATCHED}
