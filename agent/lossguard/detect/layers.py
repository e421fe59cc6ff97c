"""The layers' own baselines, and which of them moved first.

Of the stats that a run records three say something early: the gradient norm, the update over the weight, and Clippy's
ratio; each is judged on its logarithm against the layer's own robust baseline, because a fixed threshold is useless
(healthy runs with heavy-tailed features burst a thousandfold). Honest expectation, measured: about a third of the
divergences show here first, by 2 to 5 steps; what it always gives is the layer to look at.

Baselines are renewed after every 16 frames, not while an episode is open, so a block can be judged at once. The arrays
of a state are replaced, never written to: states may share them.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lossguard.wire.frame import Floats32
from lossguard.wire.stats import CLIPPY_RATIO, GRADIENT_NORM, UPDATE_NORM, WEIGHT_NORM

GROUP_FRAMES = 16
"""Frames between two renewals: a mean of 16 is known to a quarter of a deviation."""
MEMORY_GROUPS = 6
"""The memory of a baseline: about 100 frames."""
CLIP_SCALES = 3.0
"""What is further than 3 scales away enters as 3."""
CLIPPED_MEAN = 0.795
"""The mean of a standard normal deviate's magnitude, clipped at 3: what makes the scale a standard deviation."""
SCALE_FLOOR = 0.05
"""Five per cent: below that a norm's change means nothing to anybody, and 8-bit mantissas round to 0.4 %."""
SIGNAL_SCALES = 6.0
"""A layer moves when a signal is 6 scales above its centre; at 4 the largest of 45 signals is above in every tenth
healthy frame of the recorded runs."""
LOOK_BACK = 20
"""A movement up to 20 frames before the onset counts as its first signal: two thirds of the measured leads are below
5, and each further frame adds chance."""
LOOK_AHEAD = 10
"""Where nothing moved before, the first to move within 10 frames after the onset is named."""
QUIET_FRAMES = 4
"""... and it has to lead there: at most 4 quiet frames between its movements and before the onset. A lone burst earlier
was something else; without this, 2.4 % of healthy windows of 21 frames name a layer, with it 0.6 %, and no recorded
divergence loses its first layer."""
TALL_FRAMES = 40
MOTION = "update_over_weight"
TINY = 1e-30


@dataclass(slots=True)
class Layers:
    """The baselines of L layers with J signals each.

    Attributes:
        names: the layers.
        signals: the names of the signals.
        centre: mean log per signal and layer [J, L].
        scale: its deviation [J, L].
        groups: how many groups the baseline rests on.
        pending: heights of the frames since the last renewal; their logs before there is a baseline [n, J, L].
        tall: the largest height over the signals of each layer, for the last 40 frames, oldest first; at least -1, and
            infinite above 65,504 [n, L].
    """

    names: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    centre: Floats32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    scale: Floats32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    groups: int = 0
    pending: Floats32 = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))
    tall: NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0), np.float16))


def init() -> Layers:
    """No layers yet."""
    return Layers()


def logs(columns: Mapping[str, Floats32], frames: int, layers: int) -> tuple[tuple[str, ...], Floats32]:
    """The signals of a block and their logarithms [T, J, L]; NaN where not measured.

    Args:
        columns: the block's stats, as `columns` lays them out.
        frames: in the block.
        layers: in the block.
    """
    motion = UPDATE_NORM in columns and WEIGHT_NORM in columns
    wanted = ((GRADIENT_NORM, GRADIENT_NORM in columns), (MOTION, motion), (CLIPPY_RATIO, CLIPPY_RATIO in columns))
    found = tuple(name for name, here in wanted if here)
    array = np.empty((frames, len(found), layers), np.float32)
    for j, name in enumerate(found):
        if name == MOTION:
            np.divide(columns[UPDATE_NORM], columns[WEIGHT_NORM], out=array[:, j])
        else:
            array[:, j] = columns[name]
    if not np.minimum.reduce(array, axis=None, initial=np.inf) >= np.float32(TINY):  # a NaN takes this way, too
        np.maximum(array, np.float32(TINY), out=array)
    return found, np.log(array, out=array)


def fit(state: Layers, names: tuple[str, ...], signals: tuple[str, ...]) -> None:
    """Make room for a block's layers; another set of layers or signals begins anew."""
    if names == state.names and signals == state.signals:
        return
    shape = (len(signals), len(names))
    state.names, state.signals, state.groups = names, signals, 0
    state.centre, state.scale = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    state.pending = np.empty((0, *shape), np.float32)
    state.tall = np.empty((0, len(names)), np.float16)


def fit_none(state: Layers) -> None:
    """A block measures no signal: what is remembered of the last frames is of older ones from here on."""
    state.tall = np.empty((0, len(state.names)), np.float16)


def advance(state: Layers, rows: Floats32) -> None:
    """Take frames of the run's usual state: how tall they are, and into the baselines [n, J, L]."""
    _remember(state, learn(state, rows))


