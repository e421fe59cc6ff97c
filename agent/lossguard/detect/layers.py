"""The layers' own baselines, and which of them moved first.

Of the stats that a run records three say something early: the gradient norm, the update over the weight, and Clippy's
ratio; each is judged on its logarithm against the layer's own robust baseline, because a fixed threshold is useless
(healthy runs with heavy-tailed features burst a thousandfold). Honest expectation, measured: about a third of the
divergences show here first, by 2 to 5 steps; what it always gives is the layer to look at.

Baselines are renewed after every 16 frames in which their signal was measured, not while an episode is open, so a block
can be judged at once. The arrays of a state are replaced, never written to: states may share them.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lossguard.detect.columns import Column
from lossguard.wire.frame import Bits, Floats32, Floats64, Steps
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
"""Movements are remembered for 40 frames, twice what is looked back."""
MOTION = "update_over_weight"
TINY = 1e-30


@dataclass(slots=True)
class Memory:
    """The baselines of J signals that have always been measured in the same frames.

    Attributes:
        signals: their names.
        centre: mean log per signal and layer; NaN before the first renewal [J, L].
        scale: its deviation [J, L].
        groups: how many groups of 16 frames the baseline rests on.
        pending: heights of the frames since the last renewal; their logs before there is a baseline [n, J, L].
    """

    signals: tuple[str, ...]
    centre: Floats32
    scale: Floats32
    groups: int
    pending: Floats32


@dataclass(slots=True)
class Layers:
    """What is known of L layers.

    Attributes:
        names: the layers.
        signals: the names of the signals.
        memories: their baselines: all in one, and apart from the first frame on that measures only some of them.
        seen: frames seen.
        kept: how many of them are remembered, at most 40.
        moved_frame: of each movement within these: its frame, counted as `seen` counts [M].
        moved_layer: its layer's place in `names` [M].
        moved_height: how many scales above the centre, more than 6 [M].
    """

    names: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    memories: tuple[Memory, ...] = ()
    seen: int = 0
    kept: int = 0
    moved_frame: Steps = field(default_factory=lambda: np.empty(0, np.int64))
    moved_layer: Steps = field(default_factory=lambda: np.empty(0, np.int64))
    moved_height: Floats32 = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass(frozen=True, slots=True)
class Logs:
    """The signals of a block.

    Attributes:
        signals: their names.
        values: their logarithms; NaN where not measured [T, J, L].
        here: in which frames each was measured; None where in all [J, T].
    """

    signals: tuple[str, ...]
    values: Floats32
    here: Bits | None

    def of(self, signal: str, t: int) -> Floats64:
        """A signal at one frame; empty where the block has none of that name [L]."""
        if signal not in self.signals:
            return np.empty(0)
        return np.asarray(self.values[t, self.signals.index(signal)], np.float64)


Moves = tuple[Steps, Steps, Floats32]
"""Frames, layers and heights of movements."""


def init() -> Layers:
    """No layers yet."""
    return Layers()


def logs(columns: Mapping[str, Column], frames: int, layers: int) -> Logs:
    """The signals of a block.

    Args:
        columns: the block's stats, as `columns` lays them out.
        frames: in the block.
        layers: in the block.
    """
    sources = {GRADIENT_NORM: (GRADIENT_NORM,), MOTION: (UPDATE_NORM, WEIGHT_NORM), CLIPPY_RATIO: (CLIPPY_RATIO,)}
    found = tuple(name for name, needed in sources.items() if all(stat in columns for stat in needed))
    values = np.empty((frames, len(found), layers), np.float32)
    for j, name in enumerate(found):
        first = columns[sources[name][0]]
        if name == MOTION:
            weight = columns[WEIGHT_NORM]
            part = np.divide(first.values, weight.values)
            # Twice: the quotient is rounded. A NaN fails each of these.
            sure = weight.low > 0 and first.low >= 2 * TINY * weight.high
            np.log(part if sure else np.maximum(part, np.float32(TINY), out=part), out=part)
        else:
            part = np.log(first.values if first.low >= TINY else np.maximum(first.values, np.float32(TINY)))
        values[:, j] = part  # worked out as the columns lie in memory
    partly = {name: columns[name].here for name in columns if columns[name].here is not None}
    if not any(stat in partly for name in found for stat in sources[name]):
        return Logs(found, values, None)
    here = np.ones((len(found), frames), np.bool_)
    for j, name in enumerate(found):
        for stat in sources[name]:
            here[j] &= partly.get(stat, True)
    return Logs(found, values, here)


def fit(state: Layers, names: tuple[str, ...], signals: tuple[str, ...]) -> None:
    """Make room for a block's layers; another set of layers or signals begins anew."""
    if not signals:  # what is remembered of the last frames is of older ones from here on
        _forget(state)
    elif names != state.names or signals != state.signals:
        shape = (len(signals), len(names))
        nothing, pending = np.full(shape, np.nan, np.float32), np.empty((0, *shape), np.float32)
        state.names, state.signals = names, signals
        state.memories = (Memory(signals, nothing, nothing, 0, pending),)
        _forget(state)


