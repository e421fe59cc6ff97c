"""Where each voice belongs, and how far it usually strays: robust, and never fed by what it is judged against.

A voice is one loss (the total or a task's). Its centre is the median of its last few accepted values, its scale comes
from one-step residuals, so that a trend does not count as noise and noise does not count as an event. Values far above
the centre enter clipped; NaN and the infinities never enter. All constants count frames (logged points), not steps.
"""

import math
from dataclasses import dataclass

import numpy as np

from lossguard.wire.frame import Floats64

CENTRE_FRAMES = 9
"""Frames in the centre. The shortest median that four bad frames cannot move; longer ones lag behind a falling loss."""
VALUE_FRAMES = 32
"""Accepted values kept per voice, from which the recent range is taken."""
RESIDUAL_FRAMES = 128
"""Residuals kept per voice: the scale of a heavy-tailed loss needs about a hundred (its 97 % quantile is 4 values)."""
STEP_FRAMES = 5
"""A residual is a value minus the median of the 5 values before it: as short as a median can be and still be one."""
MINIMUM_FRAMES = 8
"""Frames before a voice is judged: below that a median of residuals is an accident."""
TAIL_QUANTILE = 0.97
TAIL_SCALE = 3.5
"""The scale is at least the 97 % residual over 3.5: on Gaussian noise (1.9 sigma) that changes nothing, on heavy tails
it is what keeps them quiet."""
RANGE_FLOOR = 0.02
RANGE_TRIM = 0.1
"""The scale is at least 2 % of the recent range, without its upper and lower tenth: a smooth curve's tiny residuals
make no alarm out of a ripple."""
LEVEL_FLOOR = 0.002
"""The scale is at least 0.2 % of the level: logs are rounded to three or four digits."""
CLIP_SCALES = 6.0
"""Residuals above 6 scales enter as 6: an outlier may widen the scale, not own it."""
FALL_SCALES = 4.0
FALL_FRAMES = 3
"""Three frames in a row more than 4 scales below the centre are a new, lower level (the learning rate fell, the log's
cadence changed): the centre moves there at once instead of lagging by half its window."""
SETTLED_FRAMES = 128
REFRESH_FRAMES = 8
LONG_FRAMES = 1024
LONG_REFRESH_FRAMES = 16
"""Centre and scale are renewed at each frame until 128 frames, then at every 8th, from 1024 on at every 16th, counted
from the attempt's first frame: a block of frames can be judged at once, wherever blocks are cut."""


@dataclass(slots=True)
class Baseline:
    """The baselines of V voices. The arrays are replaced, never written to: states may share them.

    Attributes:
        values: the last accepted values, newest last; NaN where there is none yet [V, 32].
        residuals: the last one-step residuals, newest last; NaN where there is none yet [V, 128].
        accepted: how many values were accepted since the level was last reset [V].
        centre: as of the last refresh; NaN while a voice is not judged [V].
        scale: as of the last refresh; NaN while a voice is not judged [V].
        fall: frames in a row far below the centre [V].
    """

    values: Floats64
    residuals: Floats64
    accepted: Floats64
    centre: Floats64
    scale: Floats64
    fall: Floats64


def init(voices: int) -> Baseline:
    """Empty baselines of so many voices."""
    return Baseline(
        values=np.full((voices, VALUE_FRAMES), np.nan),
        residuals=np.full((voices, RESIDUAL_FRAMES), np.nan),
        accepted=np.zeros(voices),
        centre=np.full(voices, np.nan),
        scale=np.full(voices, np.nan),
        fall=np.zeros(voices),
    )


def extend(base: Baseline, voices: int) -> Baseline:
    """The same baselines with empty ones appended, `voices` in all."""
    fresh = init(voices - len(base.accepted))
    return Baseline(
        *(np.concatenate([getattr(base, name), getattr(fresh, name)]) for name in Baseline.__dataclass_fields__)
    )


def forget(base: Baseline, voice: int) -> None:
    """One voice's level is no longer known; how much it strays from frame to frame still is."""
    for name, unknown in (("values", np.nan), ("accepted", 0), ("fall", 0), ("centre", np.nan), ("scale", np.nan)):
        array = getattr(base, name).copy()
        array[voice] = unknown
        setattr(base, name, array)


def due(frame: int) -> bool:
    """Whether centre and scale are renewed before this frame (0, 1, 2, ... of the attempt)."""
    return frame < SETTLED_FRAMES or frame % every(frame) == 0


def until_due(frame: int) -> int:
    """How many frames from this one on are judged by the same centre and scale."""
    return 1 if frame < SETTLED_FRAMES else every(frame) - frame % every(frame)


def every(frame: int) -> int:
    """Frames from one renewal to the next, after the first 128."""
    return REFRESH_FRAMES if frame < LONG_FRAMES else LONG_REFRESH_FRAMES


