"""Batches in time order: each is drawn from a window that moves from the first day to the last but one.

Guarantees: the same seed gives the same batches; no example of the last day is among them. It is how a production
ranker sees its stream, day after day, and it is what the practitioners' sequential training means.
"""

import numpy as np
from numpy.typing import NDArray

from lossguard.demo.features import Examples

BATCH = 512
WINDOW_DAYS = 1.0


def indices(
    examples: Examples, steps: int, seed: int, *, batch: int = BATCH, window_days: float = WINDOW_DAYS
) -> NDArray[np.int64]:
    """The rows of each batch.

    Args:
        examples: in time order.
        steps: how many batches.
        seed: draws within the window.
        batch: examples per batch.
        window_days: how many days the window covers.

    Returns:
        int64 [steps, batch].
    """
    draw = np.random.default_rng([seed, 0xBA7C])
    training = examples.training
    window = max(1, round(training * window_days / max(examples.last_day, 1)))
    start = np.linspace(0, training - window, steps).astype(np.int64)
    return start[:, None] + draw.integers(0, window, (steps, batch))
