"""Every stat of every layer against a float64 NumPy oracle: all built-in optimizers, with and without XLA.

The oracle's w, g and u are what Keras's own optimizer does in float64 and op by op, watched at its `update_step` by
other means than ours (the difference of the weights); its stats are NumPy's.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_keras_exactness import OPTIMIZERS

from lossguard.keras.optimizer import Hook, leaves
from lossguard.keras.ring import frames_of
from lossguard.wire import stats

STEPS = 4
MATRIX, VECTOR = (4, 3), (3,)
Seen = dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]


def several() -> Any:
    others = {"vector": keras.optimizers.Adam(0.01)}
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.Adagrad(0.1), others))


SETTINGS: dict[str, Callable[[], Any]] = {
    **OPTIMIZERS,
    "weight decay": lambda: keras.optimizers.Adagrad(0.1, weight_decay=0.2),
    "clipvalue": lambda: keras.optimizers.Adam(0.01, clipvalue=0.5),
    "global clipnorm": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.5),
    "constraint": lambda: keras.optimizers.SGD(0.5),
    "several": several,
}
# Under XLA, which compiles for long: what differs from others outside of the step, or needs two layers.
LEFT_OUT = {"schedule", "weight decay", "clipvalue", "constraint", "several"}
# Writes w itself, so that u is the difference of two float32 numbers.
TOLERANCE = {"ScheduleFreeAdamW": 1e-4}


def layers(name: str, shapes: list[tuple[int, ...]], dtype: str) -> list[keras.Variable]:
    random = np.random.default_rng(1)
    made = []
    for shape in shapes:
        values = random.normal(size=shape).astype("float32")
        values[0] = 0.0 if len(shape) == 1 else values[0]
        variable = keras.Variable(values, dtype=dtype, name="matrix" if len(shape) == 2 else "vector")
        variable.constraint = keras.constraints.NonNeg() if name == "constraint" else None
        made.append(variable)
    return made


def gradients(step: int, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    random = np.random.default_rng(100 + step)
    made = [random.normal(size=shape).astype("float32") for shape in shapes]
    made[0][0] = 0.0
    return made


def oracle(name: str, shapes: list[tuple[int, ...]]) -> Seen:
    """What each update sees and does, by the layer's path."""
    seen: Seen = {}
    keras.config.set_floatx("float64")
    try:
        optimizer, variables = SETTINGS[name](), layers(name, shapes, "float64")
        optimizer.build(variables)
        for leaf in leaves(optimizer):
            _look_on(leaf, variables, seen)
        for step in range(STEPS):
            optimizer.apply([tf.constant(one, "float64") for one in gradients(step, shapes)], variables)
    finally:
        keras.config.set_floatx("float32")
    return seen


def _look_on(optimizer: Any, variables: list[keras.Variable], seen: Seen) -> None:
    bare, paths = optimizer.update_step, {id(variable.value): variable.path for variable in variables}

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        before = np.array(variable.numpy())
        bare(gradient, variable, learning_rate)
        update = before - variable.numpy()
        seen.setdefault(paths[id(variable)], []).append((before, np.array(gradient.numpy()), update))

    optimizer.update_step = update_step


def expected(w: np.ndarray, g: np.ndarray, u: np.ndarray) -> dict[str, float]:
    nonzero = w != 0
    return {
        stats.WEIGHT_NORM: np.linalg.norm(w),
        stats.GRADIENT_NORM: np.linalg.norm(g),
        stats.UPDATE_NORM: np.linalg.norm(u),
        stats.RELATIVE_UPDATE_MAX: np.max(np.abs(u)[nonzero] / np.abs(w)[nonzero], initial=0.0),
        stats.CLIPPY_RATIO: np.max(np.abs(u) / (0.5 * np.abs(w) + 0.01)),
        stats.CLIPPING_FACTOR: 1.0,
        stats.GRADIENT_ZERO_FRACTION: np.mean(g == 0),
        stats.NONFINITE_COUNT: 0.0,
        stats.GRADIENT_MAX: np.abs(g).max(),
    }


def hooked(optimizer: Any) -> list[Hook]:
    return [Hook(leaf, (), lambda eta: {"learning_rate": eta}, rows=16, full_every=1) for leaf in leaves(optimizer)]


def check(name: str, hooks: list[Hook], seen: Seen) -> None:
    found = []
    for hook in hooks:
        assert hook.ring is not None
        frames = frames_of(hook.ring.layout, 1, np.asarray(hook.ring.snapshot(1, hook.step)), np.zeros(hook.step))
        assert frames.schema.stats == (*stats.STAT_NAMES, stats.WEIGHT_NORM_AFTER)
        for row, layer in enumerate(frames.schema.layers):
            found.append(layer)
            assert len(frames) == len(seen[layer]), (name, layer)
            for step, wanted in enumerate(seen[layer]):
                for column, (stat, value) in enumerate(expected(*wanted).items()):
                    assert stats.STAT_NAMES[column] == stat
                    close = 5e-3 if stat == stats.RELATIVE_UPDATE_MAX else TOLERANCE.get(name, 1e-5)
                    measured = float(frames.stats[step, row, column])
                    assert measured == pytest.approx(value, rel=close, abs=1e-12), (name, step, layer, stat)
    assert sorted(found) == sorted(seen)


@pytest.mark.parametrize(("jit", "shapes"), [(False, [MATRIX, VECTOR]), (True, [MATRIX])], ids=["graph", "XLA"])
def test_every_stat_equals_the_float64_oracle(jit: bool, shapes: list[tuple[int, ...]]) -> None:
    # All in one function: compiling is what this test's time is spent on.
    watched = {}
    for name, make in SETTINGS.items():
        if jit and name in LEFT_OUT:
            continue
        optimizer, variables = make(), layers(name, shapes, "float32")
        watched[name] = optimizer, variables, hooked(optimizer)
        optimizer.build(variables)

    def step(given: list[Any]) -> None:
        for optimizer, variables, _ in watched.values():
            optimizer.apply(given, variables)

    run = tf.function(step, jit_compile=jit, autograph=False)
    for number in range(STEPS):
        run([tf.constant(one) for one in gradients(number, shapes)])
    for name, (_, _, hooks) in watched.items():
        check(name, hooks, oracle(name, shapes))


def test_with_loss_scaling_the_stats_are_those_of_the_true_gradient_and_a_skipped_step_has_no_row() -> None:
    shapes = [MATRIX, VECTOR]
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adagrad(0.1), initial_scale=8.0)
    variables, hooks = layers("Adagrad", shapes, "float32"), hooked(optimizer)
    optimizer.build(variables)
    run = tf.function(lambda given: optimizer.apply(given, variables), autograph=False)
    for number in range(STEPS):
        scale = float(optimizer.dynamic_scale)
        run([tf.constant(one * scale) for one in gradients(number, shapes)])
        if number == 1:
            run([tf.fill(shape, np.inf) for shape in shapes])
    assert float(optimizer.dynamic_scale) == 4.0
    check("Adagrad", hooks, oracle("Adagrad", shapes))
