"""`Watch` in `fit`: frames of every step, scalars, attempts and endings."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from click_and_play import LOSSES, examples
from conftest import MemorySink, two_tasks
from lossguard.journal.reader import AttemptReader
from lossguard.keras import Clippy, Watch
from lossguard.wire.chunk import AttemptStop, Checkpoint, decode


def compiled(watch: Watch | None = None, **options: Any) -> keras.Model:
    model = two_tasks()
    optimizer = keras.optimizers.Adagrad(0.1)
    model.compile(optimizer if watch is None else watch.wrap(optimizer), loss=LOSSES, **options)
    return model


def fit(model: keras.Model, watch: Watch | None, count: int = 40, **options: Any) -> keras.callbacks.History:
    inputs, labels = examples(count)
    return model.fit(
        inputs,
        labels,
        batch_size=8,
        verbose=0,
        shuffle=False,
        callbacks=[] if watch is None else [watch],
        **options,
    )


def test_every_step_is_one_frame_also_within_one_execution(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    for executed_together in (1, 4):
        mine = watch(full_every=1)
        history = fit(compiled(mine, steps_per_execution=executed_together), mine, epochs=2)
        sink = sinks[-1]
        assert sink.steps == list(range(1, 11))
        assert sink.drops == {}
        assert sink.ended == "finished"
        assert np.mean(sink.scalar("loss")[5:]) == pytest.approx(history.history["loss"][1], rel=1e-5)
    one, four = sinks
    for name in one.blocks[0].schema.scalars:
        np.testing.assert_allclose(one.scalar(name), four.scalar(name), rtol=1e-5, atol=1e-7)
    for layer in one.blocks[0].schema.layers:
        np.testing.assert_allclose(one.stat(layer, "update_norm"), four.stat(layer, "update_norm"), rtol=1e-5)


def test_the_scalars_of_a_step_are_those_of_its_batch(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    mine = watch()
    model = compiled()
    inputs, labels = examples(8)
    outputs = {name: value[:, 0].astype("float64") for name, value in model.predict(inputs, verbose=0).items()}
    fit(model, mine, count=8)
    sink = sinks[0]
    probability, clicked = 1 / (1 + np.exp(-outputs["click"])), labels["click"][:, 0]
    won = [p > q for p in probability[clicked == 1] for q in probability[clicked == 0]]
    cross_entropy = -np.mean(clicked * np.log(probability) + (1 - clicked) * np.log(1 - probability))
    error = outputs["play"] - labels["play"][:, 0]
    expected = {
        "loss": cross_entropy + np.mean(error**2),
        "learning_rate": 0.1,
        "loss/click": cross_entropy,
        "label_mean/click": clicked.mean(),
        "prediction_mean/click": probability.mean(),
        "prediction_std/click": probability.std(),
        "batch_auc/click": np.mean(won),
        "loss/play": np.mean(error**2),
        "label_mean/play": labels["play"].mean(),
        "prediction_mean/play": outputs["play"].mean(),
        "prediction_std/play": outputs["play"].std(),
        "label_std/play": labels["play"].std(),
        "rmse/play": np.sqrt(np.mean(error**2)),
    }
    assert set(sink.blocks[0].schema.scalars) == set(expected)
    for name, value in expected.items():
        assert sink.scalar(name)[0] == pytest.approx(value, rel=1e-5), name


def test_labels_that_are_masked_out_do_not_exist(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    inputs, labels = examples(16)
    mask = {name: np.repeat([1.0, 0.0], 8).astype("float32") for name in labels}
    for kept, weights in ((16, mask), (8, None)):
        mine = watch()
        model = compiled()
        some_inputs = {name: value[:kept] for name, value in inputs.items()}
        some_labels = {name: value[:kept] for name, value in labels.items()}
        model.fit(some_inputs, some_labels, sample_weight=weights, batch_size=16, verbose=0, callbacks=[mine])
    masked, short = sinks
    for what in ("label_mean/click", "prediction_std/click", "batch_auc/click", "rmse/play"):
        assert masked.scalar(what)[0] == pytest.approx(short.scalar(what)[0], rel=1e-5), what


def test_a_batch_of_one_class_has_no_auc_and_ties_count_half(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.0), keras.losses.BinaryCrossentropy(from_logits=True))
    scores = np.array([[1.0], [1.0], [0.0], [2.0], [5.0], [6.0], [7.0], [8.0]], "float32")
    clicks = np.array([1, 0, 0, 1, 0, 0, 0, 0], "float32")
    model.fit(scores, clicks, batch_size=4, shuffle=False, verbose=0, callbacks=[watch(tasks={"click": "binary"})])
    (sink,) = sinks
    # Positives 1 and 2 against negatives 1 and 0: one tie and three wins.
    assert sink.scalar("batch_auc/click")[0] == pytest.approx(3.5 / 4)
    assert list(sink.present("batch_auc/click")) == [True, False]
    assert list(sink.present("loss")) == [True, True]


def test_tasks_are_inferred_or_taken_as_said(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    mine = watch(tasks={"play": "regression"})
    fit(compiled(), mine, count=8)
    assert sinks[0].options["config"]["tasks"] == {"play": "regression"}
    assert "loss/click" in sinks[0].blocks[0].schema.scalars
    assert "label_mean/click" not in sinks[0].blocks[0].schema.scalars
    assert watch().attach(compiled()).tasks[0].kind == "binary"
    with pytest.raises(ValueError, match="tasks: the model has no output 'clik'; it has 'click', 'play'"):
        watch(tasks={"clik": "binary"}).attach(compiled())


def test_a_frame_names_its_batch(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    first = 9_876_543_210

    def name(x: Any) -> Any:
        return first + tf.cast(x[0, 0], tf.int64)

    x = np.repeat(np.arange(12.0, dtype="float32")[:, None], 2, 1)
    model.fit(x, x[:, :1], batch_size=4, shuffle=False, verbose=0, callbacks=[watch(batch_id=name)])
    assert list(sinks[0].scalar("batch_id")) == [first, first + 4, first + 8]

    model.fit(x, x[:, :1], batch_size=4, shuffle=False, verbose=0, callbacks=[watch(batch_id=lambda x: (7, name(x)))])
    assert list(sinks[1].scalar("batch_id")) == [first, first + 4, first + 8]
    assert list(sinks[1].scalar("batch_file")) == [7, 7, 7]

    def hashed(x: Any) -> Any:
        return -(2**63) + 5 + tf.cast(x[0, 0], tf.int64)

    model.fit(x, x[:, :1], batch_size=4, shuffle=False, verbose=0, callbacks=[watch(batch_id=hashed)])
    assert list(sinks[2].scalar("batch_id")) == [5, 9, 13]


def test_the_attempt_says_what_is_watched(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    mine = watch(treatment=Clippy(), config={"team": "ads"})
    fit(compiled(mine), mine, count=8)
    config = sinks[0].options["config"]
    assert config["parameters_watched"] == 1.0
    assert config["layers_watched"] == len(sinks[0].blocks[0].schema.layers) == 7
    assert config["tasks"] == {"click": "binary", "play": "regression"}
    assert config["optimizer"]["class"] == "Adagrad"
    assert config["treatment"] == [{"name": "Clippy", "exclude": ["embedding"], "lambda_rel": 0.5, "lambda_abs": 0.01}]
    assert config["team"] == "ads"


def test_a_layer_can_be_left_out_and_the_coverage_says_so(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    mine = watch(unwatched=("embedding",))
    fit(compiled(mine), mine, count=8)
    (sink,) = sinks
    assert "embedding/embeddings" not in sink.blocks[0].schema.layers
    assert len(sink.blocks[0].schema.layers) == 6
    config = sink.options["config"]
    assert config["layers_unwatched"] == ["embedding/embeddings"]
    assert config["parameters_watched"] == pytest.approx(1 - 22 / config["parameters"])
    assert (sink.stat("shared/kernel", "gradient_norm") > 0).all()


def test_two_fits_are_two_attempts_and_one_in_a_with_block(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    mine = watch()
    model = compiled(mine)
    fit(model, mine)
    fit(model, mine)
    assert [sink.options["start_step"] for sink in sinks] == [0, 5]
    assert sinks[1].steps == [6, 7, 8, 9, 10]
    with mine:
        fit(model, mine)
        mine.checkpoint("ckpt-15")
        fit(model, mine)
        assert sinks[2].ended is None
    assert sinks[2].ended == "finished"
    assert sinks[2].steps == list(range(11, 21))
    (event,) = sinks[2].events
    assert isinstance(event, Checkpoint)
    assert (event.step, event.path, event.has_slots) == (15, "ckpt-15", True)


def test_a_restart_from_a_checkpoint_begins_at_its_step(
    watch: Callable[..., Watch], sinks: list[MemorySink], tmp_path: Path
) -> None:
    first = watch()
    model = compiled(first)
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), save_freq=3, delete_checkpoint=False)
    inputs, labels = examples(40)
    model.fit(inputs, labels, batch_size=8, verbose=0, callbacks=[first, backup])
    second = watch()
    again = compiled(second)
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), save_freq=3, delete_checkpoint=False)
    again.fit(inputs, labels, batch_size=8, epochs=2, verbose=0, callbacks=[second, backup])
    # The order of callbacks does not matter: the backup is restored after our on_train_begin.
    assert sinks[1].options["start_step"] > 0
    assert sinks[1].steps[0] == sinks[1].options["start_step"] + 1


class _Boom(keras.callbacks.Callback):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            raise self.error


@pytest.mark.parametrize(("error", "reason"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("no"), "failed")])
def test_an_exception_ends_the_attempt_with_its_last_frame(
    watch: Callable[..., Watch], sinks: list[MemorySink], error: BaseException, reason: str
) -> None:
    inputs, labels = examples(40)
    mine = watch()
    model = compiled(mine, run_eagerly=True)
    calls = []

    def data() -> Any:
        for start in range(0, 40, 8):
            calls.append(start)
            yield (
                {name: value[start : start + 8] for name, value in inputs.items()},
                {name: value[start : start + 8] for name, value in labels.items()},
            )

    bare = model.train_step

    def train_step(batch: Any) -> Any:
        logs = bare(batch)
        if int(model.optimizer.iterations) == 3:
            raise error
        return logs

    model.train_step = train_step
    with pytest.raises(type(error)):
        model.fit(data(), verbose=0, callbacks=[mine])
    assert sinks[0].ended == reason
    assert sinks[0].steps == [1, 2, 3]


@pytest.mark.parametrize(("error", "reason"), [(RuntimeError("disk"), "failed"), (SystemExit(3), "interrupted")])
def test_an_exception_beside_the_step_ends_the_attempt_where_the_with_block_ends(
    watch: Callable[..., Watch], sinks: list[MemorySink], error: BaseException, reason: str
) -> None:
    inputs, labels = examples(40)
    mine = watch()
    with pytest.raises(type(error)), mine:
        compiled(mine).fit(inputs, labels, batch_size=8, verbose=0, callbacks=[mine, _Boom(error)])
    assert sinks[0].ended == reason
    assert sinks[0].steps == [1, 2, 3]


def test_detach_gives_the_bare_model_back(watch: Callable[..., Watch]) -> None:
    mine = watch(treatment=Clippy(lambda_abs=1e-6))
    model, bare = compiled(mine), compiled()
    assert type(model.optimizer) is keras.optimizers.Adagrad
    mine.attach(model).detach()
    fit(model, None)
    fit(bare, None)
    for one, other in zip(model.weights, bare.weights, strict=True):
        assert np.array_equal(one.numpy(), other.numpy())
    assert "_backend_update_step" not in model.optimizer.__dict__
    assert "compute_loss" not in model.__dict__


@pytest.mark.parametrize("form", ["keras", "weights", "checkpoint"])
def test_saved_state_interchanges_with_the_bare_optimizer(
    watch: Callable[..., Watch], tmp_path: Path, form: str
) -> None:
    def save(model: keras.Model) -> None:
        if form == "keras":
            model.save(tmp_path / "model.keras")
        elif form == "weights":
            model.save_weights(tmp_path / "model.weights.h5")
        else:
            tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "model.ckpt"))

    def restored(mine: Watch | None) -> keras.Model:
        if form == "keras":
            model = keras.models.load_model(tmp_path / "model.keras")
            return model if mine is None else mine.attach(model).model
        model = compiled(mine)
        model.optimizer.build(model.trainable_variables)
        if form == "weights":
            model.load_weights(tmp_path / "model.weights.h5")
        else:
            status = tf.train.Checkpoint(model=model, optimizer=model.optimizer).read(str(tmp_path / "model.ckpt"))
            status.assert_consumed()
        return model

    results = []
    for saver, reader in ((False, True), (True, False)):
        mine = watch() if saver else None
        model = compiled(mine)
        fit(model, mine)
        save(model)
        second = watch() if reader else None
        again = restored(second)
        fit(again, second)
        assert int(again.optimizer.iterations) == 10
        results.append([variable.numpy() for variable in (*again.weights, *again.optimizer.variables)])
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)


def test_the_ring_overrun_is_counted(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    mine = watch(fetch_steps=10_000_000, fetch_seconds=1e9)
    model = compiled(mine)
    for hook in mine._training.hooks:
        hook.rows = 4
    mine._scalars.attach(model)
    mine.set_model(model)
    for hook in mine._training.hooks:
        hook.rows = 4
    inputs, labels = examples(80)
    model.fit(inputs, labels, batch_size=8, verbose=0, callbacks=[_Keep(mine)])
    assert sinks[0].steps == [7, 8, 9, 10]
    assert sinks[0].drops == {"ring_overrun": 6}


class _Keep(keras.callbacks.Callback):
    """Hands on what Keras calls, but `set_model`, which would size the ring anew."""

    def __init__(self, inner: Watch) -> None:
        super().__init__()
        for name in ("on_train_begin", "on_train_batch_begin", "on_train_batch_end", "on_epoch_begin", "on_train_end"):
            setattr(self, name, getattr(inner, name))


SCRIPT = """
import sys
import keras, numpy as np
from lossguard.keras import Watch
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
watch = Watch("ads", "killed", journal=sys.argv[1])
model.compile(watch.wrap(keras.optimizers.SGD(0.1)), "mse")
class Leave(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 4:
            raise KeyboardInterrupt
model.fit(np.ones((64, 2)), np.ones((64, 1)), batch_size=8, verbose=0, callbacks=[watch, Leave()])
"""


def test_the_journal_of_an_interrupted_process_ends_with_the_last_step(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr
    (folder,) = [entry for entry in (tmp_path / "ads" / "killed").iterdir() if entry.is_dir()]
    reader = AttemptReader(folder)
    stops = []
    while (record := reader.next()) is not None:
        stops += [event for event in decode(record.chunk).events if isinstance(event, AttemptStop)]
        reader.acknowledge(record)
    reader.close()
    assert [(stop.step, stop.reason) for stop in stops] == [(5, "interrupted")]