def look(state: Layers, rows: Floats32) -> None:
    """See how tall the layers' signals are in frames that the baselines may not learn from [n, J, L]."""
    if rows.size:
        _remember(state, _heights(state, rows, np.empty_like(rows)))


def learn(state: Layers, rows: Floats32) -> Floats32:
    """Take frames into the baselines; how many scales above their centres they were [n, J, L]."""
    heights, done = np.empty_like(rows), 0
    while rows.size and done < len(rows):
        stop = min(done + GROUP_FRAMES - len(state.pending), len(rows))
        taken = _heights(state, rows[done:stop], heights[done:stop])
        group = taken if state.groups else rows[done:stop]
        if len(state.pending):
            group = np.concatenate([state.pending, group])
        if len(group) == GROUP_FRAMES:
            _renew(state, group)
            group = group[:0]
        state.pending = group.copy()
        done = stop
    return heights


def _heights(state: Layers, rows: Floats32, out: Floats32) -> Floats32:
    """How many scales above their centres the signals are; NaN where there is no baseline [n, J, L]."""
    np.subtract(rows, state.centre, out=out)
    return np.divide(out, state.scale, out=out)


def _remember(state: Layers, heights: Floats32) -> None:
    """Keep how tall each layer was in the last frames."""
    if not heights.size:
        return
    last = heights[-TALL_FRAMES:]
    # A NaN is not tall: non-finite values are judged elsewhere, and an unknown baseline judges nothing.
    tallest = np.fmax(last[:, 0], np.float32(-1))
    for j in range(1, last.shape[1]):
        np.fmax(tallest, last[:, j], out=tallest)
    fresh = tallest.astype(np.float16)
    kept = TALL_FRAMES - len(fresh)
    state.tall = np.concatenate([state.tall[-kept:], fresh]) if kept else fresh


def _renew(state: Layers, rows: Floats32) -> None:
    """Renew the baselines from a group: its heights, or its logs where there is no baseline yet [16, J, L]."""
    if state.groups == 0:
        known = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a signal that was never measured has no median
            middle = np.nanmedian(known, axis=0)
            spread = 1.4826 * np.nanmedian(np.abs(known - middle), axis=0)
        state.centre, state.scale = middle.astype(np.float32), np.fmax(spread, SCALE_FLOOR).astype(np.float32)
        state.groups = 1
        return
    rate = 1.0 / min(state.groups + 1, MEMORY_GROUPS)
    deviation = np.maximum(rows, np.float32(-CLIP_SCALES))
    np.minimum(deviation, np.float32(CLIP_SCALES), out=deviation)
    total = np.add.reduce(deviation, axis=0)
    if np.isnan(np.add.reduce(total, axis=None)):  # a NaN says nothing: it counts as the centre
        deviation[np.isnan(deviation)] = 0.0
        total = np.add.reduce(deviation, axis=0)
    widening = np.add.reduce(np.abs(deviation, out=deviation), axis=0) * (rate / (GROUP_FRAMES * CLIPPED_MEAN)) - rate
    state.centre = state.centre + state.scale * total * (rate / GROUP_FRAMES)
    state.scale = np.maximum(state.scale * np.exp(widening), np.float32(SCALE_FLOOR))
    state.groups += 1


def tall_now(state: Layers) -> list[tuple[str, float]]:
    """The layers that are away from their baselines in the last frame, and how far."""
    if not len(state.tall):
        return []
    row = state.tall[-1]
    return [(state.names[i], float(row[i])) for i in np.flatnonzero(row > SIGNAL_SCALES).tolist()]


def rescale(state: Layers, factor: float) -> None:
    """The learning rate made a step: what is proportional to it has its centre elsewhere now."""
    shift = np.float32(math.log(factor))
    follows = np.array([[name in (MOTION, CLIPPY_RATIO)] for name in state.signals])
    state.centre = np.where(follows, state.centre + shift, state.centre)


def movers(state: Layers, frames: int, since: int = 0) -> list[tuple[str, int, float]]:
    """The layers that moved within the last frames: name, how many frames ago first, how tall at most.

    A movement counts from where it leads without a break into the onset or what came after it. The first to move
    stands first; of those that moved in the same frame the one that moved furthest.

    Args:
        state: the baselines.
        frames: how many frames to look at.
        since: how many frames ago the onset was.
    """
    window = state.tall[-frames:] if frames else state.tall[:0]
    moved = window > SIGNAL_SCALES
    edge = len(window) - 1 - since - QUIET_FRAMES
    found = []
    for i in np.flatnonzero(moved.any(axis=0)):
        first, *before = np.flatnonzero(moved[:, i])[::-1].tolist()
        if first < edge:
            continue
        for k in before:
            if k < edge and first - k > QUIET_FRAMES + 1:
                break
            first = k
        found.append((state.names[i], len(window) - 1 - first, float(window[first:, i].max())))
    return sorted(found, key=lambda item: (-item[1], -item[2], item[0]))
