"""What a watched training saved is read by a process that has no lossguard."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from click_and_play import LOSSES, examples
from conftest import two_tasks
from lossguard.keras import Clippy, Watch

READER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lossguard":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import keras, numpy as np, tensorflow as tf

folder = sys.argv[1]
try:
    import lossguard
except ModuleNotFoundError:
    pass
else:
    sys.exit("lossguard is there")
whole = keras.saving.load_model(folder + "/model.keras")
found = {"keras": whole}
for kind in ("weights", "checkpoint"):
    model = keras.models.clone_model(whole)
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    model.optimizer.build(model.trainable_variables)
    if kind == "weights":
        model.load_weights(folder + "/model.weights.h5")
    else:
        status = tf.train.Checkpoint(model=model, optimizer=model.optimizer).read(folder + "/model.ckpt")
        status.assert_consumed()
    found[kind] = model
state = {}
for kind, model in found.items():
    for place, variable in enumerate((*model.weights, *model.optimizer.variables)):
        state[f"{kind}/{place}"] = variable.numpy()
np.savez(folder + "/read.npz", **state)
assert not any(name.split(".")[0] == "lossguard" for name in sys.modules)
"""


def test_what_was_saved_while_watched_is_read_where_lossguard_is_not_installed(
    watch: Callable[..., Watch], tmp_path: Path
) -> None:
    mine, model = watch(treatment=Clippy()), two_tasks()
    model.compile(mine.wrap(keras.optimizers.Adam(0.01)), loss=LOSSES)
    inputs, labels = examples(24)
    model.fit(inputs, labels, batch_size=8, verbose=0, callbacks=[mine])
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "model.ckpt"))
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]
    with np.load(tmp_path / "read.npz") as read:
        for kind in ("keras", "weights", "checkpoint"):
            for place, value in enumerate(expected):
                assert np.array_equal(read[f"{kind}/{place}"], value), (kind, place)
        assert len(read.files) == 3 * len(expected)
