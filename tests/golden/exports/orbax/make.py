"""Made these checkpoints: `KERAS_BACKEND=jax python make.py FOLDER`, with Orbax 0.12.8, JAX 0.10.2 and Keras 3.15.

`good` is what Orbax writes by default (Zarr 2 in OCDBT), `nan_slot` Zarr 3, `nan_plain` a folder for each array,
`steps` what a CheckpointManager keeps, `keras` what the callback OrbaxCheckpoint of Keras wrote (one step of it).
"""

import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import keras
import numpy as np
import orbax.checkpoint as ocp

folder = Path(sys.argv[1]).absolute()


def tree(*, kernel: float = 0.0, slot: float = 0.0, bias: float = 1.0) -> dict[str, object]:
    weights, momentum = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((3, 4), np.float32)
    weights[1, 2], momentum[2, 3] = kernel, slot
    dense = {"kernel": jnp.asarray(weights), "bias": jnp.full(4, bias, jnp.bfloat16)}
    return {
        "params": {"dense": dense},
        "opt_state": [{"mu": jnp.asarray(momentum)}, {"count": jnp.int32(3)}],
        "step": 7,
        "note": "text",
    }


def saver(**options: bool) -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))


ocp.PyTreeCheckpointer().save(folder / "good", tree())
saver(use_zarr3=True).save(folder / "nan_slot", tree(slot=np.nan))
saver(use_ocdbt=False).save(folder / "nan_plain", tree(kernel=-np.inf, bias=np.nan))
with ocp.CheckpointManager(folder / "steps", item_names=("model", "optimizer")) as manager:
    items = {
        "model": ocp.args.StandardSave({"kernel": np.ones(3)}),
        "optimizer": ocp.args.StandardSave(tree(slot=np.inf)),
    }
    items["optimizer"].item.pop("note")
    manager.save(5, args=ocp.args.Composite(**items))
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.compile(keras.optimizers.Adam(use_ema=True), "mse")
callback = keras.callbacks.OrbaxCheckpoint(str(folder / "callback"))
model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0, callbacks=[callback])
shutil.move(folder / "callback" / "0", folder / "keras")
shutil.rmtree(folder / "callback")
