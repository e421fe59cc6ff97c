"""What each treatment's clipping factor would have been, from the stats that were measured. Pure.

The factors of arXiv 2302.09178, section 4.3.1, with the thresholds of its figure 4. Each bucket holds the smallest that
its largest and smallest values allow: exact where a bucket is one step, else a lower bound where two stats meet. What
was not measured has no factor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from lossguard.trace.factors import LEARNING_RATE as LEARNING_RATE
from lossguard.trace.factors import THRESHOLDS, Method, sigma
from lossguard.wire.frame import Floats64, Schema, Steps
from lossguard.wire.stats import CLIPPY_RATIO, GRADIENT_NORM, UPDATE_NORM, WEIGHT_NORM
from lossguard_service.store.buckets import Buckets
from lossguard_service.store.series import HeatMap


@dataclass(frozen=True, slots=True)
class Factor:
    """One treatment's factor as an option of the heat map.

    Attributes:
        method: whose.
        meaning: its formula.
        stats: the stats it is made from; the one that is large when it is small comes first.
        needs_rate: True if the learning rate must have been measured too.
    """

    method: Method
    meaning: str
    stats: tuple[str, ...]
    needs_rate: bool = False


FACTORS: Final[Mapping[str, Factor]] = {
    "would_be/clippy": Factor(
        "clippy", "Clippy's factor, had it treated this layer: min(1, 1/clippy_ratio)", (CLIPPY_RATIO,)
    ),
    "would_be/gc": Factor("gc", f"gradient clipping's factor: min(1, {THRESHOLDS['gc']:g}/‖g‖)", (GRADIENT_NORM,)),
    "would_be/agc": Factor(
        "agc",
        f"adaptive gradient clipping's factor: min(1, {THRESHOLDS['agc']:g} ‖w‖/‖g‖)",
        (GRADIENT_NORM, WEIGHT_NORM),
    ),
    "would_be/lamb": Factor(
        "lamb",
        f"LAMB's factor: {THRESHOLDS['lamb']:g} ‖w‖/‖r‖ with ‖r‖ = ‖u‖/learning rate; may exceed 1",
        (UPDATE_NORM, WEIGHT_NORM),
        needs_rate=True,
    ),
}


def possible(names: Schema) -> dict[str, str]:
    """Names and meanings of the factors that these columns allow."""
    return {
        name: one.meaning
        for name, one in FACTORS.items()
        if set(one.stats) <= set(names.stats) and (not one.needs_rate or LEARNING_RATE in names.scalars)
    }


def factor(name: str, found: HeatMap, weight: HeatMap | None = None, rate: Buckets | None = None) -> HeatMap:
    """A factor from the heat map of its first stat, that of the weight's norm, and the learning rate, as it needs.

    Returns:
        A heat map whose `maximum` holds the smallest factor of each bucket.
    """
    norm = found.maximum
    size: Floats64 = np.ones_like(norm)
    if weight is not None:
        size = _at(weight.minimum, weight.first, found.first)
    if rate is not None:
        size = size * _at(rate.minimum.T, rate.first, found.first)
    value = sigma(FACTORS[name].method, norm, size)
    return HeatMap(name, found.layers, found.first, found.last, value, value, found.nonfinite)


def _at(values: Floats64, have: Steps, wanted: Steps) -> Floats64:
    """For each wanted bucket the values of the one that began with it or before it; NaN if there is none."""
    if not len(have):
        return np.full((len(values), len(wanted)), np.nan)
    found: Floats64 = values[:, np.clip(np.searchsorted(have, wanted, "right") - 1, 0, None)]
    return found
