"""AUC and RMSE over a sliding window, inside the step.

Guarantees. The window is exponential: an example of k steps ago counts (1 - 1/window_steps)^k. AUC comes from buckets
spaced evenly in the logit, 1,000 between -12 and 12, ties within one counting half: where clicks are rare, buckets
spaced evenly in the probability (Keras's default) put nearly all examples into one. The state is one small variable
that no checkpoint holds: a restart begins an empty window. An example whose label or prediction is not finite is left
out; that step's own scalars show it.
"""

from typing import Any, Final

import numpy as np
from keras import ops

from lossguard.keras.backends import backend

BUCKETS: Final = 1000
LOGIT_BOUND: Final = 12.0


class Window:
    """The state of all tasks. Create it inside the strategy's scope.

    Args:
        tasks: their number.
        steps: length of the window.
    """

    def __init__(self, tasks: int, steps: int) -> None:
        self.keep = 1.0 - 1.0 / steps
        # Per task positives and negatives by bucket; a regression uses the first two cells: squared error and weight.
        self.state = backend.variable(np.zeros([tasks, 2, BUCKETS], np.float32), "lossguard_window")

    def advance(self, counts: list[Any]) -> Any:
        """Add a step's counts, one [2, BUCKETS] per task and summed over the replicas; returns the new state."""
        state = self.keep * backend.read(self.state) + ops.stack(counts)
        self.state.assign(state)
        return state


def binary_counts(labels: Any, logits: Any, weights: Any) -> Any:
    """[2, BUCKETS]: the weight of the positives and of the negatives in each bucket."""
    good = ops.isfinite(labels) & ops.isfinite(logits)
    labels, logits = ops.where(good, labels, 0.0), ops.where(good, logits, 0.0)
    weights = ops.where(good, weights, 0.0)
    share = (ops.clip(logits, -LOGIT_BOUND, LOGIT_BOUND) + LOGIT_BOUND) / (2 * LOGIT_BOUND)
    bucket = ops.minimum(ops.cast(share * BUCKETS, "int32"), BUCKETS - 1)
    columns = ops.stack([weights * labels, weights * (1.0 - labels)], 1)
    return ops.transpose(ops.segment_sum(columns, bucket, BUCKETS))


def regression_counts(labels: Any, values: Any, weights: Any) -> Any:
    """[2, BUCKETS]: squared error and weight in the first cells."""
    good = ops.isfinite(labels) & ops.isfinite(values)
    error = ops.where(good, ops.square(labels - values), 0.0)
    weights = ops.where(good, weights, 0.0)
    sums = ops.stack([ops.sum(weights * error), ops.sum(weights)])
    return ops.pad(sums[:, None], [[0, 0], [0, BUCKETS - 1]])


def auc(counts: Any) -> Any:
    """The area under the ROC curve; NaN without a pair."""
    positive, negative = counts[0], counts[1]
    below = ops.cumsum(negative) - 0.5 * negative
    return ops.sum(positive * below) / (ops.sum(positive) * ops.sum(negative))


def rmse(counts: Any) -> Any:
    """The root of the mean squared error; NaN without an example."""
    return ops.sqrt(counts[0, 0] / counts[1, 0])


def logits_of(probabilities: Any) -> Any:
    """Logits; 0 and 1 become the ends."""
    p = ops.clip(probabilities, 1e-7, 1.0 - 1e-7)
    return ops.log(p) - ops.log1p(-p)