def _forget(state: Layers) -> None:
    fresh = Layers()
    state.seen = state.kept = 0
    state.moved_frame, state.moved_layer, state.moved_height = fresh.moved_frame, fresh.moved_layer, fresh.moved_height


def advance(state: Layers, block: Logs, start: int, stop: int) -> None:
    """Take frames of the run's usual state: what moved in them, and into the baselines."""
    if block.signals:
        _remember(state, stop - start, learn(state, block, start, stop))


def look(state: Layers, block: Logs, t: int) -> None:
    """See what moved in a frame that the baselines may not learn from."""
    if block.signals:
        found = []
        for memory in state.memories:
            rows, _ = _rows(block, memory.signals, t, t + 1)
            heights = _heights(memory, rows, np.empty_like(rows))
            found.append(_moves(heights, np.zeros(1, np.int64)))
        _remember(state, 1, found)


def learn(state: Layers, block: Logs, start: int, stop: int) -> list[Moves]:
    """Take frames into the baselines; what moved in them, frames counted from `start`."""
    if block.here is not None:
        state.memories = tuple(part for memory in state.memories for part in _apart(memory, block, start, stop))
    found: list[Moves] = []
    learned = []
    for memory in state.memories:
        rows, at = _rows(block, memory.signals, start, stop)
        fresh = Memory(memory.signals, memory.centre, memory.scale, memory.groups, memory.pending)
        found += _learn(fresh, rows, at)
        learned.append(fresh)
    state.memories = tuple(learned)
    return found


def _rows(block: Logs, signals: tuple[str, ...], start: int, stop: int) -> tuple[Floats32, Steps]:
    """The frames in which signals were measured together, and where they are [n, J, L] [n]."""
    values = block.values
    if len(signals) < len(block.signals):
        values = values[:, [block.signals.index(name) for name in signals]]
    if block.here is None:
        return values[start:stop], np.arange(stop - start)
    at = np.flatnonzero(block.here[block.signals.index(signals[0]), start:stop])
    return values[start + at], at


def _apart(memory: Memory, block: Logs, start: int, stop: int) -> list[Memory]:
    """The memory, cut into those of signals that are still measured in the same frames."""
    if block.here is None or len(memory.signals) < 2:
        return [memory]
    places: dict[bytes, list[int]] = {}
    for j, name in enumerate(memory.signals):
        places.setdefault(block.here[block.signals.index(name), start:stop].tobytes(), []).append(j)
    if len(places) < 2:
        return [memory]
    return [
        Memory(
            tuple(memory.signals[j] for j in part),
            memory.centre[part], memory.scale[part], memory.groups, memory.pending[:, part],
        )
        for part in places.values()
    ]  # fmt: skip


def _learn(memory: Memory, rows: Floats32, at: Steps) -> list[Moves]:
    """Take measured frames [n, J, L] into the baseline; what moved in the last of them.

    One group is at work at a time, in one place, so that it stays in the processor's cache.
    """
    found = []
    done, total, held = 0, len(rows), len(memory.pending)
    work = np.empty((GROUP_FRAMES, *rows.shape[1:]), np.float32)
    work[:held] = memory.pending
    while done < total:
        n = min(GROUP_FRAMES - held, total - done)
        heights = _heights(memory, rows[done : done + n], work[held : held + n])
        if done + n > total - TALL_FRAMES:
            found.append(_moves(heights, at[done : done + n]))
        if not memory.groups:
            heights[...] = rows[done : done + n]
        held, done = held + n, done + n
        if held == GROUP_FRAMES:
            _renew(memory, work)
            held = 0
    memory.pending = work[:held].copy()
    return found


def _heights(memory: Memory, rows: Floats32, out: Floats32) -> Floats32:
    """How many scales above their centres the signals are; NaN where there is no baseline [n, J, L]."""
    np.subtract(rows, memory.centre, out=out)
    return np.divide(out, memory.scale, out=out)


def _moves(heights: Floats32, at: Steps) -> Moves:
    """What is tall among heights [n, J, L]; a NaN is not: what is not finite is judged elsewhere."""
    if not heights.size or np.maximum.reduce(heights.reshape(-1)) <= SIGNAL_SCALES:
        return at[:0], at[:0], np.empty(0, np.float32)
    tallest = np.fmax.reduce(heights, axis=1)
    rows, layers = np.nonzero(tallest > SIGNAL_SCALES)
    return at[rows], layers, tallest[rows, layers]


