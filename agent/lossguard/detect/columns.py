"""The stats that detectors look at, each as one array: a block's frames hold them side by side, which is slow to read.

Only values are laid out anew; what was not measured is NaN here, whatever the block holds in its place. The least and
the largest value come with each, because most questions (is everything finite, is anything zero) end there.
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
        values: NaN where not measured, each row in one piece [T, L].
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
    values = np.empty((len(places), len(frames), len(frames.schema.layers)), np.float32)
    by_stat = frames.stats.transpose(2, 0, 1)
    for i, k in enumerate(places.values()):
        values[i] = by_stat[k]
    here: dict[str, Bits] = {}
    if np.count_nonzero(frames.stats_present) < frames.stats_present.size:
        for column, (name, k) in zip(values, places.items(), strict=True):
            if not frames.stats_present[:, k].all():
                here[name] = frames.stats_present[:, k]
                column[~here[name]] = np.nan
    flat = values.reshape(len(values), -1)
    low, high = np.minimum.reduce(flat, axis=1).tolist(), np.maximum.reduce(flat, axis=1).tolist()
    return {name: Column(values[i], here.get(name), low[i], high[i]) for i, name in enumerate(places)}


@lru_cache(maxsize=256)
def _places(stats: tuple[str, ...]) -> dict[str, int]:
    """Where the watched stats are; not to be changed."""
    return {name: k for k, name in enumerate(stats) if name in WATCHED}
