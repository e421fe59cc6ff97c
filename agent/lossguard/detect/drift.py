"""Do the data change? The labels' mean per task against its own past; information, not a divergence.

Judged every 32 frames on their mean; a task's past is the median of its last 16 such means, its noise their spread.
"""

from dataclasses import dataclass, field

FRAMES = 32
"""Frames in a mean: at a batch of 512 a rate of 0.4 is then known to 0.004."""
KEPT = 16
LEAST = 6
MOVED_SCALES = 8.0
MOVED_SHARE = 0.2
"""A shift: 8 deviations of past means and a fifth of the level; rates drift by a few per cent from day to day."""


@dataclass(slots=True)
class Drift:
    """The memory of one task.

    Attributes:
        sum: of the current group's label means.
        count: how many.
        means: of the last groups, newest last.
        number: of the open incident.
    """

    sum: float = 0.0
    count: int = 0
    means: list[float] = field(default_factory=list)
    number: int | None = None


def room(drift: Drift) -> int:
    """How many label means can be taken before a group ends."""
    return FRAMES - drift.count - 1


def add(drift: Drift, values: list[float]) -> None:
    """Take label means, at most `room` of them."""
    total = drift.sum
    for value in values:  # one after the other: a sum of parts would round differently for every cut of the blocks
        total += value
    drift.sum = total
    drift.count += len(values)


def take(drift: Drift, value: float) -> float | None:
    """Take one label mean; the relative shift when a group ends that moved, 0 when it is where it was, else None."""
    drift.sum, drift.count = drift.sum + value, drift.count + 1
    if drift.count < FRAMES:
        return None
    mean, drift.sum, drift.count = drift.sum / FRAMES, 0.0, 0
    if len(drift.means) < LEAST:
        drift.means = [*drift.means, mean]
        return None
    middle = _median(drift.means)
    moved = abs(mean - middle)
    if not moved > MOVED_SHARE * abs(middle):  # which needs no scale, and is nearly always the case
        drift.means = [*drift.means, mean][-KEPT:]
        return 0.0
    scale = max(1.4826 * _median([abs(past - middle) for past in drift.means]), 1e-3 * abs(middle), 1e-12)
    if moved > MOVED_SCALES * scale:
        return (mean - middle) / middle if middle else float("inf")
    drift.means = [*drift.means, mean][-KEPT:]
    return 0.0


def _median(values: list[float]) -> float:
    """Of sixteen floats: NumPy's costs thirty times as much, that of `statistics` three times."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2
