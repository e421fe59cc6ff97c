"""What a run does all the time and should not: no update at all, chronic clipping, dead units, a layer that lags.

Judged in groups of 16 frames, counted from the attempt's first; a habit is one after eight
groups. Each is reported once per attempt; only `no_update` opens and ends. The arrays of a memory are replaced, never
written to: states may share them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lossguard.detect.columns import Column
from lossguard.detect.layers import MOTION, Logs
from lossguard.wire.frame import Bits, Floats32, Floats64, Frames
from lossguard.wire.stats import CLIPPING_FACTOR, GRADIENT_ZERO_FRACTION, UPDATE_NORM

GROUP_FRAMES = 16
DEAD_FRACTION = "dead_fraction"
"""What recorded runs call the share of dead units."""
SLOTS = ((0, 6), (6, 11), (11, GROUP_FRAMES))
"""A group is judged on the median of three of its frames, the first of each third in which the stat was measured:
sorting all 16 cost more than all other detectors, and a stat that is measured every 16th step is there once."""
STATS = 3
"""What is looked at: the log of update over weight, the clipping factor, and the dead share."""
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
FIRST_GROUPS = 2
"""What a layer is compared with later: its second group, when the first steps' transients have passed."""
LAG_GROUPS = 64
"""Unconverged: after 1024 frames a layer's update over weight is ten times the median layer's, and has not fallen by
half while the median layer's has."""

_NONE: Floats64 = np.empty(0)
"""No layer has a habit; not to be changed."""


