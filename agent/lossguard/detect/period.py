"""Has the loss the period of an epoch? Then the data are not shuffled.

The loss is kept thinly (at most 2048 values, the stride doubles), its trend is taken away, and its autocorrelation is
searched for a lag at which the run repeats itself: at least three times, and far better than in between. Measured on
recorded runs of six epochs: 0.97 to 0.98 with data in the order of their dates, 0.06 to 0.17 shuffled (B6).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lossguard.wire.frame import Floats32, Floats64

KEPT = 2048
"""Values of the loss that are kept; four bytes each."""
EVERY_FRAMES = 128
"""Frames between two searches; from 1024 on a search waits until the history has grown by an eighth to a quarter: what
is new in less is not worth the search."""
LEAST_VALUES = 256
REPEATS = 3
"""Periods that must have been seen: two could be a coincidence."""
SHORTEST = 16
"""Values in a period at least: shorter ones are noise that happens to alternate."""
SMOOTH = 9
"""Values in the running mean before the search: the noise of single batches is not what repeats."""
REPEATED = 0.8
"""The autocorrelation at the period."""
BETWEEN = 0.2
"""... and what it must have fallen below before: a slow trend never does."""
TREND_DEGREE = 3
HEAD = 8
"""The first eighth is left out: there the loss falls so steeply that nothing else is seen."""


@dataclass(slots=True)
class Period:
    """The memory of the search.

    Attributes:
        values: the total loss, every `stride`-th frame.
        stride: frames from one kept value to the next.
        skipped: frames since the last kept value.
        found: whether it was reported.
    """

    values: Floats32 = field(default_factory=lambda: np.empty(0, np.float32))
    stride: int = 1
    skipped: int = 0
    found: bool = False


def every(frame: int) -> int:
    """Frames between two searches when there are so many in all."""
    return max(EVERY_FRAMES, 1 << max(frame.bit_length() - 3, 0))


def until_search(frame: int) -> int:
    """How many frames from this one on are taken before the next search; this one's own does not count."""
    return every(frame) - frame % every(frame)


def extend(period: Period, values: Floats64) -> None:
    """Take values of the total loss, the non-finite ones as well."""
    while len(values):
        # As if one by one: the stride doubles in the middle of a block if that is where the memory is full.
        until_full = (KEPT + 1 - len(period.values)) * period.stride - period.skipped
        part, values = values[:until_full], values[until_full:]
        picked = part[period.stride - 1 - period.skipped :: period.stride]
        period.skipped = (period.skipped + len(part)) % period.stride
        # What single precision cannot hold becomes infinite, and is passed over by the search.
        period.values = np.concatenate([period.values, picked], dtype=np.float32, casting="same_kind")
        if len(period.values) > KEPT:
            period.values = period.values[::2].copy()
            period.stride *= 2


def search(period: Period) -> tuple[int, float] | None:
    """The period in frames, and the autocorrelation at it; None where there is none."""
    values = period.values.astype(np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n < LEAST_VALUES:
        return None
    values = values[n // HEAD :]
    n = len(values)
    middle = median(values)
    spread = 1.4826 * median(np.abs(values - middle))
    values = np.clip(values, middle - 6 * spread, middle + 6 * spread)
    rest = values - _trend(values)
    rest = np.convolve(rest, np.ones(SMOOTH) / SMOOTH, "valid")
    if not rest.any():
        return None
    longest = len(rest) // REPEATS
    lags = np.arange(longest + 1)
    spectrum = np.fft.rfft(rest, 1 << (len(rest) + longest).bit_length())
    products = np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[: longest + 1]
    correlation = products / (len(rest) - lags) * len(rest) / products[0]
    low = np.flatnonzero(correlation < BETWEEN)
    if not len(low):
        return None
    start = max(int(low[0]), SHORTEST)
    if start >= longest:
        return None
    tallest = float(correlation[start:].max())
    if tallest < REPEATED:
        return None
    # Multiples of the period correlate as well: the first lag that is nearly as good as the best one is the period.
    first = start + int(np.flatnonzero(correlation[start:] >= 0.9 * tallest)[0])
    end = min(first + first // 4, longest)
    lag = first + int(np.argmax(correlation[first : end + 1]))
    if lag + 1 >= longest:
        return None  # still rising at the longest lag that this much history can show
    return lag * period.stride, float(correlation[lag])


def _trend(values: Floats64) -> Floats64:
    """The cubic that fits best, by Legendre's polynomials, which are all but orthogonal on an even grid."""
    basis, products = _basis(len(values))
    trend: Floats64 = basis @ np.linalg.solve(products, basis.T @ values)
    return trend


@lru_cache(maxsize=16)
def _basis(n: int) -> tuple[Floats64, Floats64]:
    """The polynomials on a grid of so many places, and their products with each other; not to be changed."""
    grid = np.linspace(-1, 1, n)
    basis: Floats64 = np.asarray(np.polynomial.legendre.legvander(grid, TREND_DEGREE), np.float64)
    products: Floats64 = basis.T @ basis
    return basis, products


def median(values: Floats64 | Floats32) -> float:
    """NaN where one of them is; NumPy's own costs four times as much."""
    ordered, half = np.sort(values), len(values) // 2
    if ordered[-1] != ordered[-1]:
        return math.nan
    return float(ordered[half]) if len(values) % 2 else float((ordered[half - 1] + ordered[half]) / 2)
