"""Won pairs of a batch without a sort: scores fall into buckets, and only pairs within one are not told apart.

Guarantees. Static shapes and no branch. Pairs of different buckets are counted exactly, those of one count half, and
how many these are is said: half of them is the most by which the count may be wrong, whatever the scores are. The
buckets are spaced evenly over the batch's own scores, as far as four standard deviations around their mean, so a model
whose outputs are all close together is told as exactly as one whose outputs are not.

Measured on CPU with four tasks of 4096 scores: 0.10 ms, where a sort and what follows it take 0.81 (decision 0217).
"""

from typing import Any, Final

import numpy as np
from keras import ops

from lossguard.keras.backends import backend

FINE: Final = 32
BUCKETS: Final = 256 * FINE
REACH: Final = 4.0
"""Standard deviations, beyond which scores share the outermost buckets: one far away must not crowd the rest."""
BOUND: Final = 2.0**20
"""Odds beyond it, or below its inverse, are as good as equal here."""

_ONE: Final = 0x3F800000
_BELOW: Final = np.triu(np.ones((FINE, FINE), np.float32), 1) + 0.5 * np.eye(FINE, dtype=np.float32)


def evenly(probabilities: Any) -> Any:
    """Probabilities on a scale near their logit's, in the same order; what is outside of 0 to 1 is at the ends.

    The bits of the odds, read as a whole number, are a logarithm with straight lines between the powers of two. Each
    step of it is correctly rounded, so that no two change places, as a logarithm's own error may let them.
    """
    odds = ops.clip(probabilities / ops.maximum(1.0 - probabilities, 1.0 / BOUND), 1.0 / BOUND, BOUND)
    return ops.cast(backend.bits(odds) - _ONE, "float32")


def won_pairs_in_buckets(places: Any, positive: Any, negative: Any) -> tuple[Any, Any]:
    """Won pairs, those of one bucket counted half, and how many these are.

    Args:
        places: float32 [tasks, entries], in the scores' order; what is not finite may land anywhere.
        positive: as `places`, at least 0, what each entry weighs as a positive.
        negative: the same as a negative.

    Returns:
        Both [tasks], as sums of products of weights.
    """
    tasks = int(places.shape[0])
    mean, reach = ops.mean(places, 1, keepdims=True), REACH * ops.std(places, 1, keepdims=True)
    low = ops.maximum(ops.min(places, 1, keepdims=True), mean - reach)
    high = ops.minimum(ops.max(places, 1, keepdims=True), mean + reach)
    share = ops.clip((places - low) * (BUCKETS / (high - low)), 0.0, BUCKETS - 1.0)
    # Once more, as whole numbers: NaN becomes any.
    bucket = ops.clip(ops.cast(share, "int32"), 0, BUCKETS - 1)
    bucket = ops.reshape(bucket + np.arange(0, tasks * BUCKETS, BUCKETS, dtype="int32")[:, None], (-1,))
    up, down = (
        ops.reshape(ops.segment_sum(ops.reshape(weight, (-1,)), bucket, tasks * BUCKETS), (tasks, -1, FINE))
        for weight in (positive, negative)
    )
    # A sum over all buckets so far takes 4 ns a bucket, a product with a small matrix a tenth.
    below = ops.reshape(ops.matmul(ops.reshape(down, (-1, FINE)), _BELOW), up.shape)
    ups, downs = ops.sum(up, 2), ops.sum(down, 2)
    won = ops.sum(up * below, (1, 2)) + ops.sum(ups * (ops.cumsum(downs, 1) - downs), 1)
    return won, ops.sum(up * down, (1, 2))
