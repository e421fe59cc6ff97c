"""The voices' baselines over the next frames, as long as all of these are ordinary.

Centre and scale are renewed every few frames from what was accepted until then. Where every frame is accepted and no
residual has to be clipped, all renewals of a stretch can be computed side by side, and the answer is the same to the
bit as that of one after the other; `sure` says how far that holds.
"""

from functools import lru_cache

import numpy as np

from lossguard.detect import baseline
from lossguard.detect.baseline import (
    CLIP_SCALES,
    FALL_SCALES,
    RESIDUAL_FRAMES,
    STEP_FRAMES,
    VALUE_FRAMES,
    Baseline,
)
from lossguard.wire.frame import Floats64, Steps

AHEAD_FRAMES = 128
"""Frames that are looked ahead over at a time: two chunks of the default size; more would only widen the arrays."""


def room(frame: int) -> int:
    """Over how many frames from this one on, at most, one may look: the rhythm of the renewals stays the same."""
    if frame < baseline.SETTLED_FRAMES:
        return 1
    return min(AHEAD_FRAMES, baseline.LONG_FRAMES - frame) if frame < baseline.LONG_FRAMES else AHEAD_FRAMES


class Ahead:
    """What the baselines would be.

    Attributes:
        z: how many scales each value lies above its centre [n, V].
        renewals: the frames before which centre and scale are renewed, counted from the stretch's first.
        sure: for how many frames this is right: up to the first that falls to a new level, and up to the first renewal
            that a clipped residual goes into.
    """

    def __init__(self, base: Baseline, frame: int, rows: Floats64, caution: float, stale: bool) -> None:
        """Look at frames.

        Args:
            base: the baselines now.
            frame: the first frame's number in the attempt.
            rows: the frames' values, all finite [n, V].
            caution: factor on the scale.
            stale: whether the first frame's own renewal is still to be made.
        """
        first, every = baseline.until_due(frame), baseline.every(frame)
        if (stale or first < len(rows)) and not baseline.is_full(base):
            rows = rows[:first]
            if stale:
                baseline.refresh(base, caution)
        elif stale:
            first = 0
        n = len(rows)
        columns = rows.T
        self._values = np.concatenate([base.values, columns], axis=1)
        plain = columns - _median_of_five(self._values[:, VALUE_FRAMES - STEP_FRAMES : -1], n)
        self._residuals = np.concatenate([base.residuals, plain], axis=1)
        self.renewals, self.sure = range(first, n, every), n
        if self.renewals:
            values, residuals, self._group = _places(first, every, n)
            # [V, G, ...]: a copy of each renewal's windows.
            centre, scale = baseline.measure(
                self._values.take(values, axis=1), self._residuals.take(residuals, axis=1), caution
            )
            self._centre = np.concatenate([base.centre[:, None], centre], axis=1)
            self._scale = np.concatenate([base.scale[:, None], scale], axis=1)
            centre, scale = self._centre.take(self._group, axis=1), self._scale.take(self._group, axis=1)
        else:
            self._group = np.zeros(n, np.int64)
            self._centre, self._scale = base.centre[:, None], base.scale[:, None]
            centre, scale = self._centre, self._scale
        height = (columns - centre) / scale
        limit = CLIP_SCALES * scale
        clipped = plain > limit
        if np.count_nonzero(clipped):
            np.minimum(plain, limit, out=self._residuals[:, RESIDUAL_FRAMES:])
            group = self._group[int(np.argmax(clipped.any(axis=0)))]
            self.sure = int(np.searchsorted(self._group, group, side="right"))
        if not height.min(initial=np.inf) > -FALL_SCALES:  # a voice that is not judged takes this way, too
            self.sure = min(self.sure, int(np.argmin((height > -FALL_SCALES).all(axis=0))))
        self.z: Floats64 = height.T

    def take(self, base: Baseline, n: int) -> None:
        """Accept the first n of the frames."""
        base.values = self._values[:, n : n + VALUE_FRAMES].copy()
        base.residuals = self._residuals[:, n : n + RESIDUAL_FRAMES].copy()
        base.accepted = base.accepted + n
        group = int(self._group[n - 1])
        base.centre, base.scale = self._centre[:, group].copy(), self._scale[:, group].copy()
        base.fall = np.zeros_like(base.fall)


@lru_cache(maxsize=512)
def _places(first: int, every: int, n: int) -> tuple[Steps, Steps, Steps]:
    """Where each renewal's windows lie [G, 32] [G, 128], and the number of renewals before each frame [n]."""
    at = np.arange(first, n, every)[:, None]
    group = np.searchsorted(at[:, 0], np.arange(n), side="right")
    return at + np.arange(VALUE_FRAMES), at + np.arange(RESIDUAL_FRAMES), group


def _median_of_five(history: Floats64, n: int) -> Floats64:
    """The median of each value's five predecessors; NaN where one of them is NaN [V, n]."""
    a, b, c, d, e = (history[:, i : i + n] for i in range(STEP_FRAMES))
    # The middle one of the third and of what is neither the least nor the largest of two pairs.
    low = np.maximum(np.minimum(a, b), np.minimum(d, e))
    high = np.minimum(np.maximum(a, b), np.maximum(d, e))
    return np.maximum(np.minimum(low, high), np.minimum(np.maximum(low, high), c))
