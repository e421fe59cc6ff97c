"""The AUC of a batch against all of its pairs, one by one, by a sort and by buckets; tasks together and each alone."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lossguard.keras.backends import backend
from lossguard.keras.buckets import evenly, won_pairs_in_buckets
from lossguard.keras.ranking import AUC_ERROR, won_pairs
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
def test_won_pairs_of_a_small_batch_or_within_XLA_are_those_counted_one_by_one(jit: bool) -> None:
    given = cases()
    tables = [np.stack([case[part] for case in given.values()]) for part in range(3)]
    # The length of a batch is not known when the step is traced.
    unknown = [tf.TensorSpec([len(given), None], "float32")] * 3
    logits = [True] * len(given)
    run = tf.function(lambda *t: won_pairs(*t, logits), autograph=False, jit_compile=jit, input_signature=unknown)
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
    won, _ = won_pairs(tf.constant(scores), tf.constant(positive), tf.constant(1 - positive), [True] * 3)
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


def exact_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    won, pairs = pairwise(scores, labels, 1 - labels)
    return won / pairs


def large(size: int = 3000) -> dict[str, tuple[np.ndarray, bool, bool]]:
    """Scores, whether they are logits, and whether buckets tell them apart well enough."""
    random = np.random.default_rng(5)
    spread = random.normal(-1.0, 1.2, size)
    chance = 1 / (1 + np.exp(-spread))
    far = np.where(np.arange(size) == 7, 1e6, spread)
    made = {
        "logits": (spread, True, True),
        "probabilities": (chance, False, True),
        "rare": (1 / (1 + np.exp(7 - spread)), False, True),
        "nearly certain": (1 - 1e-3 * random.random(size), False, True),
        "hardly trained": (0.5 + 1e-4 * spread, False, True),
        "heavy tails": (random.standard_t(3, size), True, True),
        "some pairs of equals": (np.where(np.arange(size) < 40, spread[40], spread), True, True),
        "one far away": (far, True, False),
        "two values": (np.sign(spread), True, False),
        "no probabilities": (spread, False, False),
        "a constant": (np.full(size, 0.3), False, False),
    }
    return {name: (scores.astype("float32"), *more) for name, (scores, *more) in made.items()}


@pytest.mark.parametrize("rate", [0.3, 0.99, 0.01])
@pytest.mark.parametrize(("scores", "logits", "quick"), large().values(), ids=large())
def test_the_auc_of_a_large_batch_is_that_of_all_pairs_within_what_is_promised(
    scores: np.ndarray, logits: bool, quick: bool, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = (np.random.default_rng(6).random(len(scores)) < rate).astype("float32")
    taken, branch = [], backend.branch
    monkeypatch.setattr(backend, "branch", lambda wanted, *both: taken.append(bool(wanted)) or branch(wanted, *both))
    won, pairs = won_pairs(*(tf.constant(one[None]) for one in (scores, labels, 1 - labels)), [logits])
    assert taken == [True, quick]
    error = abs(float(won[0]) / float(pairs[0]) - exact_auc(scores, labels))
    # Far below the promise where nothing is sorted; a sort is as exact as float32.
    assert error < (AUC_ERROR / 5 if quick else 2e-7)


@pytest.mark.parametrize(("scores", "logits", "quick"), large(600).values(), ids=large(600))
def test_half_the_pairs_that_share_a_bucket_are_the_most_that_the_count_is_wrong_by(
    scores: np.ndarray, logits: bool, quick: bool
) -> None:
    random = np.random.default_rng(8)
    weights = random.random(len(scores)).astype("float32")
    positive = weights * (random.random(len(scores)) < 0.3)
    places = tf.constant(scores[None]) if logits else evenly(tf.constant(scores[None]))
    won, doubtful = won_pairs_in_buckets(places, tf.constant(positive[None]), tf.constant((weights - positive)[None]))
    exact, pairs = pairwise(scores, positive, weights - positive)
    assert abs(float(won[0]) - exact) <= 0.5 * float(doubtful[0]) + 1e-6 * pairs


def test_one_bad_task_of_a_large_batch_makes_no_other_one_wrong() -> None:
    scores = np.stack([large()[name][0] for name in ("logits", "one far away", "logits", "logits")])
    scores[2, 11], scores[3, 12] = np.nan, np.inf
    labels = (np.random.default_rng(6).random(scores.shape) < 0.3).astype("float32")
    run = tf.function(lambda *tables: won_pairs(*tables, [True] * 4), autograph=False)
    won, pairs = run(*map(tf.constant, (scores, labels, 1 - labels)))
    found = won.numpy() / pairs.numpy()
    assert [bool(one) for one in np.isnan(found)] == [False, False, True, True]
    for row in (0, 1):
        assert found[row] == pytest.approx(exact_auc(scores[row], labels[row]), abs=2e-7)


def test_probabilities_stay_in_order_on_the_even_scale_and_what_is_none_goes_to_its_ends() -> None:
    random = np.random.default_rng(9)
    near = 1 / (1 + np.exp(-random.normal(0, 4, 20_000)))
    around = np.nextafter(np.float32(0.3), np.float32(1)) + np.arange(2000) * np.spacing(np.float32(0.3))
    ends = [-INF, -1e30, -2.0, -1e-9, 0.0, 1e-38, 1.0, np.nextafter(np.float32(1), 2), 1.5, 1e30, INF]
    given = np.sort(np.concatenate([near, around, ends]).astype("float32"))
    placed = evenly(tf.constant(given)).numpy()
    inside = np.isfinite(given)
    assert np.all(np.diff(placed[inside]) >= 0)
    assert np.abs(placed[inside]).max() == 20 * 2**23
    # Two neighbours of float32 are told apart where scores of a collapsed model lie.
    placed = evenly(tf.constant(np.sort(around.astype("float32")))).numpy()
    assert np.all(np.diff(placed) > 0)
