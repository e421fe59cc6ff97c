"""The AUC of a batch against all of its pairs, one by one; tasks measured together against each alone."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lossguard.keras.backends import backend
from lossguard.keras.ranking import won_pairs
from lossguard.keras.tasks import measure, said_tasks

INF = float("inf")


def pairwise(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    s, p, n = (np.asarray(one, "float64") for one in (scores, positive, negative))
    better = np.where(s[:, None] == s[None], 0.5, s[:, None] > s[None])
    return float(p @ better @ n), float(p.sum() * n.sum())


def cases() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(11)
    size = 300
    labels = (random.random(size) < 0.3).astype("float32")
    weights = (random.random(size) * (random.random(size) < 0.7)).astype("float32")
    spread = random.normal(size=size).astype("float32")
    scores = {
        "apart": spread,
        "rounded": np.round(spread, 1).astype("float32"),  # ties, and a negative zero among them
        "collapsed": (0.3 + spread * 1e-7).astype("float32"),
        "all equal": np.full(size, -2.5, "float32"),
        "both signs, 60 orders of magnitude": (spread * 10.0 ** random.integers(-30, 30, size)).astype("float32"),
        "infinite": np.where(spread > 1.0, INF, np.where(spread < -1.0, -INF, spread)).astype("float32"),
        "only two": np.where(spread > 0, 0.0, -0.0).astype("float32"),
    }
    made = {name: (score, labels, 1 - labels) for name, score in scores.items()}
    made["weighted"] = (np.round(spread, 1), weights * labels, weights * (1 - labels))
    made["soft labels"] = (np.round(spread, 1), weights * 0.25, weights * 0.75)
    return made


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "XLA"])
def test_won_pairs_are_those_counted_one_by_one(jit: bool) -> None:
    given = cases()
    tables = [np.stack([case[part] for case in given.values()]) for part in range(3)]
    # The length of a batch is not known when the step is traced.
    unknown = [tf.TensorSpec([len(given), None], "float32")] * 3
    run = tf.function(won_pairs, autograph=False, jit_compile=jit, input_signature=unknown)
    won, pairs = (one.numpy() for one in run(*tables))
    for row, (name, case) in enumerate(given.items()):
        if name == "infinite":
            # No order among infinities is trusted: such a batch is as broken as one with a NaN.
            assert np.isnan(won[row])
            continue
        exact, all_pairs = pairwise(*case)
        assert won[row] / pairs[row] == pytest.approx(exact / all_pairs, abs=1e-5), name
        assert pairs[row] == pytest.approx(all_pairs, rel=1e-5), name


def test_a_score_that_is_no_number_makes_its_own_task_unknown_and_no_other() -> None:
    scores = np.array([[1.0, np.nan, 0.0, 3.0], [1.0, 2.0, 0.0, 3.0], [-np.nan, 2.0, 0.0, 3.0]], "float32")
    positive = np.array([[1.0, 0.0, 0.0, 1.0]] * 3, "float32")
    won, _ = won_pairs(tf.constant(scores), tf.constant(positive), tf.constant(1 - positive))
    assert list(np.isnan(won.numpy())) == [True, False, True]
    assert won.numpy()[1] == 3.0


@pytest.mark.parametrize("known", [True, False], ids=["lengths known", "lengths unknown"])
def test_tasks_of_different_lengths_are_measured_as_each_alone(known: bool) -> None:
    """A loop of one's own may mask the rows of each task away."""
    random = np.random.default_rng(2)
    tasks = said_tasks({"play": "regression", "click": "binary", "like": "binary"}, ["like"])
    lengths = {"play": 5, "click": 40, "like": 23}
    labels = {name: (random.random(count) < 0.5).astype("float32") for name, count in lengths.items()}
    outputs = {name: random.random((count, 1)).astype("float32") for name, count in lengths.items()}
    weights = {"click": random.random(40).astype("float32"), "play": None, "like": None}

    def run(which: Any, labels: Any, outputs: Any) -> dict[str, Any]:
        return measure(which, labels, outputs, weights, lambda values: values)

    signature = [
        {name: tf.TensorSpec([count if known else None, *more], "float32") for name, count in lengths.items()}
        for more in ((), (1,))
    ]
    together = tf.function(lambda y, p: run(tasks, y, p), autograph=False, input_signature=signature)(labels, outputs)
    assert list(together) == [name for task in tasks for name in task.scalars]
    for task in tasks:
        alone = run((task,), labels, outputs)
        for name in task.scalars:
            assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-5), name
    mask = labels["like"] > 0
    won, pairs = pairwise(outputs["like"][:, 0], mask, ~mask)
    assert float(together["batch_auc/like"]) == pytest.approx(won / pairs, abs=1e-5)
    assert float(together["prediction_mean/like"]) == pytest.approx(
        float(np.mean(keras.ops.sigmoid(outputs["like"]))), rel=1e-5
    )


@pytest.mark.parametrize(
    ("rate", "twice", "quick"), [(0.3, 0, True), (0.3, 40, True), (0.99, 40, True), (0.01, 40, True), (0.5, -1, False)]
)
def test_a_batch_of_equal_weights_and_few_ties_is_told_by_ranks_and_any_other_by_runs(
    rate: float, twice: int, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties of two, as floats have them by chance; three equal scores (`twice` -1) are a matter of runs."""
    random = np.random.default_rng(5)
    scores = random.normal(size=3000).astype("float32")
    scores[:twice] = scores[twice : 2 * twice] if twice > 0 else scores[:twice]
    scores[:3] = scores[0] if twice < 0 else scores[:3]
    labels = (random.random(3000) < rate).astype("float32")
    taken, branch = [], backend.branch
    monkeypatch.setattr(backend, "branch", lambda wanted, *both: taken.append(bool(wanted)) or branch(wanted, *both))
    won, pairs = won_pairs(*(tf.constant(one[None]) for one in (scores, labels, 1 - labels)))
    assert taken == [quick]
    exact, all_pairs = pairwise(scores, labels, 1 - labels)
    assert float(won[0]) / float(pairs[0]) == pytest.approx(exact / all_pairs, abs=2e-7)
