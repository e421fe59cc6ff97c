"""Which frames tell nothing, found without taking them in.

A frame is quiet if, whatever waits before it, nothing that could open, change or end an incident happens at it: nothing
is open, no group ends and no baseline is renewed with it, every loss lies where no test looks at it, nothing is
missing, late or not finite, and the learning rate makes no step. Then the incidents after it are those before it, and
it may wait (`waiting`). In doubt a frame is not quiet, which costs time and changes nothing.
"""

import math
from collections.abc import Callable

import numpy as np

from lossguard.detect import baseline, drift, habits, nonfinite, pack, regime, slow, spread, trigger, voices
from lossguard.detect.columns import WATCHED
from lossguard.detect.state import MonitorState
from lossguard.detect.waiting import Limits, Part, Waiting
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.stats import CLIPPING_FACTOR, GRADIENT_ZERO_FRACTION, NONFINITE_COUNT

_KEPT = WATCHED | {CLIPPING_FACTOR, GRADIENT_ZERO_FRACTION, habits.DEAD_FRACTION}


def wait(state: MonitorState, frames: Frames) -> MonitorState | None:
    """The state with the frames waiting beside it, if all of them are quiet; None if they must be taken in.

    Args:
        state: as it is, with what waits already.
        frames: the next ones, at least one.
    """
    waiting = state.waiting
    if waiting is None:
        if len(frames) >= habits.GROUP_FRAMES or not _is_calm(state):
            return None
        limits = _limits(state, frames.schema, len(frames))
        if limits is None:
            return None
        waiting = Waiting(limits, (), 0, state.regime.rate, state.time)
    part = _quiet(waiting, frames)
    if part is None:
        return None
    later = pack.shallow(state)
    rate = waiting.rate if waiting.limits.rate is None else part.scalars[-1][waiting.limits.rate]
    later.waiting = Waiting(
        waiting.limits, (*waiting.parts, part), waiting.count + len(part.steps), rate, part.times[-1]
    )
    later.last_step = part.steps[-1]
    return later


def _is_calm(state: MonitorState) -> bool:
    """Whether nothing is going on that each frame is asked about."""
    return (
        state.frame >= baseline.SETTLED_FRAMES
        and state.open is None
        and not state.probations
        and not state.ruined
        and not nonfinite.watching(state.nonfinite)
        and not any(state.trigger.sums)
    )


def _limits(state: MonitorState, schema: Schema, count: int) -> Limits | None:
    """Within what frames are quiet after this state; None if not so many can be."""
    if baseline.due(state.frame):
        return None
    if "learning_rate" in schema.scalars and state.regime.rises >= 0:
        return None  # its warm-up may end with any frame
    room = min(baseline.until_due(state.frame), habits.room(state.habits) - 1)
    found = voices.roles(schema.scalars)
    if found.spreads:
        room = min(room, spread.room(state.frame) - 1)
    for task in found.labels:
        room = min(room, drift.room(state.drifts[task]) if task in state.drifts else 0)
    if room < count or set(found.voices) != set(state.names):
        return None
    at: Callable[[str], int] = schema.scalars.index
    centres, scales = state.base.centre.tolist(), state.base.scale.tolist()
    if not all(scale > 0 for scale in scales):
        return None
    stats = [k for k, name in enumerate(schema.stats) if name in _KEPT]
    names = [schema.stats[k] for k in stats]
    return Limits(
        schema=schema,
        kept=Schema(schema.scalars, schema.layers, tuple(names)),
        stats=stats,
        finite=[j for j, name in enumerate(names) if name in nonfinite.WATCHED],
        zero=names.index(NONFINITE_COUNT) if NONFINITE_COUNT in names else None,
        voices=list(zip(map(at, state.names), centres, scales, strict=True)),
        labels=[at(name) for name in found.labels.values()],
        rate=at("learning_rate") if "learning_rate" in schema.scalars else None,
        room=room,
    )


def _quiet(waiting: Waiting, frames: Frames) -> Part | None:
    """The frames as they may wait; None if one of them is not quiet."""
    limits, n = waiting.limits, len(frames)
    if waiting.count + n > limits.room or not limits.takes(frames.schema):
        return None
    if np.count_nonzero(frames.scalars_present) < frames.scalars_present.size:
        return None
    scalars, times = frames.scalars.tolist(), frames.times.tolist()
    rate, time = waiting.rate, waiting.time
    for row, now in zip(scalars, times, strict=True):
        for column, centre, scale in limits.voices:
            if not -baseline.FALL_SCALES < (row[column] - centre) / scale < trigger.DRIFT_SCALES:
                return None
        for column in limits.labels:
            if not math.isfinite(row[column]):
                return None
        if limits.rate is not None:
            last, rate = rate, row[limits.rate]
            if rate != last and not (last > 0 and 0 < rate < math.inf and regime.glides(rate / last)):
                return None
        # All times known or none: what lies between two known ones is no gap then.
        if not -math.inf < now - time <= slow.STALL_SECONDS and (now == now or time == time):
            return None
        time = now
    stats = frames.stats.transpose(2, 0, 1)[limits.stats]
    present = None
    if np.count_nonzero(frames.stats_present) < frames.stats_present.size:
        present = frames.stats_present[:, limits.stats].tolist()
    if limits.finite or limits.zero is not None:
        sums = np.add.reduce(stats, axis=2).tolist()  # of values of which one is not finite no sum is
        for j in limits.finite:
            for t, total in enumerate(sums[j]):
                if not math.isfinite(total) and (present is None or present[t][j]):
                    return None
        if limits.zero is not None:
            j = limits.zero
            for t in range(n):
                if (present is None or present[t][j]) and np.count_nonzero(stats[j, t]):
                    return None
    return Part(frames.steps.tolist(), times, scalars, stats, present)