def _remember(state: Layers, frames: int, found: list[Moves]) -> None:
    """Count frames, keep what moved in them, and let go of what is older than 40 frames."""
    before, state.seen = state.seen, state.seen + frames
    state.kept = min(state.kept + frames, TALL_FRAMES)
    fresh = [moves for moves in found if len(moves[0])]
    if not (fresh or len(state.moved_frame)):
        return
    frame = np.concatenate([state.moved_frame, *(at + before for at, _, _ in fresh)])
    layer = np.concatenate([state.moved_layer, *(which for _, which, _ in fresh)])
    height = np.concatenate([state.moved_height, *(tall for _, _, tall in fresh)])
    order = np.lexsort((height, layer, frame))  # the same however blocks are cut
    order = order[frame[order] >= state.seen - TALL_FRAMES]
    state.moved_frame, state.moved_layer, state.moved_height = frame[order], layer[order], height[order]


def _renew(memory: Memory, rows: Floats32) -> None:
    """Renew the baselines from a group, which is changed: its heights, or its logs without a baseline [16, J, L]."""
    if memory.groups == 0:
        known = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a signal that was never measured has no median
            middle = np.nanmedian(known, axis=0)
            spread = 1.4826 * np.nanmedian(np.abs(known - middle), axis=0)
        memory.centre, memory.scale = middle.astype(np.float32), np.fmax(spread, SCALE_FLOOR).astype(np.float32)
        memory.groups = 1
        return
    rate = 1.0 / min(memory.groups + 1, MEMORY_GROUPS)
    deviation = rows.clip(np.float32(-CLIP_SCALES), np.float32(CLIP_SCALES), out=rows)
    total = np.add.reduce(deviation, axis=0)
    if math.isnan(np.vdot(total, total)):  # a NaN says nothing: it counts as the centre
        deviation[np.isnan(deviation)] = 0.0
        total = np.add.reduce(deviation, axis=0)
    widening = np.add.reduce(np.abs(deviation, out=deviation), axis=0) * (rate / (GROUP_FRAMES * CLIPPED_MEAN)) - rate
    memory.centre = memory.centre + memory.scale * total * (rate / GROUP_FRAMES)
    memory.scale = np.maximum(memory.scale * np.exp(widening), np.float32(SCALE_FLOOR))
    memory.groups += 1


def centre_of(state: Layers, signal: str) -> Floats64:
    """Where a signal's logarithm usually is; empty where it is not watched [L]."""
    for memory in state.memories:
        if signal in memory.signals:
            return np.asarray(memory.centre[memory.signals.index(signal)], np.float64)
    return np.empty(0)


def moving_now(state: Layers) -> list[tuple[str, float]]:
    """The layers that are away from their baselines in the last frame, and how far."""
    now = state.moved_frame == state.seen - 1
    tallest: dict[int, float] = {}
    for i, tall in zip(state.moved_layer[now].tolist(), state.moved_height[now].tolist(), strict=True):
        tallest[i] = max(tall, tallest.get(i, tall))
    return [(state.names[i], tall) for i, tall in tallest.items()]


def rescale(state: Layers, factor: float) -> None:
    """The learning rate made a step: what is proportional to it has its centre elsewhere now."""
    shift = np.float32(math.log(factor))
    state.memories = tuple(
        replace(memory, centre=memory.centre + shift * np.array(
            [[name in (MOTION, CLIPPY_RATIO)] for name in memory.signals], np.float32
        ))
        for memory in state.memories
    )  # fmt: skip


def movers(state: Layers, frames: int, since: int = 0) -> list[tuple[str, int, float]]:
    """The layers that moved within the last frames: name, how many frames ago first, how tall at most.

    A movement counts from where it leads without a break into the onset or what came after it. The first to move
    stands first; of those that moved in the same frame the one that moved furthest.

    Args:
        state: the baselines.
        frames: how many frames to look at.
        since: how many frames ago the onset was.
    """
    last = state.seen - 1
    near = state.moved_frame > last - min(frames, state.kept)
    frame, layer, height = state.moved_frame[near], state.moved_layer[near], state.moved_height[near]
    edge = last - since - QUIET_FRAMES
    found = []
    for i in dict.fromkeys(layer.tolist()):
        mine = layer == i
        at, tall = frame[mine], height[mine]
        first, *before = at[::-1].tolist()
        if first < edge:
            continue
        for k in before:
            if k < edge and first - k > QUIET_FRAMES + 1:
                break
            first = k
        found.append((state.names[i], last - first, float(tall[at >= first].max())))
    return sorted(found, key=lambda item: (-item[1], -item[2], item[0]))
