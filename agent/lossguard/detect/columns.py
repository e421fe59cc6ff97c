"""The stats that detectors look at, each as one array: a block's frames hold them side by side, which is slow to read.

Only values are laid out anew; what was not measured is NaN here, whatever the block holds in its place.
"""

import numpy as np

from lossguard.wire.frame import Floats32, Frames
from lossguard.wire.stats import (
    CLIPPING_FACTOR,
    CLIPPY_RATIO,
    GRADIENT_NORM,
    GRADIENT_ZERO_FRACTION,
    NONFINITE_COUNT,
    UPDATE_NORM,
    WEIGHT_NORM,
)

WATCHED = (
    WEIGHT_NORM, GRADIENT_NORM, UPDATE_NORM, CLIPPY_RATIO, CLIPPING_FACTOR, GRADIENT_ZERO_FRACTION, NONFINITE_COUNT,
    "dead_fraction",
)  # fmt: skip
"""What any detector asks for; `dead_fraction` stands in recorded runs."""


def columns(frames: Frames) -> dict[str, Floats32]:
    """The watched stats of a block by name, those that it has; each row lies in one piece [T, L]."""
    if not frames.schema.layers:
        return {}
    places = {name: k for k, name in enumerate(frames.schema.stats) if name in WATCHED}
    if not places:
        return {}
    first, last = min(places.values()), max(places.values())
    # One copy of the whole range reads each cache line once; the stats of a recorder lie next to each other.
    laid = np.ascontiguousarray(frames.stats[:, :, first : last + 1].transpose(0, 2, 1))
    found = {name: laid[:, k - first] for name, k in places.items()}
    if not frames.stats_present.all():
        for name, k in places.items():
            if not frames.stats_present[:, k].all():
                found[name] = np.where(frames.stats_present[:, k, None], found[name], np.float32(np.nan))
    return found