@dataclass(slots=True)
class Habits:
    """The memory of the watch.

    Attributes:
        names: the layers.
        pending: log update over weight, clipping factor and dead share of the group's three frames so far; NaN where
            not measured; empty before the first [0 or 3, 3, L].
        taken: which of them were measured [3, 3].
        count: frames of the group so far.
        sound: whether all its update norms that were measured are finite.
        moved: whether any was not 0.
        groups: how many groups were judged: those in which anything but the clipping factor was measured.
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
    pending: Floats32 = field(default_factory=lambda: np.empty((0, STATS, 0), np.float32))
    taken: Bits = field(default_factory=lambda: np.zeros((len(SLOTS), STATS), np.bool_))
    count: int = 0
    sound: bool = True
    moved: bool = False
    groups: int = 0
    first: Floats32 = field(default_factory=lambda: np.empty((0, 2), np.float32))
    usual: Floats32 = field(default_factory=lambda: np.empty(0, np.float32))
    rate: float = float("nan")
    still: int = 0
    clipped: Floats64 = field(default_factory=lambda: np.empty(0))
    dead: Floats64 = field(default_factory=lambda: np.empty(0))
    told: list[str] = field(default_factory=list)
    number: int | None = None


class Group(NamedTuple):
    """What a group of frames comes to.

    Attributes:
        motion: log update over weight [L]; None where it was not measured.
        factor: clipping factor [L]; None where no layer is clipped low.
        share: dead share [L]; None where it was not measured, or is high in no layer and no longer the first.
        dead: whether any layer's dead share is high.
        known: whether anything but the clipping factor was measured.
    """

    motion: Floats32 | None
    factor: Floats32 | None
    share: Floats32 | None
    dead: bool
    known: bool


def _middle(one: Floats32, two: Floats32, three: Floats32) -> Floats32:
    """The median of three, value by value; NaN where one of them is."""
    return np.maximum(np.minimum(one, two), np.minimum(np.maximum(one, two), three))


def _group(rows: Floats32, taken: Bits) -> Group:
    """A group from its three frames.

    Args:
        rows: log update over weight, clipping factor and dead share [3, 3, L].
        taken: which were measured [3, 3].
    """
    middle: list[Floats32 | None] = [None] * STATS
    for j, here in enumerate(taken.T.tolist()):
        if all(here):
            middle[j] = _middle(*rows[:, j])
        elif any(here):  # of two their mean, of one itself
            middle[j] = rows[taken[:, j], j].mean(axis=0)
    motion, factor, share = middle
    low = factor is not None and bool((factor < CLIPPED).any())
    dead = share is not None and bool((share >= DEAD_SHARE).any())
    return Group(motion, factor if low else None, share, dead, motion is not None or share is not None)


@dataclass(frozen=True, slots=True)
class Finding:
    """A habit that was found, or an open one that ended."""

    kind: str
    layer: str | None = None
    value: float = 0.0
    ended: bool = False


class Watched:
    """What this watch looks at, of a block.

    Attributes:
        stats: log update over weight, clipping factor and dead share; None where there is none [3] of [T, L].
        here: in which frames each was measured; None where in all [3] of [T].
        groups: the groups that lie in this block as a whole, by their first frame.
    """

    def __init__(
        self, frames: Frames, columns: Mapping[str, Column], logs: Logs, count: int, is_first: bool = True
    ) -> None:
        """Look at a block; `count` frames of a group came before it, whether or not that group `is_first`."""
        names = frames.schema.stats if frames.schema.layers else ()
        complete = np.count_nonzero(frames.stats_present) == frames.stats_present.size
        dead = GRADIENT_ZERO_FRACTION if GRADIENT_ZERO_FRACTION in names else DEAD_FRACTION
        self.stats: list[Floats32 | None] = [None] * STATS
        self.here: list[Bits | None] = [None] * STATS
        if MOTION in logs.signals:
            j = logs.signals.index(MOTION)
            self.stats[0], self.here[0] = logs.values[:, j], None if logs.here is None else logs.here[j]
        for j, name in ((1, CLIPPING_FACTOR), (2, dead)):
            if name in names:
                k = names.index(name)
                present = frames.stats_present[:, k]
                self.stats[j], self.here[j] = frames.stats[:, :, k], None if complete or present.all() else present
        self._updates = columns.get(UPDATE_NORM)
        # Update norms of which none is 0 and none is not finite: there is nothing to ask of any frame.
        self._plain = self._updates is not None and self._updates.is_finite and self._updates.low > 0
        self.groups: dict[int, Group] = {}
        starts = range(-count % GROUP_FRAMES, len(frames) - GROUP_FRAMES + 1, GROUP_FRAMES)
        if starts and self and all(here is None for here in self.here):
            self.groups = dict(zip(starts, self._whole(starts, is_first), strict=True))

    def _whole(self, starts: range, is_first: bool) -> list[Group]:
        """The groups that lie in this block, all stats measured in each frame."""
        motion, factor, share = self.stats
        nothing: list[None] = [None] * len(starts)
        motions = nothing if motion is None else list(_middle(*_thirds(motion, starts)))
        factors: list[Floats32 | None] = [*nothing]
        if factor is not None and not (factor.flags.forc and np.minimum.reduce(factor, axis=None) >= CLIPPED):
            middle = _middle(*_thirds(factor, starts))
            low: list[bool] = np.asarray((middle < CLIPPED).any(axis=1)).tolist()
            factors = [one if is_low else None for one, is_low in zip(middle, low, strict=True)]
        shares: list[Floats32 | None] = [*nothing]
        dead = [False] * len(starts)
        if share is not None and (
            is_first or not (share.flags.forc and np.maximum.reduce(share, axis=None) < DEAD_SHARE)
        ):
            middle = _middle(*_thirds(share, starts))
            shares, dead = list(middle), np.asarray((middle >= DEAD_SHARE).any(axis=1)).tolist()
        known = motion is not None or share is not None
        return [Group(*one, known) for one in zip(motions, factors, shares, dead, strict=True)]

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        return any(stat is not None for stat in self.stats)

    def is_sound(self, t: int, n: int) -> bool:
        """Whether the update norms of some frames are finite, where they were measured."""
        if self._plain or self._updates is None:
            return True
        part = self._updates.values[t : t + n]
        part = part if self._updates.here is None else part[self._updates.here[t : t + n]]
        return bool(np.isfinite(part).all())

    def has_moved(self, t: int, n: int) -> bool:
        """Whether any update norm of some frames is not 0."""
        if self._plain or self._updates is None:
            return self._plain
        part = self._updates.values[t : t + n]
        part = part if self._updates.here is None else part[self._updates.here[t : t + n]]
        return bool(part.any())

    def fill(self, pending: Floats32, taken: Bits, t: int, first: int, stop: int) -> None:
        """Take what frames give to a group: those from the t-th on are its `first` to `stop`."""
        for slot, (begin, end) in enumerate(SLOTS):
            low, high = max(begin, first), min(end, stop)
            for j, (stat, here) in enumerate(zip(self.stats, self.here, strict=True)):
                if low >= high or stat is None or taken[slot, j]:
                    continue
                start = t + low - first
                at = 0 if here is None else int(np.argmax(here[start : start + high - low]))
                if here is None or here[start + at]:
                    pending[slot, j], taken[slot, j] = stat[start + at], True


def _thirds(stat: Floats32, starts: range) -> list[Floats32]:
    """The first frames of the thirds of groups [3] of [G, L]."""
    return [np.ascontiguousarray(stat[starts[0] + first : starts[-1] + first + 1 : GROUP_FRAMES]) for first, _ in SLOTS]


def fit(habits: Habits, names: tuple[str, ...]) -> None:
    """Make room for a block's layers; another set of layers begins anew."""
    if names == habits.names:
        return
    n = len(names)
    habits.names, habits.groups, habits.still = names, 0, 0
    _begin(habits)
    habits.first, habits.usual = np.full((n, 2), np.nan, np.float32), np.full(n, np.nan, np.float32)
    habits.clipped, habits.dead = np.empty(0), np.empty(0)


