"""The frames of the steps behind a saved model are sealed when it is saved, not seconds later."""

import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from conftest import MemorySink
from lossguard.keras import Watch
from lossguard.keras.saving import hear_of_saves

DATA = np.ones((16, 3), "float32"), np.ones((16, 1), "float32")
NAMES = {"save_own_variables", "_trackable_children"}


def model(optimizer: keras.optimizers.Optimizer | None = None) -> keras.Model:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile(optimizer or keras.optimizers.Adam(0.1), loss="mse")
    return made


class Saving(keras.callbacks.Callback):
    """Saves behind a step, and waits until that much is sealed: with 16 steps nothing else seals before the end."""

    def __init__(self, sinks: list[MemorySink], save: Callable[[keras.Model], None]) -> None:
        super().__init__()
        self.sinks = sinks
        self.save = save

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if batch == 4:
            self.save(self.model)
            self.sinks[-1].wait_until_sealed(5)


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
def test_a_save_seals_the_steps_that_led_to_it(
    watch: Callable[..., Watch], sinks: list[MemorySink], tmp_path: Path, name: str
) -> None:
    def save(one: keras.Model) -> None:
        one.save(tmp_path / name) if name == "m.keras" else one.save_weights(tmp_path / name)

    model().fit(*DATA, batch_size=2, verbose=0, callbacks=[watch(), Saving(sinks, save)])
    assert sinks[0].sealed == [5]
    assert sinks[0].steps == list(range(1, 9))


def test_a_checkpoint_of_tensorflow_seals_in_a_loop_of_ones_own(
    watch: Callable[..., Watch], sinks: list[MemorySink], tmp_path: Path
) -> None:
    net, optimizer = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), keras.optimizers.Adam(0.1)
    mine = watch()
    mine.wrap(optimizer)
    optimizer.build(net.trainable_variables)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(model=net, optimizer=optimizer), tmp_path, 3)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(net(DATA[0]) ** 2)
        mine.observe(loss)
        optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)

    with mine:
        for number in range(1, 9):
            step()
            mine.after_step()
            if number == 5:
                manager.save()
                sinks[0].wait_until_sealed(5)
    assert set(sinks[0].sealed) == {5}
    assert sinks[0].steps == list(range(1, 9))
    loaded = keras.optimizers.Adam(0.1)
    loaded.build(net.trainable_variables)
    tf.train.Checkpoint(optimizer=loaded).restore(manager.latest_checkpoint).expect_partial()
    assert int(loaded.iterations) == 5


def test_keras_own_backup_seals_before_the_trainer_can_be_killed(
    watch: Callable[..., Watch], sinks: list[MemorySink], tmp_path: Path
) -> None:
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=5)
    model().fit(*DATA, batch_size=2, verbose=0, callbacks=[backup, watch(), Saving(sinks, lambda _: None)])
    assert sinks[0].sealed[0] == 5


def test_an_optimizer_within_another_is_heard(
    watch: Callable[..., Watch], sinks: list[MemorySink], tmp_path: Path
) -> None:
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    saving = Saving(sinks, lambda one: one.save(tmp_path / "m.keras"))
    model(scaled).fit(*DATA, batch_size=2, verbose=0, callbacks=[watch(), saving])
    assert sinks[0].sealed == [5]


