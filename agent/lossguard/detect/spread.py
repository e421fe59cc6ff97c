"""Do a task's predictions still differ from each other? A head that answers the same to everybody is dead.

Such a head pays what the constant predictor pays, so its loss looks sound; where no AUC is measured nothing else
tells. Judged in groups of 16 frames, counted from the attempt's first, on the median `prediction_std/<task>`.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

GROUP_FRAMES = 16
LEAST = 8
"""Values in a group that is judged: half of its frames."""
USUAL_GROUPS = 8
USUAL_LEAST = 4
"""The past: the median of the last 8 sound groups, 128 frames; judged from 4 on, after the first transients."""
PAST_SHARE = 0.05
LABEL_SHARE = 0.01
"""Collapsed: a twentieth of the task's own past, and a hundredth of the labels' own deviation, where that is known. A
head that learns its base rate narrows by as much as the first, a model that ranks at all is above the second."""
FULL_GROUPS = 4
"""64 frames: about what the AUC is given (`episode.LOST_FRAMES`)."""
BACK_SHARE = 0.5

Verdict = Literal["collapsed", "full", "back"]


@dataclass(slots=True)
class Spread:
    """The memory of one task.

    Attributes:
        pending: deviations of the group so far.
        usual: the medians of the last sound groups, newest last.
        low: collapsed groups in a row.
        number: of the open incident.
    """

    pending: list[float] = field(default_factory=list)
    usual: list[float] = field(default_factory=list)
    low: int = 0
    number: int | None = None


def room(frame: int) -> int:
    """How many frames from this one on (0, 1, 2, ... of the attempt) lie in one group."""
    return GROUP_FRAMES - frame % GROUP_FRAMES


def take(watch: Spread, values: list[float], ends: bool, label: float, sound: bool) -> Verdict | None:
    """Take the deviations of some frames of one group.

    Args:
        watch: the memory, changed in place.
        values: one for each frame; NaN where not measured.
        ends: whether the group ends with them.
        label: the labels' standard deviation; NaN where it is unknown.
        sound: whether nothing is wrong with the run, so that the past may learn from it.
    """
    watch.pending = [*watch.pending, *(value for value in values if value >= 0 and math.isfinite(value))]
    if not ends:
        return None
    group, watch.pending = sorted(watch.pending), []
    if len(group) < LEAST:
        return None
    middle = group[len(group) // 2]
    past = sorted(watch.usual)
    usual = past[len(past) // 2] if len(past) >= USUAL_LEAST else math.nan
    if middle < PAST_SHARE * usual and not middle >= LABEL_SHARE * label:
        watch.low += 1
        return "full" if watch.low >= FULL_GROUPS else "collapsed"
    back = watch.low > 0 and middle >= BACK_SHARE * usual
    if back:
        watch.low = 0
    if not watch.low and sound:
        watch.usual = [*watch.usual, middle][-USUAL_GROUPS:]
    return "back" if back else None
