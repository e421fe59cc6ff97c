"""`fit` under XLA with what changes weights beside the update, against the whole training in NumPy in float64.

Moving averages, with and without overwriting the weights every third update, also under gradient accumulation;
constraints; a frozen layer; an optimizer for each layer. A linear model of two layers under Adagrad.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
from test_keras_oracle import expected

from conftest import MemorySink
from lossguard.keras import Watch
from lossguard.wire import stats

STEPS, BATCH, RATE, MOMENTUM = 12, 4, 0.1, 0.9
random = np.random.default_rng(5)
X = random.normal(size=(STEPS * BATCH, 3)).astype("float32")
Y = (X @ [[1.0], [-2.0], [0.5]] + 3.0 * random.normal(size=(STEPS * BATCH, 1))).astype("float32")
FIRST = [random.normal(size=shape).astype("float32") for shape in ((3, 2), (2,), (2, 1), (1,))]
LAYERS = ("hidden/kernel", "hidden/bias", "head/kernel", "head/bias")


@dataclass(frozen=True)
class Setting:
    """One training.

    Attributes:
        adagrad: arguments of the optimizer.
        together: batches that make an update.
        overwrite: updates between two overwrites of the weights by their averages; 0 for none, None without averages.
        constrained, frozen: layers by their place.
        by_sgd: layers that another optimizer updates.
    """

    adagrad: dict[str, Any] = field(default_factory=dict)
    together: int = 1
    overwrite: int | None = None
    constrained: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    by_sgd: tuple[int, ...] = ()


AVERAGED = {"use_ema": True, "ema_momentum": MOMENTUM}
OVERWRITTEN = {**AVERAGED, "ema_overwrite_frequency": 3}
SETTINGS = {
    "moving average": Setting(AVERAGED, overwrite=0),
    "overwritten": Setting(OVERWRITTEN, overwrite=3),
    "accumulated and overwritten": Setting({**OVERWRITTEN, "gradient_accumulation_steps": 2}, together=2, overwrite=3),
    "constraint": Setting(constrained=(0,)),
    "frozen": Setting(frozen=(0, 1)),
    "several": Setting(by_sgd=(2, 3)),
}


def oracle(setting: Setting) -> tuple[list[float], list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]], list[Any]]:
    """Loss and (w, g, u) of each layer by update, and the weights at the end of `fit`."""
    weights = [one.astype("float64") for one in FIRST]
    sums = [np.full(one.shape, 0.1) for one in weights]
    averages = [np.zeros(one.shape) for one in weights]
    waiting = [np.zeros(one.shape) for one in weights]
    losses, rows = [], []
    for batch in range(STEPS):
        x, y = (given[batch * BATCH :][:BATCH].astype("float64") for given in (X, Y))
        hidden = x @ weights[0] + weights[1]
        error = hidden @ weights[2] + weights[3] - y
        back = 2 * error / BATCH
        through = back @ weights[2].T
        gradients = [x.T @ through, through.sum(0), hidden.T @ back, back.sum(0)]
        waiting = [one + more for one, more in zip(waiting, gradients, strict=True)]
        updates = batch // setting.together
        if (batch + 1) % setting.together == 0:
            losses.append(float(np.mean(error**2)))
            row = []
            for place, total in enumerate(waiting):
                g = total / setting.together
                sums[place] += g**2
                u = 0.05 * g if place in setting.by_sgd else RATE * g / np.sqrt(sums[place] + 1e-7)
                row.append((weights[place], g, u))
                if place not in setting.frozen:
                    weights[place] = weights[place] - u
            rows.append([one for place, one in enumerate(row) if place not in setting.frozen])
            waiting = [np.zeros(one.shape) for one in weights]
        if setting.overwrite is not None:
            keep = MOMENTUM if updates else 0.0
            averages = [keep * a + (1 - keep) * w for a, w in zip(averages, weights, strict=True)]
            if setting.overwrite and (updates + 1) % setting.overwrite == 0:
                weights = list(averages)
        for place in setting.constrained:
            weights[place] = np.maximum(weights[place], 0.0)
    return losses, rows, weights if setting.overwrite is None else averages


def fitted(setting: Setting, mine: Watch | None) -> keras.Model:
    constraint = keras.constraints.NonNeg() if setting.constrained else None
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, name="hidden", kernel_constraint=constraint),
            keras.layers.Dense(1, name="head"),
        ]
    )
    model.set_weights(FIRST)
    model.layers[0].trainable = not setting.frozen
    optimizer: Any = keras.optimizers.Adagrad(RATE, **setting.adagrad)
    if setting.by_sgd:
        heads = {".*head.*": keras.optimizers.SGD(0.05)}
        optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(optimizer, heads))
    model.compile(optimizer if mine is None else mine.wrap(optimizer), "mse", jit_compile=True)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[] if mine is None else [mine])
    return model


@pytest.mark.parametrize("name", SETTINGS)
def test_stats_equal_the_oracle_and_watching_changes_no_bit(
    watch: Callable[..., Watch], sinks: list[MemorySink], name: str
) -> None:
    setting = SETTINGS[name]
    watched, bare = fitted(setting, watch(full_every=1)), fitted(setting, None)
    losses, rows, weights = oracle(setting)
    (sink,) = sinks
    assert sink.steps == list(range(1, len(rows) + 1))
    np.testing.assert_allclose(sink.scalar("loss"), losses, rtol=1e-5)
    layers = sink.blocks[0].schema.layers
    trained = [layer for place, layer in enumerate(LAYERS) if place not in setting.frozen]
    assert sorted(layer.split("/", 1)[1] for layer in layers) == sorted(trained)
    for layer in layers:
        place = trained.index(layer.split("/", 1)[1])
        wanted = [expected(*row[place]) for row in rows]
        for stat in stats.STAT_NAMES:
            close = 5e-3 if stat == stats.RELATIVE_UPDATE_MAX else 1e-5
            np.testing.assert_allclose(
                sink.stat(layer, stat), [one[stat] for one in wanted], close, 1e-9, err_msg=f"{layer} {stat}"
            )
    for found, wanted_weight in zip(watched.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, wanted_weight, rtol=1e-4, atol=1e-6)
    pairs = zip(
        [*watched.weights, *watched.optimizer.variables], [*bare.weights, *bare.optimizer.variables], strict=True
    )
    assert [one.path for one, other in pairs if not np.array_equal(one.numpy(), other.numpy())] == []