def test_what_is_saved_is_what_a_bare_model_saves(watch: Callable[..., Watch], tmp_path: Path) -> None:
    trained = model()
    trained.fit(*DATA, batch_size=2, verbose=0, callbacks=[watch()])
    trained.save(tmp_path / "watched.keras")
    loaded = keras.models.load_model(tmp_path / "watched.keras")
    assert not NAMES & vars(loaded.optimizer).keys()
    for mine, theirs in zip(trained.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_a_save_on_another_thread_touches_nothing_of_the_training(
    watch: Callable[..., Watch], sinks: list[MemorySink], tmp_path: Path
) -> None:
    class Beside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            if batch == 4:
                thread = threading.Thread(target=self.model.save, args=[tmp_path / "m.keras"])
                thread.start()
                thread.join()

    model().fit(*DATA, batch_size=2, verbose=0, callbacks=[watch(), Beside()])
    assert sinks[0].sealed == []
    assert (tmp_path / "m.keras").exists()


def test_what_fails_to_be_saved_was_heard_of_before() -> None:
    heard = []
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([])
    hear_of_saves(optimizer, lambda: heard.append("told"))
    with pytest.raises(TypeError):
        optimizer.save_own_variables(None)
    assert heard == ["told"]


def test_detach_gives_the_optimizers_own_method_back(watch: Callable[..., Watch]) -> None:
    trained, mine = model(), watch()
    trained.fit(*DATA, batch_size=2, verbose=0, callbacks=[mine])
    assert vars(trained.optimizer).keys() >= NAMES
    mine.detach()
    assert not NAMES & vars(trained.optimizer).keys()


# Orbax brings JAX, which this suite is without: here stands what it calls, and `test_keras_orbax.py` has it itself.
class Checkpointer:
    def save(self, path: str) -> str:
        """Orbax's."""
        return f"saved {path}"


class AsyncCheckpointer(Checkpointer):
    def save(self, path: str) -> str:
        return f"begun {path}"


class CheckpointManager:
    def save(self, step: int, write: bool) -> str:
        return AsyncCheckpointer().save("its own") if write else "not now"


BARE = Checkpointer.save, AsyncCheckpointer.save


@pytest.fixture
def orbax(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Imports Orbax."""
    module = types.ModuleType("orbax.checkpoint")
    vars(module).update(Checkpointer=Checkpointer, AsyncCheckpointer=AsyncCheckpointer)
    monkeypatch.delitem(sys.modules, "orbax.checkpoint", raising=False)
    return lambda: monkeypatch.setitem(sys.modules, "orbax.checkpoint", module)


def test_orbax_is_heard_when_it_saves_and_only_then(
    watch: Callable[..., Watch], sinks: list[MemorySink], orbax: Callable[[], None]
) -> None:
    orbax()
    told: list[str] = []

    class Often(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            told.append(CheckpointManager().save(batch, batch == 4))
            if batch == 4:
                sinks[-1].wait_until_sealed(5)
            if batch == 5:
                thread = threading.Thread(target=Checkpointer().save, args=["beside"])
                thread.start()
                thread.join()

    model().fit(*DATA, batch_size=2, verbose=0, callbacks=[watch(), Often()])
    assert told == ["not now"] * 4 + ["begun its own"] + ["not now"] * 3
    assert set(sinks[0].sealed) == {5}
    assert sinks[0].steps == list(range(1, 9))
    assert (Checkpointer.save, AsyncCheckpointer.save) == BARE


def test_orbax_is_found_that_was_imported_behind_the_first_step(
    watch: Callable[..., Watch], sinks: list[MemorySink], orbax: Callable[[], None]
) -> None:
    mine, net = watch(), model()
    with mine.attach(net):
        net.train_on_batch(*DATA)
        mine.after_step()
        orbax()
        mine.flush()
        assert Checkpointer().save("here") == "saved here"
        assert Checkpointer.save.__doc__ == "Orbax's."
        sinks[0].wait_until_sealed(1)


def test_two_watches_hear_and_what_another_has_wrapped_since_is_left_to_it(
    watch: Callable[..., Watch], sinks: list[MemorySink], orbax: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    orbax()
    several = [(watch(), model()) for _ in range(2)]
    for mine, net in several:
        mine.attach(net).__enter__()
        net.train_on_batch(*DATA)
        mine.after_step()
    Checkpointer().save("both")
    for sink in sinks:
        sink.wait_until_sealed(1)
    several[0][0].close()
    net.train_on_batch(*DATA)
    mine.after_step()
    Checkpointer().save("the other")
    sinks[1].wait_until_sealed(2)
    ours = Checkpointer.save

    def theirs(self: Checkpointer, path: str) -> str:
        return "wrapped: " + ours(self, path)

    monkeypatch.setattr(Checkpointer, "save", theirs)
    several[1][0].close()
    assert Checkpointer.save is theirs
    assert AsyncCheckpointer.save is BARE[1]
    assert Checkpointer().save("nobody hears") == "wrapped: saved nobody hears"
    assert [len(sink.sealed) for sink in sinks] == [1, 2]
    # Once it is ours alone again, it is not heard twice.
    monkeypatch.setattr(Checkpointer, "save", ours)
    with (again := watch()).attach(net):
        net.train_on_batch(*DATA)
        again.after_step()
        Checkpointer().save("once")
        sinks[2].wait_until_sealed(3)
    assert len(sinks[2].sealed) == 1
    assert (Checkpointer.save, AsyncCheckpointer.save) == BARE