def _begin(habits: Habits) -> None:
    """A group begins."""
    if len(habits.pending) or habits.pending.shape[2] != len(habits.names):
        habits.pending = np.empty((0, STATS, len(habits.names)), np.float32)
        habits.taken = np.zeros((len(SLOTS), STATS), np.bool_)
    habits.count, habits.sound, habits.moved = 0, True, False


def room(habits: Habits) -> int:
    """How many frames fit into the group."""
    return GROUP_FRAMES - habits.count


def take(habits: Habits, block: Watched, t: int, n: int, rate: float, usual: bool) -> list[Finding]:
    """Take n frames from the t-th of a block on, at most `room` of them.

    Args:
        habits: the memory, changed in place.
        block: what there is to see.
        t: the first of the frames.
        n: how many.
        rate: the learning rate now; NaN where it is unknown.
        usual: whether the run is in its usual state, so that the past may learn from it.
    """
    if not block:
        return []
    habits.sound = habits.sound and block.is_sound(t, n)
    habits.moved = habits.moved or block.has_moved(t, n)
    group = block.groups.get(t - habits.count)
    if group is None and not _are_full(habits, habits.count, habits.count + n):
        pending = np.full((len(SLOTS), STATS, len(habits.names)), np.nan, np.float32)
        pending[: len(habits.pending)] = habits.pending
        habits.pending, habits.taken = pending, habits.taken.copy()
        block.fill(pending, habits.taken, t, habits.count, habits.count + n)
    habits.count += n
    if habits.count < GROUP_FRAMES:
        return []
    if group is None:
        group = _group(habits.pending, habits.taken)
    sound, moved, motion = habits.sound, habits.moved, group.motion
    _begin(habits)
    if group.known:
        habits.groups += 1
        if habits.groups <= FIRST_GROUPS:
            unknown = np.full(len(habits.names), np.nan, np.float32)
            habits.first = np.stack([unknown if one is None else one for one in (group.share, motion)], axis=1)
    found = _still(habits, sound, moved, motion, rate) if motion is not None else []
    found += _chronic(habits, group)
    if usual and not habits.still and motion is not None:
        moved_on = habits.usual + np.float32(0.2) * (motion - habits.usual)
        is_known = math.isfinite(np.vdot(moved_on, moved_on))
        habits.usual = moved_on if is_known else np.where(np.isfinite(habits.usual), moved_on, motion)
        habits.rate = rate if habits.rate != habits.rate else habits.rate + 0.2 * (rate - habits.rate)
    return found


