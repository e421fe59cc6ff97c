"""What a run does all the time and should not: no update at all, chronic clipping, dead units, a layer that lags.

Judged in groups of 16 frames, counted from the attempt's first; a habit is one after eight
groups. Each is reported once per attempt; only `no_update` opens and ends.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.frame import Floats64, Frames
from lossguard.wire.stats import CLIPPING_FACTOR, GRADIENT_ZERO_FRACTION, UPDATE_NORM, WEIGHT_NORM

GROUP_FRAMES = 16
SAMPLED = (3, 8, 13)
"""A group is judged on the median of these three of its frames: sorting all 16 cost more than all other detectors."""
HABIT_GROUPS = 8
"""128 frames: longer than the transients of warm-up and of the recorded micro-divergences."""
STILL_GROUPS = 3
"""48 frames without any update: loss scaling skips a few steps in a row, not that many."""
STILL_SHARE = 0.01
"""Updates at a hundredth of the layer's own past are none, while the learning rate is at least a third of its own."""
RATE_SHARE = 0.3
CLIPPED = 0.01
"""A clipping factor of 0.01 leaves 1 % of the update: the layer hardly learns (complaints of 2e-8 are on record)."""
CLIPPED_LAYERS = 0.5
"""... in half of the layers: biases near zero are clipped hard in runs that learn well."""
DEAD_SHARE = 0.7
DEAD_RISE = 0.3
"""Dead: 70 % of the units, and 30 points more than at the beginning; embeddings are sparse from the start."""
LAG_RATIO = 10.0
LAG_GROUPS = 64
"""Unconverged: after 1024 frames a layer's update over weight is ten times the median layer's, and has not fallen by
half while the median layer's has."""


@dataclass(slots=True)
class Habits:
    """The memory of the watch.

    Attributes:
        names: the layers.
        pending: update norm, weight norm, clipping factor and dead share of the group's sampled frames so far; NaN
            where not measured [n, 4, L].
        count: frames of the group so far.
        sound: whether all its update norms were measured and finite.
        moved: whether any was not 0.
        groups: how many groups were judged.
        first: dead share and log update over weight of the first groups [L, 2].
        usual: the usual log update over weight [L].
        rate: the usual learning rate; NaN while unknown.
        still: groups in a row without an update.
        clipped: groups in a row of chronic clipping [L].
        dead: groups in a row of dead units [L].
        told: the kinds that were reported.
        number: of the open `no_update`.
    """

    names: tuple[str, ...] = ()
    pending: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 4, 0), np.float32))
    count: int = 0
    sound: bool = True
    moved: bool = False
    groups: int = 0
    first: Floats64 = field(default_factory=lambda: np.empty((0, 2)))
    usual: Floats64 = field(default_factory=lambda: np.empty(0))
    rate: float = float("nan")
    still: int = 0
    clipped: Floats64 = field(default_factory=lambda: np.empty(0))
    dead: Floats64 = field(default_factory=lambda: np.empty(0))
    told: list[str] = field(default_factory=list)
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A habit that was found, or an open one that ended."""

    kind: str
    layer: str | None = None
    value: float = 0.0
    ended: bool = False


class Columns:
    """What this watch looks at, of a block.

    Attributes:
        at: the places of update norm, weight norm, clipping factor and dead share; None where there is none [4].
        sound: whether every layer's update norm was measured and is finite, for each frame.
        moved: whether any layer's is not 0, for each frame.
    """

    def __init__(self, frames: Frames) -> None:
        names = frames.schema.stats
        dead = GRADIENT_ZERO_FRACTION if GRADIENT_ZERO_FRACTION in names else "dead_fraction"
        wanted = (UPDATE_NORM, WEIGHT_NORM, CLIPPING_FACTOR, dead)
        self.frames = frames
        self.watched = bool(frames.schema.layers) and any(name in names for name in wanted)
        self.at = tuple(names.index(name) if name in names and frames.schema.layers else None for name in wanted)
        self.sound: list[bool] = [False] * len(frames)
        self.moved: list[bool] = [False] * len(frames)
        if self.at[0] is not None:
            updates, here = frames.stats[:, :, self.at[0]], frames.stats_present[:, self.at[0]]
            with np.errstate(all="ignore"):
                total = updates.sum(axis=1)
            plain = np.isfinite(total) & (total > 0)
            if not plain.all():  # sums overflow and cancel: only a plain one says what its addends are
                self.sound = [bool(sound) for sound in np.isfinite(updates).all(axis=1) & here]
                self.moved = [bool(row.any()) for row in updates]
            else:
                self.sound, self.moved = [bool(each) for each in here], [True] * len(frames)

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        return self.watched

    def row(self, t: int) -> NDArray[np.float32]:
        """One frame; NaN where not measured [4, L]."""
        out = np.full((4, self.frames.stats.shape[1]), np.nan, np.float32)
        for j, k in enumerate(self.at):
            if k is not None and self.frames.stats_present[t, k]:
                out[j] = self.frames.stats[t, :, k]
        return out


def fit(habits: Habits, names: tuple[str, ...]) -> None:
    """Make room for a block's layers; another set of layers begins anew."""
    if names == habits.names:
        return
    n = len(names)
    habits.names, habits.groups, habits.still = names, 0, 0
    habits.pending, habits.count = np.empty((0, 4, n), np.float32), 0
    habits.sound, habits.moved = True, False
    habits.first, habits.usual = np.full((n, 2), np.nan), np.full(n, np.nan)
    habits.clipped, habits.dead = np.zeros(n), np.zeros(n)


