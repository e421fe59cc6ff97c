"""The ways to train, against the whole training done in NumPy in float64: a linear model under Adagrad.

`fit` with 1 and with 16 steps per execution, with and without XLA; a loop of one's own; gradient accumulation.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_keras_oracle import expected

from conftest import MemorySink
from lossguard.keras import Watch
from lossguard.wire import stats

STEPS, BATCH, RATE = 20, 4, 0.1
random = np.random.default_rng(5)
X = random.normal(size=(STEPS * BATCH, 3)).astype("float32")
Y = (X @ [[1.0], [-2.0], [0.5]] + 3.0 * random.normal(size=(STEPS * BATCH, 1))).astype("float32")
KERNEL = np.array([[0.5], [0.0], [-0.25]], "float32")


def oracle(
    together: int = 1, x_given: np.ndarray = X, y_given: np.ndarray = Y, left_out: tuple[int, ...] = ()
) -> tuple[list[float], list[list[dict[str, float]]]]:
    """Loss and stats of kernel and bias by update; `together` batches make one update, those in `left_out` none."""
    weights = [KERNEL.astype("float64"), np.zeros(1)]
    sums = [np.full(weight.shape, 0.1) for weight in weights]
    losses, rows = [], []
    for first in range(0, STEPS * BATCH, BATCH * together):
        if first // BATCH in left_out:
            continue
        gradients = [np.zeros(weight.shape) for weight in weights]
        for start in range(first, first + BATCH * together, BATCH):
            x, y = (given[start : start + BATCH].astype("float64") for given in (x_given, y_given))
            error = x @ weights[0] + weights[1] - y
            loss = float(np.mean(error**2))
            gradients[0] += 2 * x.T @ error / BATCH / together
            gradients[1] += 2 * error.mean(0) / together
        losses.append(loss)
        row = []
        for place, g in enumerate(gradients):
            sums[place] += g**2
            w, u = weights[place], RATE * g / np.sqrt(sums[place] + 1e-7)
            row.append(expected(w, g, u))
            weights[place] = w - u
        rows.append(row)
    return losses, rows


def check(sink: MemorySink, together: int = 1) -> None:
    losses, rows = oracle(together)
    assert sink.steps == list(range(1, len(rows) + 1))
    np.testing.assert_allclose(sink.scalar("loss"), losses, rtol=1e-5)
    kernel, bias = sink.blocks[0].schema.layers
    for place, layer in enumerate((kernel, bias)):
        for stat in stats.STAT_NAMES:
            wanted = [row[place][stat] for row in rows]
            close = 5e-3 if stat == stats.RELATIVE_UPDATE_MAX else 1e-5
            np.testing.assert_allclose(sink.stat(layer, stat), wanted, rtol=close, atol=1e-9, err_msg=f"{layer} {stat}")


def linear() -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.layers[0].set_weights([KERNEL, np.zeros(1, "float32")])
    return model


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("executed_together", [1, 16])
def test_fit(watch: Callable[..., Watch], sinks: list[MemorySink], executed_together: int, jit: bool) -> None:
    model = linear()
    model.compile(keras.optimizers.Adagrad(RATE), "mse", jit_compile=jit, steps_per_execution=executed_together)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[watch(full_every=1)])
    check(sinks[0])


def test_gradient_accumulation(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    model = linear()
    model.compile(keras.optimizers.Adagrad(RATE, gradient_accumulation_steps=2), "mse")
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[watch(full_every=1)])
    check(sinks[0], together=2)


def test_a_loop_of_ones_own(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    model, optimizer, mine = linear(), keras.optimizers.Adagrad(RATE), watch(full_every=1)
    mine.wrap(optimizer)

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        mine.observe(loss)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    with mine:
        for start in range(0, STEPS * BATCH, BATCH):
            step(tf.constant(X[start : start + BATCH]), tf.constant(Y[start : start + BATCH]))
            mine.after_step()
    check(sinks[0])


def test_the_policy_mixed_float16(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    """Keras puts the LossScaleOptimizer around the optimizer by itself, also around one that was wrapped before."""
    x, y = X.copy(), 0.1 * Y  # so small that 2**15 times the gradients stay below float16's largest number
    x[5 * BATCH + 1, 2] = np.inf
    mine = watch(full_every=1)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = linear()
        model.compile(mine.wrap(keras.optimizers.Adagrad(RATE)), "mse")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[mine])
        assert model.layers[0].compute_dtype == "float16"
    finally:
        keras.config.set_dtype_policy("float32")
    (sink,) = sinks
    losses, rows = oracle(1, x, y, left_out=(5,))
    assert sink.steps == list(range(1, STEPS))
    assert sink.options["config"]["parameters_watched"] == 1.0
    assert list(sink.scalar("skipped_steps")) == [0.0] * 5 + [1.0] * (STEPS - 6)
    np.testing.assert_allclose(sink.scalar("loss"), losses, rtol=1e-2)
    for place, layer in enumerate(sink.blocks[0].schema.layers):
        for stat in stats.STAT_NAMES:
            wanted = [row[place][stat] for row in rows]
            # A gradient is a sum of numbers with 11 bits, of which some cancel each other out; and a weight passes 0.
            close = 0.1 if stat == stats.RELATIVE_UPDATE_MAX else 1e-2
            np.testing.assert_allclose(sink.stat(layer, stat), wanted, rtol=close, atol=2e-4, err_msg=f"{layer} {stat}")
