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
        pending: update norm, weight norm, clipping factor and dead share of the group so far; NaN where not measured
            [n, L, 4].
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
    pending: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 4), np.float32))
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


def columns(frames: Frames) -> NDArray[np.float32]:
    """What this watch looks at, of a block [T, L, 4]; empty where no layer is watched."""
    names = frames.schema.stats
    dead = GRADIENT_ZERO_FRACTION if GRADIENT_ZERO_FRACTION in names else "dead_fraction"
    wanted = (UPDATE_NORM, WEIGHT_NORM, CLIPPING_FACTOR, dead)
    shape = (len(frames), len(frames.schema.layers), len(wanted))
    if not frames.schema.layers or not any(name in names for name in wanted):
        return np.empty((len(frames), 0, len(wanted)), np.float32)
    out = np.full(shape, np.nan, np.float32)
    for j, name in enumerate(wanted):
        if name in names:
            k = names.index(name)
            here = frames.stats_present[:, k]
            if here.all():
                out[:, :, j] = frames.stats[:, :, k]
            else:
                out[here, :, j] = frames.stats[here, :, k]
    return out


def fit(habits: Habits, names: tuple[str, ...]) -> None:
    """Make room for a block's layers; another set of layers begins anew."""
    if names == habits.names:
        return
    n = len(names)
    habits.names, habits.groups, habits.still = names, 0, 0
    habits.pending = np.empty((0, n, 4), np.float32)
    habits.first, habits.usual = np.full((n, 2), np.nan), np.full(n, np.nan)
    habits.clipped, habits.dead = np.zeros(n), np.zeros(n)


def take(habits: Habits, rows: NDArray[np.float32], rate: float, usual: bool) -> list[Finding]:
    """Take frames [n, L, 4], at most to the end of the group.

    Args:
        habits: the memory, changed in place.
        rows: what `columns` gave.
        rate: the learning rate now; NaN where it is unknown.
        usual: whether the run is in its usual state, so that the past may learn from it.
    """
    if not rows.size:
        return []
    habits.pending = np.concatenate([habits.pending, rows])
    if len(habits.pending) < GROUP_FRAMES:
        return []
    group, habits.pending = habits.pending, habits.pending[:0]
    one, two, three = (group[k].astype(np.float64) for k in SAMPLED)
    middle = np.maximum(np.minimum(one, two), np.minimum(np.maximum(one, two), three))  # NaN where one is missing
    with np.errstate(all="ignore"):
        motion = np.log(np.maximum(middle[:, 0] / middle[:, 1], 1e-30))
    habits.groups += 1
    if habits.groups <= 2:
        habits.first = np.stack([middle[:, 3], motion], axis=1)
    found = [*_still(habits, group, motion, rate), *_chronic(habits, middle, motion)]
    if usual and not habits.still:
        habits.usual = np.where(np.isfinite(habits.usual), habits.usual + 0.2 * (motion - habits.usual), motion)
        habits.rate = rate if habits.rate != habits.rate else habits.rate + 0.2 * (rate - habits.rate)
    return found


def _still(habits: Habits, group: NDArray[np.float32], motion: Floats64, rate: float) -> list[Finding]:
    """No update at all, or next to none."""
    updates = group[:, :, 0]
    measured = bool(np.isfinite(updates).all())
    learning = rate != 0 and not (rate < RATE_SHARE * habits.rate)
    with np.errstate(invalid="ignore"):
        far = (motion < habits.usual + np.log(STILL_SHARE)).mean() >= 0.9
    still = measured and learning and (not updates.any() or bool(far))
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
        low = middle[:, 2] < CLIPPED
        habits.clipped = np.where(low & (low.mean() >= CLIPPED_LAYERS), habits.clipped + 1, 0)
        dying = (middle[:, 3] >= DEAD_SHARE) & (middle[:, 3] >= habits.first[:, 0] + DEAD_RISE)
        habits.dead = np.where(dying, habits.dead + 1, 0)
    for kind, counts, column in (("overclipped", habits.clipped, 2), ("dead_units", habits.dead, 3)):
        if kind not in habits.told and (counts >= HABIT_GROUPS).any():
            i = int(np.argmax(counts))
            habits.told.append(kind)
            found.append(Finding(kind, habits.names[i], float(middle[i, column])))
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
