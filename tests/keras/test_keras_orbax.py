"""Orbax checkpoints, by Keras's own callback, are those of the bare optimizer, both ways; and they are heard of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from conftest import MemorySink
from lossguard.keras import Watch

ocp = pytest.importorskip("orbax.checkpoint", reason='Orbax is not installed here: pip install "orbax-checkpoint"')


def compiled() -> Any:
    keras.utils.set_random_seed(3)
    # Named: Keras finds a checkpoint's weights by their paths, and numbers the layers that have no name.
    inputs = keras.Input((5,), name="inputs")
    hidden = keras.layers.Dense(4, activation="tanh", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden), name="ranker")
    model.compile(keras.optimizers.Adam(0.02), loss="mse")
    return model


def trained(model: Any, watched: bool, folder: Path, *more: Any) -> Any:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(32, 5)).astype("float32"), random.normal(size=(32, 1)).astype("float32")
    mine = [Watch("ads", "ranker", journal=folder / "journal")] if watched else []
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[*mine, *more])
    return model


@pytest.mark.parametrize("watched_first", [True, False], ids=["watched to bare", "bare to watched"])
def test_a_training_goes_on_from_an_orbax_checkpoint_of_the_other(watched_first: bool, tmp_path: Path) -> None:
    oracle = trained(trained(compiled(), False, tmp_path), False, tmp_path)
    saving = keras.callbacks.OrbaxCheckpoint(str(tmp_path / "orbax"), save_on_background=False)
    trained(compiled(), watched_first, tmp_path, saving)
    restored: Any = keras.saving.load_model(str(tmp_path / "orbax"))
    trained(restored, not watched_first, tmp_path)
    for one, other in zip(restored.get_weights(), oracle.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)
    assert int(keras.ops.convert_to_numpy(restored.optimizer.iterations)) == 8


def _state(model: Any) -> dict[str, Any]:
    return {one.path: one.numpy() for one in (*model.variables, *model.optimizer.variables)}


def _manager(model: Any, folder: Path) -> None:
    often = ocp.CheckpointManagerOptions(save_interval_steps=5)
    with ocp.CheckpointManager(folder, options=often) as manager:
        assert manager.save(5, args=ocp.args.StandardSave(_state(model)))
        assert not manager.save(6, args=ocp.args.StandardSave(_state(model)))


def _standard(model: Any, folder: Path) -> None:
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder, _state(model))


def _in_background(model: Any, folder: Path) -> None:
    saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    saver.save(folder, args=ocp.args.StandardSave(_state(model)))
    saver.close()


SAVES: dict[str, Callable[[Any, Path], None]] = {
    "CheckpointManager": _manager,
    "StandardCheckpointer": _standard,
    "AsyncCheckpointer": _in_background,
    "PyTreeCheckpointer": lambda model, folder: ocp.PyTreeCheckpointer().save(folder, _state(model)),
}


@pytest.mark.parametrize("name", [*SAVES, "Keras's callback", "Keras's callback in background"])
def test_a_save_by_orbax_seals_the_steps_that_led_to_it(
    name: str, watch: Callable[..., Watch], sinks: list[MemorySink], tmp_path: Path
) -> None:
    class Saving(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            if batch == 4 and name in SAVES:
                SAVES[name](self.model, tmp_path / "saved")
            if batch == 4:
                sinks[-1].wait_until_sealed(5)

    background = name.endswith("background")
    by_keras = keras.callbacks.OrbaxCheckpoint(str(tmp_path / "by keras"), save_freq=5, save_on_background=background)
    x, y = np.ones((16, 5), "float32"), np.ones((16, 1), "float32")
    callbacks = [watch(), *([] if name in SAVES else [by_keras]), Saving()]
    compiled().fit(x, y, batch_size=2, verbose=0, callbacks=callbacks)
    assert sinks[0].sealed == [5]
    assert sinks[0].steps == list(range(1, 9))
