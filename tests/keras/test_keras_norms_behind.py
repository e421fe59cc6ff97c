"""`weight_norm_after`: norms behind an update, in the frames of steps whose weights are likely to be exported."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from conftest import MemorySink
from lossguard.keras import Watch
from lossguard.wire.stats import STAT_NAMES, WEIGHT_NORM, WEIGHT_NORM_AFTER

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X.sum(1, keepdims=True)
NEVER = 3600.0


def model(optimizer: Any = None, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, "relu", name="first"), keras.layers.Dense(1, name="second")]
    made = keras.Sequential([keras.Input((4,)), *layers])
    made.compile(optimizer or keras.optimizers.SGD(0.05), "mse", **options)
    return made


def fit(trained: keras.Model, *callbacks: Any, epochs: int = 2, batch: int = 8) -> None:
    trained.fit(X, Y, batch, epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


def behind(sink: MemorySink) -> dict[int, list[float]]:
    """By step, the norms that were measured behind it."""
    found = {}
    for block in sink.blocks:
        assert block.schema.stats == (*STAT_NAMES, WEIGHT_NORM_AFTER)
        present = block.stats_present[:, -1]
        assert np.isnan(block.stats[~present, :, -1]).all()
        found |= {int(step): block.stats[row, :, -1].tolist() for row, step in enumerate(block.steps) if present[row]}
    return found


def norms(trained: keras.Model) -> Any:
    values = [np.float64(weight.numpy()) for weight in trained.trainable_variables]
    return pytest.approx([np.linalg.norm(value) for value in values], rel=1e-5)


@pytest.mark.parametrize("per_execution", [1, 3, 8])
@pytest.mark.parametrize("fetch_steps", [5, 8, 64])
def test_the_last_frame_of_a_fit_says_the_norms_of_the_weights_that_it_leaves(
    watch: Callable[..., Watch], sinks: list[MemorySink], fetch_steps: int, per_execution: int
) -> None:
    trained = model(steps_per_execution=per_execution)
    fit(trained, watch(fetch_steps=fetch_steps, fetch_seconds=NEVER), epochs=1)
    (sink,) = sinks
    assert sink.steps == list(range(1, 9))
    assert behind(sink) == {8: norms(trained)}


def test_where_steps_are_slower_than_fetches_each_frame_has_them_at_once(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    trained = model()
    fit(trained, watch(full_every=1, fetch_seconds=1e-9), epochs=1)
    (sink,) = sinks
    assert sink.steps == list(range(1, 9))
    found, before = behind(sink), {}
    for block in sink.blocks:
        before[int(block.steps[0])] = block.stats[0, :, block.schema.stats.index(WEIGHT_NORM)].tolist()
    for step in range(1, 8):
        assert found[step] == pytest.approx(before[step + 1], rel=1e-6)
    assert found[8] == norms(trained)


def test_the_steps_of_a_checkpoint_and_of_a_long_epochs_end_have_them(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    trained, seen = model(), {}
    mine = watch(fetch_steps=8, fetch_seconds=NEVER)

    def save(batch: int, logs: Any = None) -> None:
        if batch == 2 and not seen:
            seen[3] = norms(trained)
            mine.checkpoint("somewhere")

    fit(trained, mine, keras.callbacks.LambdaCallback(on_train_batch_end=save), epochs=3)
    (sink,) = sinks
    assert sink.steps == list(range(1, 25))
    # The first epoch's end came five steps behind the checkpoint.
    assert set(behind(sink)) == {3, 16, 24}
    assert behind(sink)[3] == seen[3]


def test_they_are_the_trainings_though_a_callback_puts_other_weights_in_at_the_end(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    trained, left = model(), []
    worse = keras.callbacks.EarlyStopping("loss", patience=1, mode="max", restore_best_weights=True)
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: left.append(norms(trained)))
    fit(trained, worse, watch(fetch_seconds=NEVER), look, epochs=9)
    (sink,) = sinks
    assert (sink.steps[-1], len(left)) == (16, 2)
    assert behind(sink) == {16: left[-1]}
    assert left[-1] != [float(np.linalg.norm(weight)) for weight in trained.get_weights()]


def test_averages_of_weights_are_not_taken_for_them(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    fit(model(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5)), watch())
    (sink,) = sinks
    assert behind(sink) == {}


def test_with_two_optimizers_every_layer_has_them(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    trained = model()
    others = {".*second.*": keras.optimizers.Adam()}
    several = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.05), others))
    trained.compile(several, "mse")
    fit(trained, watch(fetch_seconds=NEVER))
    (sink,) = sinks
    assert [layer.split("/")[-2] for layer in sink.blocks[0].schema.layers] == ["second", "second", "first", "first"]
    found = behind(sink)[16]
    assert [*found[2:], *found[:2]] == norms(trained)


def test_replicas_have_the_norms_of_the_one_weight_that_they_share(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    devices = ["CPU:0", "CPU:1"]
    strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        trained = model(jit_compile=False)
    fit(trained, watch(fetch_seconds=NEVER), epochs=1)
    (sink,) = sinks
    assert behind(sink) == {8: norms(trained)}