def room(habits: Habits) -> int:
    """How many frames fit into the group."""
    return GROUP_FRAMES - habits.count


def take(habits: Habits, columns: Columns, t: int, n: int, rate: float, usual: bool) -> list[Finding]:
    """Take n frames from the t-th of a block on, at most `room` of them.

    Args:
        habits: the memory, changed in place.
        columns: of the block.
        t: the first of the frames.
        n: how many.
        rate: the learning rate now; NaN where it is unknown.
        usual: whether the run is in its usual state, so that the past may learn from it.
    """
    if not columns:
        return []
    habits.sound = habits.sound and all(columns.sound[t : t + n])
    habits.moved = habits.moved or any(columns.moved[t : t + n])
    for at in SAMPLED:
        if habits.count <= at < habits.count + n:
            habits.pending = np.concatenate([habits.pending, columns.row(t + at - habits.count)[None]])
    habits.count += n
    if habits.count < GROUP_FRAMES:
        return []
    sampled, sound, moved = habits.pending, habits.sound, habits.moved
    habits.pending, habits.count, habits.sound, habits.moved = sampled[:0], 0, True, False
    one, two, three = sampled.astype(np.float64)
    middle = np.maximum(np.minimum(one, two), np.minimum(np.maximum(one, two), three))  # NaN where one is missing
    with np.errstate(all="ignore"):
        motion = np.log(np.maximum(middle[0] / middle[1], 1e-30))
    habits.groups += 1
    if habits.groups <= 2:
        habits.first = np.stack([middle[3], motion], axis=1)
    found = [*_still(habits, sound, moved, motion, rate), *_chronic(habits, middle, motion)]
    if usual and not habits.still:
        habits.usual = np.where(np.isfinite(habits.usual), habits.usual + 0.2 * (motion - habits.usual), motion)
        habits.rate = rate if habits.rate != habits.rate else habits.rate + 0.2 * (rate - habits.rate)
    return found


def _still(habits: Habits, sound: bool, moved: bool, motion: Floats64, rate: float) -> list[Finding]:
    """No update at all, or next to none."""
    learning = rate != 0 and not (rate < RATE_SHARE * habits.rate)
    with np.errstate(invalid="ignore"):
        far = (motion < habits.usual + np.log(STILL_SHARE)).mean() >= 0.9
    still = sound and learning and (not moved or bool(far))
    habits.still = habits.still + 1 if still else 0
    if habits.number is None and habits.still >= STILL_GROUPS:
        return [Finding("no_update", value=float(habits.still * GROUP_FRAMES))]
    if habits.number is not None and not still:
        return [Finding("no_update", ended=True)]
    return []


def _chronic(habits: Habits, middle: Floats64, motion: Floats64) -> list[Finding]:
    """Habits that are told once."""
    found: list[Finding] = []
    with np.errstate(invalid="ignore"):
        low = middle[2] < CLIPPED
        habits.clipped = np.where(low & (low.mean() >= CLIPPED_LAYERS), habits.clipped + 1, 0)
        dying = (middle[3] >= DEAD_SHARE) & (middle[3] >= habits.first[:, 0] + DEAD_RISE)
        habits.dead = np.where(dying, habits.dead + 1, 0)
    for kind, counts, column in (("overclipped", habits.clipped, 2), ("dead_units", habits.dead, 3)):
        if kind not in habits.told and (counts >= HABIT_GROUPS).any():
            i = int(np.argmax(counts))
            habits.told.append(kind)
            found.append(Finding(kind, habits.names[i], float(middle[column, i])))
    late = habits.groups >= LAG_GROUPS and habits.groups % HABIT_GROUPS == 0
    if "unconverged_layer" not in habits.told and late and np.isfinite(motion).all():
        usual = float(np.median(motion))
        fell = usual < float(np.median(habits.first[:, 1])) - np.log(2.0)
        lags = (motion > usual + np.log(LAG_RATIO)) & (motion > habits.first[:, 1] - np.log(2.0))
        if fell and lags.any():
            i = int(np.argmax(np.where(lags, motion, -np.inf)))
            habits.told.append("unconverged_layer")
            found.append(Finding("unconverged_layer", habits.names[i], float(np.exp(motion[i] - usual))))
    return found
