"""Beyond plain `fit`: replicas, mixed precision, several optimizers, accumulation, loops of one's own."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from click_and_play import LOSSES, examples
from conftest import MemorySink, two_tasks
from lossguard.keras import Clippy, SkipNonFinite, Watch


def fit(watch: Watch | None, optimizer: Any, count: int = 24, inputs: Any = None, **options: Any) -> keras.Model:
    model = two_tasks()
    model.compile(optimizer, loss=LOSSES, **options)
    given, labels = examples(count)
    callbacks = [] if watch is None else [watch]
    model.fit(inputs or given, labels, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def test_two_replicas_measure_what_one_device_measures(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    treatments = [SkipNonFinite(), Clippy(lambda_abs=1e-3)]
    alone = fit(watch(full_every=1, treatment=treatments), keras.optimizers.Adagrad(0.1))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        pair = fit(watch(full_every=1, treatment=treatments), keras.optimizers.Adagrad(0.1))
    one, two = sinks
    assert one.steps == two.steps == [1, 2, 3]
    for name in one.blocks[0].schema.scalars:
        if not name.startswith("batch_auc"):  # over replicas: of the pairs within each
            np.testing.assert_allclose(one.scalar(name), two.scalar(name), rtol=1e-5, atol=1e-7, err_msg=name)
    # When rows are fetched is for the clock to say, and the last column is measured then.
    single, both = (np.concatenate([block.stats for block in sink.blocks]) for sink in (one, two))
    np.testing.assert_allclose(single[..., :-1], both[..., :-1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(single[-1], both[-1], rtol=1e-4, atol=1e-6)
    for w, v in zip(alone.get_weights(), pair.get_weights(), strict=True):
        np.testing.assert_allclose(w, v, atol=1e-6)


def test_steps_that_loss_scaling_leaves_out_leave_a_record(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    inputs, _ = examples(40)
    inputs["numbers"][17] = np.inf  # in the third batch of five
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adagrad(0.1), initial_scale=8.0)
    model = fit(watch(), optimizer, 40, inputs)
    (sink,) = sinks
    assert int(model.optimizer.iterations) == 4
    assert sink.steps == [1, 2, 3, 4]
    assert list(sink.scalar("skipped_steps")) == [0, 0, 1, 1]
    assert np.isfinite(sink.scalar("loss")).all()


def test_several_optimizers_give_one_frame_with_all_layers(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    def both() -> Any:
        heads = {".*head.*": keras.optimizers.Adam(0.01)}
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.Adagrad(0.1), heads))

    watched, bare = fit(watch(), both()), fit(None, both())
    (sink,) = sinks
    assert sink.steps == [1, 2, 3]
    assert len(sink.blocks[0].schema.layers) == 7
    assert sink.options["config"]["parameters_watched"] == 1.0
    assert len([name for name in sink.blocks[0].schema.scalars if name.startswith("learning_rate")]) == 2
    for w, v in zip(watched.get_weights(), bare.get_weights(), strict=True):
        assert np.array_equal(w, v)


def test_with_accumulation_a_frame_is_an_update(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    model = fit(watch(), keras.optimizers.Adagrad(0.1, gradient_accumulation_steps=2), 32)
    assert int(model.optimizer.iterations) == 2
    assert sinks[0].steps == [1, 2]
    assert np.isfinite(sinks[0].scalar("loss")).all()


def test_a_loop_of_ones_own_is_watched(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    model = two_tasks()
    optimizer = keras.optimizers.Adam(0.01)
    mine = watch(tasks={"click": "binary", "play": "regression"}, logits=["click"], full_every=1)
    mine.wrap(optimizer)
    inputs, labels = examples(8)
    click, play = keras.losses.BinaryCrossentropy(from_logits=True), keras.losses.MeanSquaredError()

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            parts = {"click": click(labels["click"], outputs["click"]), "play": play(labels["play"], outputs["play"])}
            loss = parts["click"] + 2.0 * parts["play"]
        mine.observe(loss, labels, outputs, task_losses=parts)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    with mine:
        losses = []
        for _ in range(3):
            losses.append(float(step()))
            mine.after_step()
    (sink,) = sinks
    assert sink.steps == [1, 2, 3]
    assert sink.ended == "finished"
    np.testing.assert_allclose(sink.scalar("loss"), losses, rtol=1e-6)
    np.testing.assert_allclose(sink.scalar("loss/click") + 2 * sink.scalar("loss/play"), losses, rtol=1e-6)
    assert 0 < sink.scalar("prediction_mean/click")[0] < 1
    assert (sink.stat("shared/kernel", "update_norm") > 0).all()


def test_nothing_of_ours_raises_into_fit(
    watch: Callable[..., Watch], sinks: list[MemorySink], monkeypatch: pytest.MonkeyPatch
) -> None:
    swallowed: list[str] = []
    monkeypatch.setattr("lossguard.guard.swallow", lambda entry, error: swallowed.append(entry))

    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("ours")

    for place, entry in (
        ("lossguard.keras.rows.Row.decide", "Hook.begin_row"),
        ("lossguard.keras.rows.Row.measure", "Hook.measure"),
        ("lossguard.keras.rows.Row.whole", "Hook.end_row"),
        ("lossguard.keras.tasks.measure", "StepScalars.measure"),
        ("lossguard.keras.ring.Ring.snapshot", "Attempts.flush"),
        ("lossguard.keras.fetch.frames_of", "Fetcher.record"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, broken)
            watched = fit(watch(), keras.optimizers.Adagrad(0.1))
        assert entry in swallowed
        assert int(watched.optimizer.iterations) == 3
