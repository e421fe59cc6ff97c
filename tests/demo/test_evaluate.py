"""Held-out metrics are exact, and a broken prediction does not hide."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lossguard.demo import evaluate
from lossguard.demo.features import TASKS

# Few different scores, so that ties are the rule.
SCORES = arrays(np.float64, st.integers(2, 40), elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0]))


@given(SCORES, st.randoms(use_true_random=False))
def test_auc_is_the_share_of_pairs_won_ties_half(scores: np.ndarray, random: object) -> None:
    labels = np.array([float(random.random() < 0.5) for _ in scores])  # type: ignore[attr-defined]
    up, down = scores[labels > 0], scores[labels == 0]
    found = evaluate.auc(labels, scores)
    if len(up) == 0 or len(down) == 0:
        assert math.isnan(found)
    else:
        pairs = (up[:, None] > down).sum() + 0.5 * (up[:, None] == down).sum()
        assert math.isclose(found, pairs / (len(up) * len(down)))


def test_a_constant_prediction_ranks_by_chance() -> None:
    assert evaluate.auc(np.array([0.0, 1.0, 1.0, 0.0]), np.full(4, 0.3)) == 0.5


def test_a_nan_among_the_predictions_makes_the_metric_nan() -> None:
    labels = {task: np.array([0.0, 1.0, 1.0]) for task in TASKS}
    broken = {task: np.array([[0.1], [math.nan], [0.3]]) for task in TASKS}
    found = evaluate.metrics(labels, broken)
    assert set(found) == {
        "auc/click", "auc/like", "auc/long_view", "auc/finish", "rmse/watch_ratio", "rmse/play_time"
    }  # fmt: skip
    assert all(math.isnan(value) for value in found.values())


def test_rmse_is_the_root_of_the_mean_square() -> None:
    labels = {task: np.array([0.0, 1.0]) for task in TASKS}
    predictions = {task: np.array([[3.0], [5.0]]) for task in TASKS}
    assert evaluate.metrics(labels, predictions)["rmse/play_time"] == math.sqrt((9 + 16) / 2)
