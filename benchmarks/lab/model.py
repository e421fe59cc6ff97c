"""The paper's model (section 3.1, Table 1) in small: one bottom that all tasks share, one linear head per task.

Layer names are the demo's; initial weights are drawn from the run's seed, layer by layer, so that a compiled step can
be used again.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from lab.config import Bottom
from lossguard.demo.ranker import DenseGradientEmbedding, shared_bottom

UNITS: dict[str, tuple[tuple[int, ...], int]] = {
    "small": ((128, 128), 0),
    "small+dcn": ((128, 128), 2),
    "large": ((256, 256, 256, 256), 0),
    "large+dcn": ((256, 256, 256, 256), 2),
}
"""ReLU layers, and cross layers (DCN-v2) with a LayerNorm before them."""
EXPERTS, EXPERT_UNITS = 4, (128, 128)


def build(bottom: Bottom, rows: int, columns: int, numbers: int, tasks: Sequence[str]) -> keras.Model:
    """A model from `{"categorical": int32 [B, columns], "numeric": float32 [B, numbers]}` to [B, 1] per task."""
    categorical = keras.Input((columns,), dtype="int32", name="categorical")
    numeric = keras.Input((numbers,), dtype="float32", name="numeric")
    embedded = DenseGradientEmbedding(rows, name="embedding")(categorical)
    first = layers.Concatenate(name="features")([embedded, numeric])
    shared = _bottom(bottom, first, tasks)
    heads = {task: layers.Dense(1, name=f"head_{task}")(shared[task]) for task in tasks}
    return keras.Model({"categorical": categorical, "numeric": numeric}, heads, name="lab")


def _bottom(bottom: Bottom, first: Any, tasks: Sequence[str]) -> dict[str, Any]:
    """What each task's head reads."""
    if bottom == "mmoe":
        return _mixture(first, tasks)
    if bottom == "wide":
        return dict.fromkeys(tasks, first)
    if bottom == "wide&deep":
        deep = shared_bottom(first, UNITS["small"][0], 0)
        return dict.fromkeys(tasks, layers.Concatenate(name="wide_and_deep")([first, deep]))
    return dict.fromkeys(tasks, shared_bottom(first, *UNITS[bottom]))


def _mixture(first: Any, tasks: Sequence[str]) -> dict[str, Any]:
    """Multi-gate mixture of experts (Ma et al., KDD 2018): each task weighs the experts by a gate of its own."""
    experts = []
    for number in range(1, EXPERTS + 1):
        expert = first
        for depth, units in enumerate(EXPERT_UNITS, 1):
            name = f"expert_{number}_{depth}"
            expert = layers.Dense(units, activation="relu", kernel_initializer="he_normal", name=name)(expert)
        experts.append(layers.Reshape((1, EXPERT_UNITS[-1]), name=f"expert_{number}")(expert))
    together = layers.Concatenate(axis=1, name="experts")(experts)
    mixed = {}
    for task in tasks:
        gate = layers.Dense(EXPERTS, activation="softmax", name=f"gate_{task}")(first)
        mixed[task] = layers.Dot(axes=(1, 1), name=f"mixed_{task}")([gate, together])
    return mixed


def initialise(model: keras.Model, seed: int) -> None:
    """Set the weights to those of a fresh model of this seed: each layer's own initializers, each with its own seed."""
    number = 0
    for layer in model.layers:
        for variable in layer.trainable_variables:
            number += 1
            variable.assign(_initializer(layer, variable.name, (seed, number))(variable.shape, variable.dtype))


def _initializer(layer: Any, name: str, seed: tuple[int, int]) -> Any:
    known = {"kernel": "kernel_initializer", "bias": "bias_initializer"}
    known |= {"gamma": "gamma_initializer", "beta": "beta_initializer"}
    if name == "table":
        bare: Any = keras.initializers.RandomNormal(stddev=0.05)
    else:
        bare = getattr(layer, known[name])
    settings = bare.get_config()
    if "seed" not in settings:
        return bare
    drawn = int(np.random.default_rng([*seed, 0x1417]).integers(2**31))
    return type(bare).from_config({**settings, "seed": drawn})
