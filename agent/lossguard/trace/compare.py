"""Repeated trials of one configuration: how far they spread, how often they diverge, and where equal runs part.

The paper's Table 3 counts diverged trials; with five trials a ratio means little without its interval. Means come with
Student's interval, ratios with Wilson's, both at 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lossguard.trace.replay import replay
from lossguard.trace.trace import Trace
from lossguard.wire.numbers import to_json

FINAL_FRAMES = 100
"""A final value is the median of the last 100 frames: a single batch says little."""
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)
"""Student's 97.5 % quantile for 1 to 19 degrees of freedom; 2.0 beyond."""
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Spread:
    """A scalar's final value over the trials.

    Attributes:
        name: the scalar.
        mean: over the trials that hold it.
        half: half of the 95 % interval of the mean; NaN for one trial.
        deviation: the standard deviation; NaN for one trial.
        low: the smallest.
        high: the largest.
        trials: how many.
    """

    name: str
    mean: float
    half: float
    deviation: float
    low: float
    high: float
    trials: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What repeated trials say.

    Attributes:
        spreads: one for each scalar.
        diverged: names of the trials whose status is diverged.
        trials: how many trials.
        ratio: the 95 % interval of the divergence ratio.
        parted: trial name to the first step at which it differs from the first trial, and the scalar; None where it
            does not differ.
    """

    spreads: tuple[Spread, ...]
    diverged: tuple[str, ...]
    trials: int
    ratio: tuple[float, float]
    parted: dict[str, tuple[int, str] | None]


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a ratio.

    >>> tuple(round(x, 2) for x in wilson(2, 6))
    (0.1, 0.7)
    """
    if not trials:
        return 0.0, 1.0
    p, z2 = hits / trials, _Z**2
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def spread(name: str, values: Sequence[float]) -> Spread:
    """The spread of final values."""
    array = np.asarray(values, np.float64)
    n = len(array)
    deviation = float(array.std(ddof=1)) if n > 1 else math.nan
    quantile = (_T[n - 2] if n - 2 < len(_T) else 2.0) if n > 1 else math.nan
    return Spread(
        name, float(array.mean()), quantile * deviation / math.sqrt(n), deviation, float(array.min()),
        float(array.max()), n,
    )  # fmt: skip


def _final(trace: Trace) -> dict[str, float]:
    frames = trace.attempts[-1]
    final = {}
    for i, name in enumerate(frames.schema.scalars):
        values = frames.scalars[frames.scalars_present[:, i], i][-FINAL_FRAMES:]
        values = values[np.isfinite(values)]
        if len(values):
            final[name] = float(np.median(values))
    return final


def parting(one: Trace, other: Trace) -> tuple[int, str] | None:
    """The first step at which two runs differ, and a scalar that does; None if they agree as far as both go.

    Equal configurations on deterministic kernels agree to the bit; where they part is where to look for what is not.
    """
    a, b = one.attempts[-1], other.attempts[-1]
    steps, at, bt = np.intersect1d(a.steps, b.steps, return_indices=True)
    first: tuple[int, str] | None = None
    for name in a.schema.scalars:
        if name not in b.schema.scalars:
            continue
        x, y = a.scalars[at, a.schema.scalars.index(name)], b.scalars[bt, b.schema.scalars.index(name)]
        apart = np.flatnonzero((x != y) & ~(np.isnan(x) & np.isnan(y)))
        if len(apart) and (first is None or steps[apart[0]] < first[0]):
            first = int(steps[apart[0]]), name
    return first


def compare(traces: Sequence[Trace]) -> Comparison:
    """Compare trials.

    Raises:
        ValueError: no trial.
    """
    if not traces:
        raise ValueError("no trial to compare")
    finals = [_final(trace) for trace in traces]
    names = list(dict.fromkeys(name for final in finals for name in final))
    diverged = tuple(trace.name for trace in traces if replay(trace).status == "diverged")
    return Comparison(
        tuple(spread(name, [final[name] for final in finals if name in final]) for name in names),
        diverged,
        len(traces),
        wilson(len(diverged), len(traces)),
        {trace.name: parting(traces[0], trace) for trace in traces[1:]},
    )


def document(comparison: Comparison) -> dict[str, Any]:
    """What `lossguard compare --format json` prints; NaN by name, as everywhere."""
    parted = {
        name: None if found is None else {"step": found[0], "scalar": found[1]}
        for name, found in comparison.parted.items()
    }
    ratio = {"low": comparison.ratio[0], "high": comparison.ratio[1]}
    found = {
        "trials": comparison.trials,
        "diverged": list(comparison.diverged),
        "divergence_ratio": {"value": len(comparison.diverged) / comparison.trials, **ratio},
        "final": [asdict(spread) for spread in comparison.spreads],
        "parted": parted,
    }
    return dict(to_json(found))
