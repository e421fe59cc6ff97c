"""`on_full_divergence`: a run that diverges is stopped, or goes back to before the first sign and trains on."""

import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from conftest import KeepPace, MemorySink
from lossguard.demo import batches, evaluate, features, ranker, stream
from lossguard.demo.schedule import Ramp
from lossguard.keras import Clippy, Rollback, TrainingStopped, Watch
from lossguard.wire.chunk import Event

BATCH, BROKEN_STEP = 8, 60
LOSSES = {"click": keras.losses.BinaryCrossentropy(from_logits=True), "play": "mse"}


def two_tasks() -> keras.Model:
    """Two heads over a shared layer; no embedding, whose NaN gradients Keras's Adagrad cannot divide."""
    keras.utils.set_random_seed(7)
    numbers = keras.Input((5,), name="numbers")
    shared = keras.layers.Dense(6, activation="tanh", name="shared")(numbers)
    return keras.Model(numbers, {name: keras.layers.Dense(1, name=f"head_{name}")(shared) for name in LOSSES})


def examples(count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    clicks = (random.random((count, 1)) < 0.4).astype("float32")
    play = random.normal(size=(count, 1)).astype("float32")
    return random.normal(size=(count, 5)).astype("float32"), {"click": clicks, "play": play}


class Heard(MemorySink):
    """Says when the fetch thread has come to an event, that is, has judged all frames before it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.heard = threading.Event()

    def event(self, event: Event) -> bool:
        self.heard.set()
        return super().event(event)


class HearAll(keras.callbacks.Callback):
    """After every step waits until the watch's detectors have seen it, and keeps what the model was."""

    def __init__(self, watch: Watch, sinks: list[Heard]) -> None:
        super().__init__()
        self.watch, self.sinks = watch, sinks
        self.states: list[tuple[int, int, list[np.ndarray]]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        variables = [*self.model.weights, *self.model.optimizer.variables]
        state = [keras.ops.convert_to_numpy(variable) for variable in variables]
        self.states.append((len(self.sinks), int(self.model.optimizer.iterations), state))
        self.sinks[-1].heard.clear()
        self.watch.checkpoint("nowhere")
        assert self.sinks[-1].heard.wait(60)


def broken_data(steps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One batch has an infinite feature, which leaves weights of NaN."""
    inputs, labels = examples(steps * BATCH)
    inputs[(BROKEN_STEP - 1) * BATCH] = np.inf
    return inputs, labels


def fit_broken(chosen: Any, *others: keras.callbacks.Callback, steps: int = 80) -> tuple[list[Heard], HearAll]:
    sinks: list[Heard] = []

    def opened(*args: Any, **options: Any) -> Heard:
        sinks.append(Heard(*args, **options))
        return sinks[-1]

    watch = Watch("ads", "ranker", on_full_divergence=chosen, budget=None, open_recorder=opened)
    hear = HearAll(watch, sinks)
    model = two_tasks()
    model.compile(watch.wrap(keras.optimizers.Adagrad(0.1)), loss=LOSSES)
    inputs, labels = broken_data(steps)
    model.fit(
        inputs, labels, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[hear, watch, *others]
    )  # hear stands first: it sees the state before the watch acts on it
    return sinks, hear


def test_a_rollback_restores_weights_and_slots_to_the_bit_and_opens_an_attempt_there() -> None:
    sinks, hear = fit_broken(Rollback(snapshot_steps=10, then="half_learning_rate"))
    first, second = sinks
    assert first.ended == "interrupted"
    assert second.ended == "finished"
    assert second.options["start_step"] == 50
    assert second.steps[0] == 51
    (done,) = second.options["config"]["rollbacks"]
    assert done["to_step"] == 50
    assert done["changed"] == "the learning rate is multiplied by 0.5"
    kept = next(state for attempt, step, state in hear.states if (attempt, step) == (1, 50))
    assert all(np.isfinite(values).all() for values in hear.states[-1][2])
    # The update after the rollback starts from the very numbers of step 50: its frame shows the same weights.
    norms = {name: np.linalg.norm(values) for name, values in zip(_layers(second), kept, strict=False)}
    for layer, norm in norms.items():
        assert second.stat(layer, "weight_norm")[0] == pytest.approx(norm, rel=1e-6), layer
    assert second.stat(_layers(second)[0], "clipping_factor")[0] == 0.5


def _layers(sink: Heard) -> tuple[str, ...]:
    return sink.blocks[0].schema.layers


def test_the_state_after_a_rollback_is_the_state_before() -> None:
    model = two_tasks()
    watch = Watch("ads", "ranker", on_full_divergence="rollback", open_recorder=MemorySink)
    model.compile(watch.wrap(keras.optimizers.Adam(0.01)), loss=LOSSES)
    seen: list[list[np.ndarray]] = []

    class Back(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            from lossguard.keras.snapshots import Snapshot

            state = watch._training.state()
            if batch == 3:
                self.snapshot = Snapshot(4, state)
                self.snapshot.fetch()
            if batch in (3, 7):
                if batch == 7:
                    self.snapshot.restore(state)
                seen.append([keras.ops.convert_to_numpy(variable) for variable in state])

    inputs, labels = examples(80)
    model.fit(inputs, labels, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[watch, Back()])
    before, after = seen
    assert len(before) > 2 * len(model.trainable_variables)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_before_a_rollback_the_updates_are_those_of_the_bare_optimizer() -> None:
    inputs, labels = examples(160)
    finals = []
    for chosen in (None, Rollback(), Rollback(then="half_learning_rate")):
        model = two_tasks()
        optimizer = keras.optimizers.Adagrad(0.1)
        callbacks = []
        if chosen is not None:
            watch = Watch("ads", "ranker", on_full_divergence=chosen, open_recorder=MemorySink)
            optimizer, callbacks = watch.wrap(optimizer), [watch]
        model.compile(optimizer, loss=LOSSES)
        model.fit(inputs, labels, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
        finals.append(model.get_weights())
    for other in finals[1:]:
        for bare, watched in zip(finals[0], other, strict=True):
            np.testing.assert_array_equal(bare, watched)


def test_a_stop_leaves_the_backups_of_others_where_they_are(tmp_path: Path) -> None:
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=20)
    with pytest.raises(TrainingStopped, match=r"run ranker is stopped: nonfinite since step \d+"):
        fit_broken("stop", backup)
    # keras-team/keras#21771: an early end through `stop_training` deletes this folder.
    assert [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    fresh = two_tasks()
    fresh.compile(keras.optimizers.Adagrad(0.1), loss=LOSSES)
    inputs, labels = examples(BATCH)
    again = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=20)
    fresh.fit(inputs, labels, batch_size=BATCH, verbose=0, callbacks=[again])
    assert int(fresh.optimizer.iterations) >= 20
    assert all(np.isfinite(values).all() for values in fresh.get_weights())


def test_a_stop_closes_the_attempt_and_says_when_it_began() -> None:
    with pytest.raises(TrainingStopped, match="since step") as raised:
        fit_broken("stop")
    assert str(BROKEN_STEP) in str(raised.value) or str(BROKEN_STEP + 1) in str(raised.value)


def test_a_loop_of_ones_own_goes_back_without_being_compiled_again() -> None:
    sinks: list[Heard] = []

    def opened(*args: Any, **options: Any) -> Heard:
        sinks.append(Heard(*args, **options))
        return sinks[-1]

    watch = Watch("ads", "ranker", on_full_divergence=Rollback(snapshot_steps=10), open_recorder=opened)
    weight = keras.Variable(np.ones(3, "float32"), name="weight")
    optimizer = watch.wrap(keras.optimizers.SGD(0.1))
    optimizer.build([weight])
    compiled = []

    @tf.function
    def step(target: Any) -> None:
        compiled.append(1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((weight.value - target) ** 2)
        watch.observe(loss)
        optimizer.apply(tape.gradient(loss, [weight.value]), [weight])

    with watch:
        for number in range(1, 81):
            step(tf.constant(np.nan if number == BROKEN_STEP else 0.5))
            sinks[-1].heard.clear()
            watch.checkpoint("nowhere")
            assert sinks[-1].heard.wait(60)
            watch.after_step()
    assert len(sinks) == 2
    assert sinks[1].options["start_step"] == 50
    assert np.isfinite(keras.ops.convert_to_numpy(weight)).all()
    assert len(compiled) <= 2  # Keras traces a function that creates variables twice


def test_when_nothing_is_left_to_try_the_training_stops() -> None:
    with pytest.raises(TrainingStopped, match="No snapshot is older than its first sign"):
        fit_broken(Rollback(snapshot_steps=59, keep=1))


def test_a_wrong_reaction_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="on_full_divergence: must be 'advise', 'stop', 'rollback' or a Rollback"):
        Watch("ads", "ranker", on_full_divergence="halt")  # type: ignore[arg-type]
    for name in ("snapshot_steps", "keep", "limit"):
        with pytest.raises(ValueError, match=f"{name}: must be a whole number of at least 1"):
            Rollback(**{name: 0})
    with pytest.raises(ValueError, match="then: must be one of clippy, half_learning_rate"):
        Rollback(then="pray")  # type: ignore[arg-type]


def test_where_clippy_is_on_already_the_rate_is_halved() -> None:
    watch = Watch("ads", "ranker", treatment=Clippy(), on_full_divergence="rollback", open_recorder=MemorySink)
    assert [one.describe()["name"] for one in watch._training._treatments] == ["Clippy", "Rate"]


def test_the_demos_ranker_diverges_and_a_rollback_rescues_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker, "SHARED_UNITS", (128, 128, 128, 128))
    seed, steps, batch = 1, 520, 128
    known = features.encode(stream.generate(seed, days=8, rows_per_day=8000, users=4000, videos=800))
    rows = batches.indices(known, steps, seed, batch=batch).ravel()
    held_out = slice(known.training, None)
    found = {}
    for chosen in ("advise", "rollback"):
        sinks: list[MemorySink] = []

        def opened(*args: Any, into: list[MemorySink] = sinks, **options: Any) -> MemorySink:
            into.append(MemorySink(*args, **options))
            return into[-1]

        model = ranker.build(known.rows, known.categorical.shape[1], known.numeric.shape[1], seed)
        watch = Watch("demo", chosen, tasks=dict(features.TASKS), on_full_divergence=chosen, open_recorder=opened)
        optimizer = keras.optimizers.Adagrad(Ramp(steps, 1.0), initial_accumulator_value=0.1)
        model.compile(watch.wrap(optimizer), loss=ranker.losses(), steps_per_execution=8, jit_compile=False)
        model.fit(
            {"categorical": known.categorical[rows], "numeric": known.numeric[rows]},
            {task: values[rows, None] for task, values in known.labels.items()},
            batch_size=batch, shuffle=False, verbose=0, callbacks=[watch, KeepPace(watch, sinks)],
        )  # fmt: skip
        predicted = model.predict(
            {"categorical": known.categorical[held_out], "numeric": known.numeric[held_out]},
            batch_size=8192, verbose=0,
        )  # fmt: skip
        labels = {task: values[held_out] for task, values in known.labels.items()}
        found[chosen] = evaluate.metrics(labels, predicted)["auc/click"], len(sinks)
    assert found["advise"][0] < 0.56
    assert found["rollback"][0] > 0.6
    assert found["rollback"][1] >= 2
