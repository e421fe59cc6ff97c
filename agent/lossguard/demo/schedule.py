"""The learning rate of the demo: a warm-up, a plateau that works, and a warm restart to a rate that is too large.

What somebody does who tunes a ranker for freshness and restarts the schedule with "just" a higher peak. Nothing is
injected: the plateau trains every seed well, and on the ramp plain Adagrad diverges by itself at every seed that was
tried (decision 0601).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from lossguard.demo import LEARNING_RATE, STEPS

PLATEAU = 0.05
WARM_UP_END, RAMP_START, RAMP_END, COOL_DOWN_END = 150, 200, 225, 250
"""Where the corners lie in a training of `STEPS` updates."""
DECAYED = 0.2
"""The share of the plateau's rate that is left at the end: an export is taken from a training that has settled."""


@keras.saving.register_keras_serializable("lossguard.demo")
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """Straight lines between the corners of the demo's schedule.

    Args:
        steps: of the training; the corners are stretched to it.
        peak: the rate that the ramp leads to.
    """

    def __init__(self, steps: int = STEPS, peak: float = LEARNING_RATE) -> None:
        self.steps, self.peak = steps, peak

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """Step and rate of each corner."""
        scale = self.steps / STEPS
        return (
            (0.0, 0.0),
            (WARM_UP_END * scale, PLATEAU),
            (RAMP_START * scale, PLATEAU),
            (RAMP_END * scale, self.peak),
            (COOL_DOWN_END * scale, PLATEAU),
            (float(self.steps), DECAYED * PLATEAU),
        )

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
