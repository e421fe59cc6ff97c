"""How often positives rank above negatives, for the AUC of a batch, inside the step.

Guarantees. Ties count half, entries count with their weights, and a task with a NaN score has NaN. Static shapes, and
one sort for all tasks of a step.

By a sort the count is exact. It is what costs most of a ranker's step, so where a branch costs nothing (TensorFlow on
CPU without XLA) pairs are counted in buckets first (`lossguard.keras.buckets`), which say how wrong they may be: as
long as that is at most `AUC_ERROR` for each task, nothing is sorted. Where many scores are equal, or a few are very far
from all others, it is more; and in a batch below `LEAST` entries a sort is the cheaper of the two.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from keras import ops

from lossguard.keras.backends import backend
from lossguard.keras.buckets import evenly, won_pairs_in_buckets

AUC_ERROR: Final = 5e-4
"""The most by which an AUC may be wrong, as the window's; of 4096 normal logits at most 1.2e-4, seen 2e-5."""
LEAST: Final = 512

_ALL_BUT_SIGN: Final = 0x7FFFFFFF


def won_pairs(scores: Any, positive: Any, negative: Any, logits: Sequence[bool]) -> tuple[Any, Any]:
    """Won pairs (ties half) and all pairs of a positive and a negative entry, both as products of their weights.

    Args:
        scores: float32 [tasks, entries]; the number of tasks is static.
        positive: as `scores`, what each entry weighs as a positive.
        negative: the same as a negative.
        logits: for each task whether its scores are logits; else they are probabilities.

    Returns:
        Won and all pairs, [tasks] each.
    """
    pairs = ops.sum(positive, 1) * ops.sum(negative, 1)
    if backend.branches_cheaply():
        won = _quickest(scores, positive, negative, logits, pairs)
    else:
        won = _sorted(scores, positive, negative)
    # A NaN score has no rank: it must not hide as one.
    return won + ops.sum(scores - scores, 1), pairs


def _quickest(scores: Any, positive: Any, negative: Any, logits: Sequence[bool], pairs: Any) -> Any:
    def counted() -> Any:
        places = scores if all(logits) else ops.where(np.array(logits)[:, None], scores, evenly(scores))
        return ops.stack(won_pairs_in_buckets(places, positive, negative))

    def uncounted() -> Any:
        return ops.stack([pairs, ops.full_like(pairs, float("inf"))])

    won, doubtful = ops.unstack(backend.branch(ops.greater_equal(ops.shape(scores)[1], LEAST), counted, uncounted), 2)
    enough = ops.all(0.5 * doubtful <= AUC_ERROR * pairs)
    return backend.branch(enough, lambda: won, lambda: _sorted(scores, positive, negative))


def _sorted(scores: Any, positive: Any, negative: Any) -> Any:
    """[tasks] won pairs, exactly."""
    tasks, entries = int(scores.shape[0]), ops.shape(scores)[1]
    # Whole numbers sort a sixth faster than floats, and NaN has a place among them.
    bits = backend.bits(ops.where(ops.equal(scores, 0.0), 0.0, -scores))
    keys, order = ops.top_k(ops.where(bits < 0, ops.bitwise_xor(bits, _ALL_BUT_SIGN), bits), entries)
    row = ops.expand_dims(ops.arange(tasks, dtype="int32"), 1) * entries
    # Runs of equal scores are numbered upwards, and each entry is told the number of its run.
    begins = ops.cast(ops.not_equal(keys[:, 1:], keys[:, :-1]), "int32")
    run = ops.cumsum(ops.concatenate([ops.zeros_like(row), begins], 1), 1) + row
    run_of = _scattered(run, ops.cast(order, "int32") + row)
    up, down = (ops.reshape(_scattered(weight, run_of), ops.shape(scores)) for weight in (positive, negative))
    below = ops.cumsum(down, 1) - 0.5 * down
    return ops.sum(up * below, 1)


def _scattered(values: Any, places: Any) -> Any:
    """Flat: the sum of the values whose place it is."""
    values, places = ops.reshape(values, (-1,)), ops.reshape(places, (-1,))
    return ops.segment_sum(values, places, num_segments=ops.shape(values)[0])
