"""The learning rate of the demo: a warm-up, a plateau that works, and a ramp to a rate that is too large.

What somebody does who tunes a ranker for freshness and "just" raises the peak rate. Nothing is injected: the plateau
trains every seed well, and on the ramp plain Adagrad diverges by itself at every seed that was tried (decision 0601).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

PEAK = 1.0
PLATEAU = 0.05
_SHAPE = ((0, 0.0), (150, PLATEAU), (200, PLATEAU), (350, PEAK), (420, PEAK), (520, 0.1))
STEPS = _SHAPE[-1][0]


@keras.saving.register_keras_serializable("lossguard.demo")
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """Straight lines between the corners of the demo's schedule.

    Args:
        steps: of the training; the corners are stretched to it.
        peak: the rate that the ramp leads to; the end of the cool-down is a tenth of it.
    """

    def __init__(self, steps: int = STEPS, peak: float = PEAK) -> None:
        self.steps, self.peak = steps, peak

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """Step and rate of each corner."""
        scale = self.steps / STEPS
        return tuple((step * scale, rate * self.peak if step > 200 else rate) for step, rate in _SHAPE)

    def __call__(self, step: Any) -> Any:
        """The rate of the update after `step` updates."""
        step = ops.cast(step, "float32") + 1.0
        rate = ops.zeros_like(step)
        for (start, low), (end, high) in zip(self.corners, self.corners[1:], strict=False):
            inside = ops.clip((step - start) / (end - start), 0.0, 1.0)
            rate = rate + np.float32(high - low) * inside
        return rate

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to build the schedule again."""
        return {"steps": self.steps, "peak": self.peak}
