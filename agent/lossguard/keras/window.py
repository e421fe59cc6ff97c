"""AUC and RMSE over a sliding window, inside the step.

Guarantees. The window is exponential: an example of k steps ago counts (1 - 1/window_steps)^k. AUC comes from buckets
spaced evenly in the logit, 1,000 between -12 and 12, ties within one counting half: where clicks are rare, buckets
spaced evenly in the probability (Keras's default) put nearly all examples into one. The state is one small variable
that no checkpoint holds: a restart begins an empty window. An example whose label or prediction is not finite is left
out; that step's own scalars show it.
"""

from typing import Any, Final

import tensorflow as tf

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
        self.state = tf.Variable(
            tf.zeros([tasks, 2, BUCKETS]),
            trainable=False,
            name="lossguard_window",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def advance(self, counts: list[Any]) -> Any:
        """Add a step's counts, one [2, BUCKETS] per task and summed over the replicas; returns the new state."""
        state = self.keep * tf.convert_to_tensor(self.state) + tf.stack(counts)
        self.state.assign(state)
        return state


def binary_counts(labels: Any, logits: Any, weights: Any) -> Any:
    """[2, BUCKETS]: the weight of the positives and of the negatives in each bucket."""
    good = tf.math.is_finite(labels) & tf.math.is_finite(logits)
    labels, logits = tf.where(good, labels, 0.0), tf.where(good, logits, 0.0)
    weights = tf.where(good, weights, 0.0)
    share = (tf.clip_by_value(logits, -LOGIT_BOUND, LOGIT_BOUND) + LOGIT_BOUND) / (2 * LOGIT_BOUND)
    bucket = tf.minimum(tf.cast(share * BUCKETS, tf.int32), BUCKETS - 1)
    columns = tf.stack([weights * labels, weights * (1.0 - labels)], 1)
    return tf.transpose(tf.math.unsorted_segment_sum(columns, bucket, BUCKETS))


def regression_counts(labels: Any, values: Any, weights: Any) -> Any:
    """[2, BUCKETS]: squared error and weight in the first cells."""
    good = tf.math.is_finite(labels) & tf.math.is_finite(values)
    error = tf.where(good, tf.square(labels - values), 0.0)
    weights = tf.where(good, weights, 0.0)
    sums = tf.stack([tf.reduce_sum(weights * error), tf.reduce_sum(weights)])
    return tf.pad(sums[:, None], [[0, 0], [0, BUCKETS - 1]])


def auc(counts: Any) -> Any:
    """The area under the ROC curve; NaN without a pair."""
    positive, negative = counts[0], counts[1]
    below = tf.cumsum(negative) - 0.5 * negative
    return tf.reduce_sum(positive * below) / (tf.reduce_sum(positive) * tf.reduce_sum(negative))


def rmse(counts: Any) -> Any:
    """The root of the mean squared error; NaN without an example."""
    return tf.sqrt(counts[0, 0] / counts[1, 0])


def logits_of(probabilities: Any) -> Any:
    """Logits; 0 and 1 become the ends."""
    p = tf.clip_by_value(probabilities, 1e-7, 1.0 - 1e-7)
    return tf.math.log(p) - tf.math.log1p(-p)
