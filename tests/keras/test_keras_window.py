"""AUC and RMSE over a window: error at a low base rate, forgetting, and what is left out."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from click_and_play import LOSSES, examples
from conftest import MemorySink, two_tasks
from lossguard.keras import Watch
from lossguard.keras.window import Window, auc, binary_counts, logits_of, rmse


def exact(labels: np.ndarray, scores: np.ndarray) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    positives = labels.sum()
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def test_the_error_at_a_base_rate_of_two_in_a_thousand_is_below_5e_4() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(-7.0, 1.2, 400_000)
    labels = (random.random(400_000) < 1 / (1 + np.exp(-logits))).astype("float32")
    assert 0.001 < labels.mean() < 0.004
    truth = exact(labels, logits)
    ones = tf.ones(len(labels))
    given = tf.constant(logits, tf.float32)
    assert abs(float(auc(binary_counts(labels, given, ones))) - truth) < 5e-4
    assert abs(float(auc(binary_counts(labels, logits_of(tf.sigmoid(given)), ones))) - truth) < 5e-4
    keras_default = keras.metrics.AUC()
    keras_default.update_state(labels, 1 / (1 + np.exp(-logits)))
    assert abs(float(keras_default.result()) - truth) > 5e-3


def test_the_window_forgets_at_its_length() -> None:
    window = Window(1, steps=10)
    first = tf.ones([1, 2, 1000])
    window.advance([first[0]])
    for _ in range(10):
        state = window.advance([tf.zeros([2, 1000])])
    np.testing.assert_allclose(state, 0.9**10, rtol=1e-5)


def test_what_is_not_finite_is_left_out() -> None:
    labels, logits = tf.constant([1.0, 0.0, 1.0]), tf.constant([2.0, np.nan, np.inf])
    counts = binary_counts(labels, logits, tf.ones(3))
    assert float(tf.reduce_sum(counts)) == 1.0
    assert np.isnan(float(auc(counts)))
    assert np.isnan(float(rmse(tf.zeros([2, 1000]))))


def test_a_long_window_in_fit_gives_the_metrics_of_all_examples_so_far(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    model = two_tasks()
    model.compile(keras.optimizers.SGD(0.0), loss=LOSSES)
    inputs, labels = examples(64)
    model.fit(inputs, labels, batch_size=16, shuffle=False, verbose=0, callbacks=[watch(window_steps=1_000_000)])
    outputs = model.predict(inputs, verbose=0)
    (sink,) = sinks
    assert abs(sink.scalar("auc/click")[-1] - exact(labels["click"][:, 0], outputs["click"][:, 0])) < 5e-3
    error = outputs["play"] - labels["play"]
    np.testing.assert_allclose(sink.scalar("window_rmse/play")[-1], np.sqrt(np.mean(error**2)), rtol=1e-4)
    assert sink.present("auc/click").all()