def _are_full(habits: Habits, first: int, stop: int) -> bool:
    """Whether the group has its frames of all thirds into which those from `first` to `stop` fall."""
    if not len(habits.pending):
        return False
    taken = habits.taken.tolist()
    return all(all(taken[slot]) for slot, (begin, end) in enumerate(SLOTS) if begin < stop and first < end)


def rescale(habits: Habits, factor: float) -> None:
    """The learning rate made a step, and the updates with it."""
    habits.usual = habits.usual + np.float32(math.log(factor))
    habits.rate = habits.rate * factor


def _still(habits: Habits, sound: bool, moved: bool, motion: Floats32, rate: float) -> list[Finding]:
    """No update at all, or next to none."""
    still = sound and rate != 0 and not (rate < RATE_SHARE * habits.rate)
    if still and moved:  # next to none
        still = bool(np.count_nonzero(motion < habits.usual + math.log(STILL_SHARE)) >= 0.9 * len(motion))
    habits.still = habits.still + 1 if still else 0
    if habits.number is None and habits.still >= STILL_GROUPS:
        return [Finding("no_update", value=float(habits.still * GROUP_FRAMES))]
    if habits.number is not None and not still:
        return [Finding("no_update", ended=True)]
    return []


def _chronic(habits: Habits, group: Group) -> list[Finding]:
    """Habits that are told once."""
    found: list[Finding] = []
    motion, none = group.motion, _NONE
    habits.clipped = none if group.factor is None else _count(habits.clipped, group.factor < CLIPPED, CLIPPED_LAYERS)
    if group.share is not None and group.dead:
        dying = group.share >= np.maximum(habits.first[:, 0] + np.float32(DEAD_RISE), np.float32(DEAD_SHARE))
        habits.dead = _count(habits.dead, dying, 0.0)
    else:
        habits.dead = none
    for kind, counts, column in (
        ("overclipped", habits.clipped, group.factor),
        ("dead_units", habits.dead, group.share),
    ):
        if column is not None and len(counts) and kind not in habits.told and np.count_nonzero(counts >= HABIT_GROUPS):
            i = int(np.argmax(counts))
            habits.told = [*habits.told, kind]
            found.append(Finding(kind, habits.names[i], float(column[i])))
    late = habits.groups >= LAG_GROUPS and habits.groups % HABIT_GROUPS == 0
    if late and motion is not None and "unconverged_layer" not in habits.told and np.isfinite(motion).all():
        usual = _median(motion)
        fell = usual < _median(habits.first[:, 1]) - math.log(2.0)
        lags = (motion > usual + math.log(LAG_RATIO)) & (motion > habits.first[:, 1] - math.log(2.0))
        if fell and lags.any():
            i = int(np.argmax(np.where(lags, motion, -np.inf)))
            habits.told = [*habits.told, "unconverged_layer"]
            found.append(Finding("unconverged_layer", habits.names[i], float(np.exp(motion[i] - usual))))
    return found


def _median(values: Floats32) -> float:
    """Of the layers: NumPy's own costs ten times the sorting. NaN where one of them is."""
    ordered, half = np.sort(values), len(values) // 2
    if ordered[-1] != ordered[-1]:
        return math.nan
    return float(ordered[half]) if len(values) % 2 else float(ordered[half - 1] + ordered[half]) / 2


def _count(counts: Floats64, found: Bits, share: float) -> Floats64:
    """Groups in a row in which a layer was found, as long as that share of the layers was; empty where none was."""
    many = np.count_nonzero(found)
    if not many or many / len(found) < share:
        return _NONE
    return np.asarray(((counts if len(counts) else 0.0) + 1.0) * found, np.float64)
