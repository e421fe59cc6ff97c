"""`dedupe_sparse`: training as with the dense gradient, and what bare Keras does without it."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from conftest import MemorySink
from lossguard.keras import Watch
from lossguard.keras.backends import backend
from lossguard.keras.merge import leave_rows, merge_rows

ROWS, STEPS = 6, 3
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "AdamW": lambda: keras.optimizers.AdamW(0.01),
    "Adamax": lambda: keras.optimizers.Adamax(0.01),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "clipnorm": lambda: keras.optimizers.Adagrad(0.1, clipnorm=0.5),
    "clipvalue": lambda: keras.optimizers.Adagrad(0.1, clipvalue=0.5),
    "global clipnorm": lambda: keras.optimizers.Adagrad(0.1, global_clipnorm=0.5),
}


def slices(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their gradients; row 1 is looked up twice, row 4 three times."""
    return np.array([1, 4, 1, 4, 3, 4], np.int32), np.random.default_rng(step).normal(size=(6, 2)).astype("float32")


def trained(make: Callable[[], Any], dtype: str, form: str) -> list[np.ndarray]:
    """Weights and slots after three steps with sparse, merged or dense gradients."""
    table = keras.Variable(np.random.default_rng(9).normal(size=(ROWS, 2)), dtype=dtype, name="table")
    optimizer = make()
    optimizer.build([table])
    if form == "merged":
        merge_rows(optimizer)
    for step in range(STEPS):
        indices, values = slices(step)
        gradient: Any = tf.IndexedSlices(tf.constant(values, dtype), tf.constant(indices), tf.constant([ROWS, 2]))
        if form == "dense":
            whole = np.zeros((ROWS, 2))
            np.add.at(whole, indices, values.astype("float64"))
            gradient = tf.constant(whole, dtype)
        optimizer.apply([gradient], [table])
    if form == "merged":
        leave_rows(optimizer)
        assert "_backend_apply_gradients" not in optimizer.__dict__
    return [variable.numpy() for variable in (table, *optimizer.variables)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_merged_rows_train_like_the_dense_gradient(name: str) -> None:
    merged, oracle = trained(OPTIMIZERS[name], "float32", "merged"), trained(OPTIMIZERS[name], "float64", "dense")
    for one, other in zip(merged, oracle, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_bare_keras_updates_a_row_that_is_looked_up_twice_twice() -> None:
    # Why the option exists, and why its numbers are others than Keras's: if this fails, Keras has learned to merge.
    def row(form: str) -> float:
        table = keras.Variable([[1.0]], name="table")
        optimizer = keras.optimizers.Adagrad(1.0)
        optimizer.build([table])
        if form == "merged":
            merge_rows(optimizer)
        optimizer.apply([tf.IndexedSlices(tf.ones([2, 1]), tf.constant([0, 0]), tf.constant([1, 1]))], [table])
        return float(table.numpy()[0, 0])

    assert row("bare") == pytest.approx(1 - 2 / np.sqrt(0.1 + 2), abs=1e-6)
    assert row("merged") == pytest.approx(1 - 2 / np.sqrt(0.1 + 4), abs=1e-6)


def test_a_sparse_gradient_with_nan_stops_bare_keras_and_not_the_merged_one() -> None:
    # Keras's division of a sparse gradient asks for a row outside of the table once the divisor has a NaN.
    def step(merge: bool) -> np.ndarray:
        table = keras.Variable(np.ones((ROWS, 2)), name="table")
        optimizer = keras.optimizers.Adagrad(0.1)
        optimizer.build([table])
        if merge:
            merge_rows(optimizer)
        values = np.full((6, 2), np.nan, "float32")
        gradient = tf.IndexedSlices(tf.constant(values), tf.constant(slices(0)[0]), tf.constant([ROWS, 2]))
        optimizer.apply([gradient], [table])
        return np.asarray(table.numpy())

    with pytest.raises(tf.errors.InvalidArgumentError):
        step(merge=False)
    assert list(np.isnan(step(merge=True)).all(1)) == [False, True, False, True, True, False]


def test_a_watch_merges_rows_says_so_and_gives_the_bare_optimizer_back(
    watch: Callable[..., Watch], sinks: list[MemorySink], caplog: pytest.LogCaptureFixture
) -> None:
    keras.utils.set_random_seed(1)
    mine = watch(dedupe_sparse=True, full_every=1)
    optimizer = keras.optimizers.Adagrad(1.0)
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), keras.layers.Embedding(3, 1, embeddings_initializer="ones", name="table")]
    )
    with caplog.at_level("INFO", "lossguard"):
        model.compile(mine.wrap(optimizer), lambda labels, outputs: outputs)
        model.fit(np.array([[1, 1]]), np.zeros((1, 2, 1)), verbose=0, callbacks=[mine])
    # The mean of two outputs: the gradient of row 1 is 1/2 + 1/2.
    np.testing.assert_allclose(model.get_weights()[0][:, 0], [1, 1 - 1 / np.sqrt(1.1), 1], atol=1e-6)
    (layer,) = sinks[0].blocks[0].schema.layers
    assert sinks[0].stat(layer, "gradient_norm")[0] == pytest.approx(1.0)
    assert sinks[0].options["config"]["dedupe_sparse"] is True
    assert "dedupe_sparse" in caplog.text
    assert "bare Keras" in caplog.text
    mine.detach()
    assert "_backend_apply_gradients" not in optimizer.__dict__
    with pytest.raises(ValueError, match="dedupe_sparse: must be True or False"):
        watch(dedupe_sparse="yes")


@pytest.mark.parametrize("form", ["eager", "graph", "XLA", "a branch under XLA"])
def test_rows_are_added_up_the_same_wherever_the_step_is_compiled(form: str) -> None:
    rows, values = slices(0)
    oracle = np.zeros((ROWS, 2), "float32")
    np.add.at(oracle, rows, values)
    weight = tf.zeros([ROWS, 2])

    def total(rows: Any, values: Any) -> Any:
        return backend.dense(tf.IndexedSlices(values, rows), weight, plain=True)

    def branching(rows: Any, values: Any) -> Any:
        return tf.cond(rows[0] > 0, lambda: total(rows, values), lambda: weight)

    how: dict[str, Callable[..., Any]] = {
        "eager": total,
        "graph": tf.function(total, autograph=False),
        "XLA": tf.function(total, autograph=False, jit_compile=True),
        "a branch under XLA": tf.function(branching, autograph=False, jit_compile=True),
    }
    np.testing.assert_allclose(how[form](tf.constant(rows), tf.constant(values)), oracle, rtol=1e-6)
