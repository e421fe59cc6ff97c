"""What a run does all the time and should not: no update at all, chronic clipping, dead units, a layer that lags.

Judged in groups of 16 frames, counted from the attempt's first; a habit is one after eight
groups. Each is reported once per attempt; only `no_update` opens and ends. The arrays of a memory are replaced, never
written to: states may share them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from lossguard.wire.frame import Bits, Floats32, Floats64
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
        clipped: groups in a row of chronic clipping [L]; empty where no layer is clipped so.
        dead: groups in a row of dead units [L]; empty where no layer has many.
        told: the kinds that were reported.
        number: of the open `no_update`.
    """

    names: tuple[str, ...] = ()
    pending: Floats32 = field(default_factory=lambda: np.empty((0, 4, 0), np.float32))
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
class Group:
    """What a group of frames comes to; of several groups, with one more axis in front.

    Attributes:
        middle: the medians of update norm, weight norm, clipping factor and dead share; NaN where one is missing
            [4, L].
        motion: the log of the first over the second [L].
        low: whether any layer is clipped low.
        dead: whether any layer's dead share is high.
    """

    middle: Floats64
    motion: Floats64
    low: Bits
    dead: Bits

    @classmethod
    def of(cls, one: Floats32, two: Floats32, three: Floats32) -> Self:
        """The medians of three frames [..., 4, L]."""
        middle = np.maximum(np.minimum(one, two), np.minimum(np.maximum(one, two), three)).astype(np.float64)
        motion = np.log(np.maximum(middle[..., 0, :] / middle[..., 1, :], 1e-30))
        low, dead = middle[..., 2, :] < CLIPPED, middle[..., 3, :] >= DEAD_SHARE
        return cls(middle, motion, np.asarray(low.any(axis=-1)), np.asarray(dead.any(axis=-1)))

    def one(self, g: int) -> Self:
        """One of several groups."""
        return type(self)(self.middle[g], self.motion[g], self.low[g], self.dead[g])


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
        columns: update norm, weight norm, clipping factor and dead share; None where there is none [4] of [T, L].
        sound: whether every layer's update norm was measured and is finite, for each frame.
        moved: whether any layer's is not 0, for each frame.
        groups: the groups that lie in this block as a whole, by their first frame: see `Group`.
    """

    def __init__(self, columns: Mapping[str, Floats32], frames: int, count: int) -> None:
        dead = GRADIENT_ZERO_FRACTION if GRADIENT_ZERO_FRACTION in columns else "dead_fraction"
        wanted = (UPDATE_NORM, WEIGHT_NORM, CLIPPING_FACTOR, dead)
        self.columns = tuple(columns.get(name) for name in wanted)
        self.layers = max((column.shape[1] for column in columns.values()), default=0)
        self.sound: list[bool] = [False] * frames
        self.moved: list[bool] = [False] * frames
        self.groups: dict[int, Group] = {}
        updates = self.columns[0]
        if updates is not None:
            total = updates.sum(axis=1)
            plain = np.isfinite(total) & (total > 0)
            if plain.all():  # sums overflow and cancel: only a plain one says what its addends are
                self.sound, self.moved = [True] * frames, [True] * frames
            else:
                self.sound = [bool(row.all()) for row in np.isfinite(updates)]
                self.moved = [bool(row.any()) for row in updates]
        starts = range(-count % GROUP_FRAMES, frames - GROUP_FRAMES + 1, GROUP_FRAMES)
        if starts and self:
            sampled = self.rows([start + at for at in SAMPLED for start in starts])
            groups = Group.of(*sampled.reshape(len(SAMPLED), len(starts), 4, -1))
            self.groups = {start: groups.one(g) for g, start in enumerate(starts)}

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        return any(column is not None for column in self.columns)

    def rows(self, at: list[int]) -> Floats32:
        """Some frames; NaN where not measured [n, 4, L]."""
        out = np.full((len(at), 4, self.layers), np.nan, np.float32)
        for j, column in enumerate(self.columns):
            if column is not None:
                out[:, j] = column[at]
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
    habits.clipped, habits.dead = np.empty(0), np.empty(0)


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
    group = columns.groups.get(t - habits.count)
    if group is None:
        for at in SAMPLED:
            if habits.count <= at < habits.count + n:
                habits.pending = np.concatenate([habits.pending, columns.rows([t + at - habits.count])])
    habits.count += n
    if habits.count < GROUP_FRAMES:
        return []
    if group is None:
        group = Group.of(*habits.pending)
        habits.pending = habits.pending[:0].copy()
    sound, moved, motion = habits.sound, habits.moved, group.motion
    habits.count, habits.sound, habits.moved = 0, True, False
    habits.groups += 1
    if habits.groups <= 2:
        habits.first = np.stack([group.middle[3], motion], axis=1)
    found = [*_still(habits, sound, moved, motion, rate), *_chronic(habits, group)]
    if usual and not habits.still:
        moved_on = habits.usual + 0.2 * (motion - habits.usual)
        is_known = math.isfinite(moved_on.sum())
        habits.usual = moved_on if is_known else np.where(np.isfinite(habits.usual), moved_on, motion)
        habits.rate = rate if habits.rate != habits.rate else habits.rate + 0.2 * (rate - habits.rate)
    return found


def rescale(habits: Habits, factor: float) -> None:
    """The learning rate made a step, and the updates with it."""
    habits.usual = habits.usual + math.log(factor)
    habits.rate = habits.rate * factor


def _still(habits: Habits, sound: bool, moved: bool, motion: Floats64, rate: float) -> list[Finding]:
    """No update at all, or next to none."""
    learning = rate != 0 and not (rate < RATE_SHARE * habits.rate)
    low = np.count_nonzero(motion < habits.usual + math.log(STILL_SHARE))
    far = low >= 0.9 * len(motion)
    still = sound and learning and (not moved or far)
    habits.still = habits.still + 1 if still else 0
    if habits.number is None and habits.still >= STILL_GROUPS:
        return [Finding("no_update", value=float(habits.still * GROUP_FRAMES))]
    if habits.number is not None and not still:
        return [Finding("no_update", ended=True)]
    return []


def _chronic(habits: Habits, group: Group) -> list[Finding]:
    """Habits that are told once."""
    found: list[Finding] = []
    middle, motion = group.middle, group.motion
    habits.clipped = _count(habits.clipped, middle[2] < CLIPPED, CLIPPED_LAYERS) if group.low else np.empty(0)
    if group.dead:
        dying = (middle[3] >= DEAD_SHARE) & (middle[3] >= habits.first[:, 0] + DEAD_RISE)
        habits.dead = _count(habits.dead, dying, 0.0)
    else:
        habits.dead = np.empty(0)
    for kind, counts, column in (("overclipped", habits.clipped, 2), ("dead_units", habits.dead, 3)):
        if len(counts) and kind not in habits.told and (counts >= HABIT_GROUPS).any():
            i = int(np.argmax(counts))
            habits.told = [*habits.told, kind]
            found.append(Finding(kind, habits.names[i], float(middle[column, i])))
    late = habits.groups >= LAG_GROUPS and habits.groups % HABIT_GROUPS == 0
    if late and "unconverged_layer" not in habits.told and np.isfinite(motion).all():
        usual = _median(motion)
        fell = usual < _median(habits.first[:, 1]) - math.log(2.0)
        lags = (motion > usual + math.log(LAG_RATIO)) & (motion > habits.first[:, 1] - math.log(2.0))
        if fell and lags.any():
            i = int(np.argmax(np.where(lags, motion, -np.inf)))
            habits.told = [*habits.told, "unconverged_layer"]
            found.append(Finding("unconverged_layer", habits.names[i], float(np.exp(motion[i] - usual))))
    return found


def _median(values: Floats64) -> float:
    """Of the layers: NumPy's own costs ten times the sorting. NaN where one of them is."""
    ordered, half = np.sort(values), len(values) // 2
    if ordered[-1] != ordered[-1]:
        return math.nan
    return float(ordered[half]) if len(values) % 2 else float(ordered[half - 1] + ordered[half]) / 2


def _count(counts: Floats64, found: Bits, share: float) -> Floats64:
    """Groups in a row in which a layer was found, as long as that share of the layers was; empty where none was."""
    if not found.any() or found.mean() < share:
        return np.empty(0)
    return np.where(found, (counts if len(counts) else 0.0) + 1.0, 0.0)
