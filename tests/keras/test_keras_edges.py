"""Models and uses at the edge: empty variables, Keras's masks, steps without callbacks, a second Watch, detaching."""

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import lossguard
from conftest import MemorySink
from lossguard.keras import Watch

RANDOM = np.random.default_rng(2)
X, Y = RANDOM.normal(size=(40, 3)).astype("float32"), RANDOM.normal(size=(40, 1)).astype("float32")
FIT: dict[str, Any] = {"batch_size": 8, "shuffle": False, "verbose": 0}


def compiled(mine: Watch | None = None) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="dense")])
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer if mine is None else mine.wrap(optimizer), loss="mse")
    return model


def same(one: keras.Model, other: keras.Model) -> None:
    for v, w in zip(
        [*one.weights, *one.optimizer.variables], [*other.weights, *other.optimizer.variables], strict=True
    ):
        assert np.array_equal(v.numpy(), w.numpy()), v.path


def test_the_package_alone_has_to_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lossguard, "keras")
    assert lossguard.keras.Watch is Watch


class Odd(keras.layers.Layer):
    """A scalar weight, an empty one, and one that no loss reaches."""

    def build(self, shape: Any) -> None:
        self.scalar = self.add_weight(shape=(), initializer="ones", name="scalar")
        self.empty = self.add_weight(shape=(0, 3), name="empty")
        self.unused = self.add_weight(shape=(3,), name="unused")

    def call(self, inputs: Any) -> Any:
        return inputs * self.scalar + keras.ops.sum(self.empty)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_variable_without_entries_is_no_layer_and_no_stat_of_the_others_is_broken(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    mine = watch(full_every=1)
    model = keras.Sequential([keras.Input((3,)), Odd(name="odd"), keras.layers.Dense(1, name="dense")])
    model.compile(mine.wrap(keras.optimizers.Adam(0.01)), loss="mse")
    model.fit(X, Y, callbacks=[mine], **FIT)
    (sink,) = sinks
    layers = [layer.split("/", 1)[1] for layer in sink.blocks[0].schema.layers]
    assert layers == ["odd/scalar", "odd/unused", "dense/kernel", "dense/bias"]
    for block in sink.blocks:
        assert np.isfinite(block.stats.transpose(0, 2, 1)[block.stats_present]).all()
    assert sink.options["config"]["layers_watched"] == 4
    assert sink.options["config"]["layers_unwatched"] == []
    assert mine.coverage().watched == 1.0
    assert "has no entries" in str(mine.coverage())


def test_entries_that_keras_masks_do_not_exist(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    codes = RANDOM.integers(0, 5, (8, 6)).astype("int32")
    labels = (RANDOM.random((8, 6, 1)) < 0.4).astype("float32")
    labels[codes == 0] = 1.0
    inputs = keras.Input((6,), dtype="int32")
    looked_up = keras.layers.Embedding(5, 3, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid", name="click")(looked_up))
    model.compile(keras.optimizers.SGD(0.0), loss="binary_crossentropy")
    seen = codes != 0
    scores = model.predict(codes, verbose=0)[seen]
    model.fit(codes, labels, batch_size=8, verbose=0, callbacks=[watch()])
    (sink,) = sinks
    assert sink.scalar("label_mean/click")[0] == pytest.approx(labels[seen].mean(), rel=1e-5)
    assert sink.scalar("prediction_mean/click")[0] == pytest.approx(scores.mean(), rel=1e-5)
    assert sink.scalar("prediction_std/click")[0] == pytest.approx(scores.std(), rel=1e-4)
    assert sink.scalar("loss/click")[0] == pytest.approx(sink.scalar("loss")[0], rel=1e-6)


def test_a_watched_step_is_traced_once(watch: Callable[..., Watch], monkeypatch: pytest.MonkeyPatch) -> None:
    bare, traces = keras.optimizers.Adam.apply, []

    def apply(*arguments: Any, **options: Any) -> Any:
        traces.append(1)
        return bare(*arguments, **options)

    mine = watch()
    model = compiled(mine)
    model.optimizer.build(model.trainable_variables)  # else its own variables are made, and Keras traces twice
    monkeypatch.setattr(keras.optimizers.Adam, "apply", apply)
    model.fit(X, Y, callbacks=[mine], **FIT)
    assert len(traces) == 1


def test_train_on_batch_is_watched_in_a_with_block(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    mine, model = watch(), compiled()
    mine.attach(model)
    for block in range(2):
        with mine:
            for start in range(0, 16, 8):
                model.train_on_batch(X[start : start + 8], Y[start : start + 8])
                mine.after_step()
        assert sinks[block].steps == [2 * block + 1, 2 * block + 2]
        assert np.isfinite(sinks[block].scalar("loss/output")).all()
        assert sinks[block].options["start_step"] == 2 * block
        assert sinks[block].ended == "finished"


@pytest.mark.parametrize("answer", ["text", "several", "error"])
def test_a_batch_id_that_is_no_number_costs_no_other_scalar_and_no_step(
    watch: Callable[..., Watch], sinks: list[MemorySink], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lossguard.guard.swallow", lambda entry, error: said.append(f"{entry}: {error}"))
    answers: dict[str, Callable[[Any], Any]] = {
        "text": lambda x: tf.constant("part-7.tfrecord"),
        "several": lambda x: x[0],
        "error": lambda x: x["offset"],
    }
    model = compiled()
    model.fit(X, Y, callbacks=[watch(batch_id=answers[answer])], **FIT)
    (sink,) = sinks
    assert "batch_id" not in sink.blocks[0].schema.scalars
    assert np.isfinite(sink.scalar("loss")).all()
    assert sink.steps == [1, 2, 3, 4, 5]
    sentence = {"text": "must give a whole number, got string", "several": "got the shape (3,)", "error": "batch_id: "}
    assert sentence[answer] in said[0]


def test_a_cell_that_is_run_again_makes_a_new_watch_of_the_same_model(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    model, bare, first, second = compiled(), compiled(), watch(), watch()
    for mine in (first, second, first):
        model.fit(X, Y, callbacks=[mine], **FIT)
        bare.fit(X, Y, **FIT)
    assert [sink.steps[0] for sink in sinks] == [1, 6, 11]
    assert all(len(sink.steps) == 5 and np.isfinite(sink.scalar("loss")).all() for sink in sinks)
    same(model, bare)
    with first:
        model.train_on_batch(X[:8], Y[:8])
        first.after_step()
        with pytest.raises(ValueError, match="watched by another Watch"):
            second.attach(model)


def test_a_watch_can_be_detached_within_fit(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    mine = watch()
    model, bare = compiled(mine), compiled()
    out = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs=None: mine.detach())
    model.fit(X, Y, epochs=2, callbacks=[mine, out], **FIT)
    bare.fit(X, Y, epochs=2, **FIT)
    assert (sinks[0].steps, sinks[0].ended, len(sinks)) == ([1, 2, 3, 4, 5], "finished", 1)
    same(model, bare)


def scaled(mine: Watch) -> keras.Model:
    model = compiled()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=8.0)
    model.compile(mine.wrap(optimizer), loss="mse")
    return model


def test_steps_left_out_to_the_end_are_told_by_the_log_and_by_the_last_event(
    watch: Callable[..., Watch],
    sinks: list[MemorySink],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lossguard.keras.leftout.IN_A_ROW", 2)
    mine, broken = watch(fetch_steps=1), X.copy()
    broken[16:] = np.inf
    with caplog.at_level(logging.WARNING, "lossguard"):
        scaled(mine).fit(broken, Y, callbacks=[mine], **FIT)
    assert sinks[0].steps == [1, 2]
    told = [record.getMessage() for record in caplog.records]
    assert any("has left out the last 2 steps: the model is not updated" in one for one in told)
    assert "left out the last 3 steps; no frame tells of them" in told[-1]
    assert sinks[0].skipped_at_the_end == 3


def test_skipped_steps_are_counted_after_a_second_compile_and_no_more_after_detaching(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    mine, broken = watch(), X.copy()
    broken[8:16] = np.inf
    model = scaled(mine)
    for _ in range(2):
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=8.0), loss="mse")
        model.fit(broken, Y, callbacks=[mine], **FIT)
    assert [list(sink.scalar("skipped_steps")) for sink in sinks] == [[0, 1, 1, 1], [1, 2, 2, 2]]
    mine.detach()
    assert "_stateful_handle_non_finite_grads" not in model.optimizer.__dict__


def test_a_watch_that_records_nothing_says_so_once(
    watch: Callable[..., Watch], sinks: list[MemorySink], caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, weight = keras.optimizers.SGD(0.1), keras.Variable([1.0])
    mine, forgotten = watch(), watch()
    mine.wrap(optimizer)
    for _ in range(2):
        optimizer.apply([tf.constant([1.0])], [weight])
        mine.after_step()
    with forgotten:
        pass
    told = [record.getMessage() for record in caplog.records]
    assert [one.split(": ", 2)[2].split(":")[0] for one in told] == [
        "after_step was called outside of a `with watch",
        "nothing was watched in this block",
    ]
    assert sinks == []


def test_a_step_that_was_compiled_before_its_optimizer_was_watched_is_told_of(
    watch: Callable[..., Watch], sinks: list[MemorySink], caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, weight = keras.optimizers.SGD(0.1), keras.Variable([1.0])
    step = tf.function(lambda: optimizer.apply([tf.constant([1.0])], [weight]))
    step()
    mine = watch()
    mine.wrap(optimizer)
    with mine:
        step()
        mine.after_step()
    assert sinks[0].blocks == []
    assert sum("make the tf.function after watch.wrap" in record.getMessage() for record in caplog.records) == 1
