"""Whole trainings in the paper's form, w - eta * sigma * r, by hand in float64, with the sigmas of its section 4.3.1.

The gradients spike, one layer starts at zero and an embedding, whose gradient is sparse, is left alone or, on request,
treated. What the optimizer accumulates is the gradient as it came, whatever sigma is.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lossguard.keras import LAMB, AdaptiveGradientClipping, Clippy, GradientClipping
from lossguard.keras.optimizer import Hook
from lossguard.keras.ring import frames_of
from lossguard.trace.factors import Method, would_be
from lossguard.wire.frame import Frames

ETA, STEPS = 0.2, 6
SHAPES = {"dense/kernel": (4, 3), "dense/bias": (3,), "embedding/embeddings": (6, 2)}
ROWS = [4, 1, 3]

Array = np.ndarray
Sigma = Callable[[Array, Array, Array], Any]
"""From w, g and r."""


def norm(values: Array) -> float:
    return float(np.sqrt(np.sum(values.astype("float64") ** 2)))


def clippy(w: Array, g: Array, r: Array) -> float:
    size = np.abs(ETA * r)
    allowed = 0.5 * np.abs(w) + 1e-2
    return min([1.0, *(allowed[size > 0] / size[size > 0])])


def clipping(w: Array, g: Array, r: Array) -> float:
    return min(1.0, 0.1 / norm(g)) if norm(g) else 1.0


def adaptive(w: Array, g: Array, r: Array) -> float:
    return min(1.0, 1e-3 * max(norm(w), 1e-3) / norm(g)) if norm(g) else 1.0


def by_unit(w: Array, g: Array, r: Array) -> Any:
    if w.ndim == 1:
        return adaptive(w, g, r)
    return np.array([adaptive(w[:, unit], g[:, unit], r[:, unit]) for unit in range(w.shape[1])])


def lamb(w: Array, g: Array, r: Array) -> float:
    return 1e-3 * (norm(w) / norm(r) if norm(w) and norm(r) else 1.0)


METHODS: dict[str, tuple[Callable[..., Any], Sigma]] = {
    "Clippy": (Clippy, clippy),
    "GC": (GradientClipping, clipping),
    "AGC": (AdaptiveGradientClipping, adaptive),
    "AGC by unit": (lambda **given: AdaptiveGradientClipping(norms="unit", **given), by_unit),
    "LAMB": (LAMB, lamb),
}


def start() -> dict[str, Array]:
    random = np.random.default_rng(3)
    made = {name: random.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}
    made["dense/bias"][:] = 0.0
    return made


def stream() -> list[dict[str, Array]]:
    random = np.random.default_rng(4)
    steps = []
    for step in range(STEPS):
        scale = 300.0 if step == 3 else 0.02
        drawn = {name: (scale * random.normal(size=shape)).astype("float32") for name, shape in SHAPES.items()}
        untouched = [row for row in range(6) if row not in ROWS]
        drawn["embedding/embeddings"][untouched] = 0.0
        steps.append(drawn)
    return steps


def by_hand(sigma: Sigma, rule: str, *, embedding: bool) -> tuple[dict[str, Array], Array]:
    weights = {name: value.astype("float64") for name, value in start().items()}
    sums = {name: np.full(shape, 0.1 if rule == "Adagrad" else 0.0) for name, shape in SHAPES.items()}
    means = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    factors = []
    for step, gradients in enumerate(stream(), 1):
        factors.append([1.0] * len(SHAPES))
        for place, name in enumerate(SHAPES):
            g = gradients[name].astype("float64")
            if rule == "Adagrad":
                sums[name] += g**2
                r = g / np.sqrt(sums[name] + 1e-7)
            else:
                means[name] += 0.1 * (g - means[name])
                sums[name] += 0.001 * (g**2 - sums[name])
                r = np.sqrt(1 - 0.999**step) / (1 - 0.9**step) * means[name] / (np.sqrt(sums[name]) + 1e-7)
            if embedding or not name.startswith("embedding"):
                factor = sigma(weights[name], g, r)
                factors[-1][place] = float(np.min(factor))
                r = factor * r
            weights[name] -= ETA * r
    return weights, np.array(factors)


def trained(optimizer: Any, treatment: Any, *, jit: bool = False, scale: float = 1.0) -> tuple[dict[str, Array], Array]:
    weights, frames = run(optimizer, treatment, jit=jit, scale=scale)
    return weights, frames.stats[:, :, frames.schema.stats.index("clipping_factor")]


def run(optimizer: Any, treatment: Any, *, jit: bool = False, scale: float = 1.0) -> tuple[dict[str, Array], Frames]:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    hook = Hook(inner, (treatment,), lambda eta: {"learning_rate": eta}, rows=16, full_every=1)
    hook.cover(optimizer)
    variables = []
    for path, value in start().items():
        scope, name = path.split("/")
        with keras.name_scope(scope):
            variables.append(keras.Variable(value, name=name))
    optimizer.build(variables)

    @tf.function(jit_compile=jit)
    def step(kernel: Any, bias: Any, rows: Any) -> None:
        slices = tf.IndexedSlices(scale * rows, tf.constant(ROWS), tf.constant(SHAPES["embedding/embeddings"]))
        optimizer.apply([scale * kernel, scale * bias, slices], variables)

    for gradients in stream():
        kernel, bias, table = gradients.values()
        step(tf.constant(kernel), tf.constant(bias), tf.constant(table[ROWS]))
    assert hook.ring is not None
    frames = frames_of(hook.ring.layout, 1, hook.ring.snapshot(1, STEPS).numpy(), np.zeros(STEPS))
    return {name: one.numpy() for name, one in zip(SHAPES, variables, strict=True)}, frames


def the_same(found: tuple[dict[str, Array], Array], expected: tuple[dict[str, Array], Array]) -> None:
    np.testing.assert_allclose(found[1], expected[1], rtol=2e-5)
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=2e-5, atol=1e-5, err_msg=name)
    assert expected[1].min() < 0.3, "nothing was treated"


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_treated_training_is_the_papers_with_its_thresholds_and_without_embeddings(name: str, jit: bool) -> None:
    make, sigma = METHODS[name]
    the_same(trained(keras.optimizers.Adagrad(ETA), make(), jit=jit), by_hand(sigma, "Adagrad", embedding=False))


@pytest.mark.parametrize("name", METHODS)
def test_a_sparse_gradient_is_treated_as_the_dense_one_where_embeddings_are_not_excluded(name: str) -> None:
    make, sigma = METHODS[name]
    found = trained(keras.optimizers.Adagrad(ETA), make(exclude=()))
    the_same(found, by_hand(sigma, "Adagrad", embedding=True))


@pytest.mark.parametrize("name", METHODS)
def test_around_adam_under_loss_scaling_it_is_the_same_form(name: str) -> None:
    make, sigma = METHODS[name]
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(ETA), initial_scale=8.0)
    the_same(trained(scaled, make(), scale=8.0), by_hand(sigma, "Adam", embedding=False))


DERIVED: dict[str, Method] = {"Clippy": "clippy", "GC": "gc", "AGC": "agc", "LAMB": "lamb"}


@pytest.mark.parametrize("name", DERIVED)
def test_the_factors_of_the_others_follow_from_the_frames_of_any_run(name: str) -> None:
    # The training is treated by yet another setting: what each method says of its weights is what its frames must say.
    _, sigma = METHODS[name]
    _, frames = run(keras.optimizers.Adagrad(ETA), GradientClipping(0.5, exclude=()))
    weights = {key: value.astype("float64") for key, value in start().items()}
    sums = {key: np.full(shape, 0.1) for key, shape in SHAPES.items()}
    expected = np.ones((STEPS, len(SHAPES)))
    for step, gradients in enumerate(stream()):
        for place, (key, gradient) in enumerate(gradients.items()):
            g = gradient.astype("float64")
            sums[key] += g**2
            r = g / np.sqrt(sums[key] + 1e-7)
            expected[step, place] = sigma(weights[key], g, r)
            weights[key] -= ETA * min(1.0, 0.5 / norm(g)) * r
    found = would_be(frames, DERIVED[name], epsilon=1e-3 if name == "AGC" else 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert expected.min() < 0.3
