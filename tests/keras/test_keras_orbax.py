"""Orbax checkpoints, by Keras's own callback, are those of the bare optimizer, both ways."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from lossguard.keras import Watch

pytest.importorskip("orbax.checkpoint", reason='Orbax is not installed here: pip install "orbax-checkpoint"')


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