def refresh(base: Baseline, caution: float) -> None:
    """Renew centre and scale from what was accepted; the scale is multiplied by `caution`."""
    if is_full(base):
        base.centre, base.scale = measure(base.values, base.residuals, caution)
        return
    # Sorting puts NaN last, so quantiles are read off at positions that depend on how many values there are.
    upward = np.sort(base.residuals, axis=1)
    recent = np.sort(base.values[:, -CENTRE_FRAMES:], axis=1)
    rows = np.arange(len(recent))
    count = np.minimum(base.accepted, CENTRE_FRAMES).astype(np.int64)
    low, high = np.maximum((count - 1) // 2, 0), np.minimum(count // 2, CENTRE_FRAMES - 1)
    centre = 0.5 * recent[rows, low] + 0.5 * recent[rows, high]
    absolute = np.sort(np.abs(base.residuals), axis=1)
    known = RESIDUAL_FRAMES - np.isnan(absolute).sum(axis=1)
    middle = absolute[rows, np.maximum((known - 1) // 2, 0)]
    tail = upward[rows, np.maximum((TAIL_QUANTILE * (known - 1)).astype(np.int64), 0)]
    held = np.minimum(base.accepted, VALUE_FRAMES).astype(np.int64)
    ordered = np.sort(base.values, axis=1)
    top, bottom = ((1 - RANGE_TRIM) * (held - 1)).astype(np.int64), (RANGE_TRIM * (held - 1)).astype(np.int64)
    spread = ordered[rows, np.maximum(top, 0)] - ordered[rows, np.maximum(bottom, 0)]
    scale = np.maximum.reduce(
        [1.4826 * middle, tail / TAIL_SCALE, RANGE_FLOOR * spread, LEVEL_FLOOR * np.abs(centre)], initial=1e-300
    )
    judged = (base.accepted >= MINIMUM_FRAMES) & (known > 0)
    base.centre = np.where(judged, centre, np.nan)
    base.scale = np.where(judged, caution * scale, np.nan)


def is_full(base: Baseline) -> bool:
    """Whether nothing is missing in any window, so that `measure` may be asked."""
    return bool(base.accepted.min(initial=np.inf) >= VALUE_FRAMES) and not math.isnan(base.residuals.sum())


def measure(values: Floats64, residuals: Floats64, caution: float) -> tuple[Floats64, Floats64]:
    """Centre and scale from full windows: the quantiles stand at the same positions for all voices [..., V].

    Args:
        values: the last accepted values [..., V, 32].
        residuals: the last residuals [..., V, 128].
        caution: factor on the scale.
    """
    recent = values[..., -CENTRE_FRAMES:].copy()
    recent.sort()
    ordered = values.copy()
    ordered.sort()
    tail, middle = int(TAIL_QUANTILE * (RESIDUAL_FRAMES - 1)), (RESIDUAL_FRAMES - 1) // 2
    upward, absolute = residuals.copy(), np.abs(residuals)
    upward.partition(tail)
    absolute.partition(middle)
    centre = recent[..., CENTRE_FRAMES // 2]
    top, bottom = int((1 - RANGE_TRIM) * (VALUE_FRAMES - 1)), int(RANGE_TRIM * (VALUE_FRAMES - 1))
    scale = np.maximum(1.4826 * absolute[..., middle], upward[..., tail] / TAIL_SCALE)
    np.maximum(scale, RANGE_FLOOR * (ordered[..., top] - ordered[..., bottom]), out=scale)
    np.maximum(np.maximum(scale, LEVEL_FLOOR * np.abs(centre), out=scale), 1e-300, out=scale)
    return centre, caution * scale


def accept_one(base: Baseline, row: Floats64, z: Floats64) -> None:
    """Take one frame: absent and non-finite voices are passed over, high ones enter clipped, low ones move the level.

    Args:
        base: the baselines.
        row: the values [V].
        z: how many scales each lies above its centre, NaN where it is not judged [V].
    """
    base.values, base.residuals = base.values.copy(), base.residuals.copy()
    base.accepted, base.fall = base.accepted.copy(), base.fall.copy()
    for i in np.flatnonzero(np.isfinite(row)):
        value = float(row[i])
        before = np.sort(base.values[i, -STEP_FRAMES:])
        if not np.isnan(before[-1]):
            residual = value - before[STEP_FRAMES // 2]
            if base.scale[i] == base.scale[i]:
                residual = min(residual, CLIP_SCALES * base.scale[i])
            base.residuals[i, :-1] = base.residuals[i, 1:]
            base.residuals[i, -1] = residual
        base.fall[i] = base.fall[i] + 1 if z[i] < -FALL_SCALES else 0
        if base.fall[i] >= FALL_FRAMES:
            base.values[i, :-6] = np.nan
            base.values[i, -6:] = np.tile(base.values[i, -2:], 3)
            base.accepted[i], base.fall[i] = 6, 0
        base.values[i, :-1] = base.values[i, 1:]
        base.values[i, -1] = value
        base.accepted[i] += 1
