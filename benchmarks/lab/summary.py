"""Trials of one configuration, summed up: means with deviations, ratios with Wilson's intervals."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lab.config import Outcome
from lossguard.trace.compare import wilson


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, deviation (of a sample) and range; a NaN makes the mean NaN."""
    array = np.asarray(values, np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return {"mean": float(array.mean()), "sd": deviation, "low": float(array.min()), "high": float(array.max())}


def ratio(hits: int, trials: int) -> dict[str, Any]:
    """A ratio with its 95 % interval."""
    low, high = wilson(hits, trials)
    return {"hits": hits, "trials": trials, "low": low, "high": high}


def trials(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What trials of one configuration say."""
    return {
        "auc": spread([one.final["auc/click"] for one in outcomes]),
        "rmse": spread([one.final.get("rmse/play_time", math.nan) for one in outcomes]),
        "diverged": ratio(sum(one.diverged for one in outcomes), len(outcomes)),
        "hindsight": dict(sorted(Counter(one.hindsight for one in outcomes).items())),
        "detectors": dict(sorted(Counter(one.status for one in outcomes).items())),
        "onsets": [one.onset for one in outcomes if one.onset is not None],
    }
