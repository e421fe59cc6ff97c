"""Held-out metrics of a ranker: AUC of binary tasks, root mean squared error of regressions.

Guarantees: exact (by ranks, ties half), not estimated from thresholds. A prediction that is NaN makes its metric NaN:
a broken model must not look like a weak one. A task with one class only has no AUC: NaN as well.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lossguard.demo.features import TASKS

Floats = NDArray[np.float32] | NDArray[np.float64]


def metrics(labels: Mapping[str, Floats], predictions: Mapping[str, Floats]) -> dict[str, float]:
    """`auc/<task>` and `rmse/<task>` of every task that is predicted.

    Args:
        labels: [N] per task.
        predictions: [N] or [N, 1] per task; for binary tasks any score that grows with the probability.
    """
    found = {}
    for task in predictions:
        kind = TASKS[task]
        predicted = np.asarray(predictions[task], np.float64).ravel()
        if kind == "binary":
            found[f"auc/{task}"] = auc(labels[task], predicted)
        else:
            found[f"rmse/{task}"] = float(np.sqrt(np.mean(np.square(predicted - labels[task]))))
    return found


def auc(labels: Floats, scores: Floats) -> float:
    """The chance that a positive example scores above a negative one.

    >>> auc(np.array([0.0, 0.0, 1.0]), np.array([0.1, 0.5, 0.5]))
    0.75
    """
    positive = int(np.sum(labels > 0))
    negative = len(labels) - positive
    if positive == 0 or negative == 0 or bool(np.any(np.isnan(scores))):
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    wins = rank[labels > 0].sum() - positive * (positive + 1) / 2
    return float(wins / (positive * negative))
