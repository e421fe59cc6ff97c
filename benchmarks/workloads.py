"""The models whose training is measured, and data of their shapes, on any Keras backend.

An MLP of 4 x 1024, and the demo's ranker (large, with DCN), whose embedding has a dense gradient or Keras's sparse one.
"""

from typing import Any
from unittest import mock

import keras
import numpy as np

from lossguard.demo import ranker as demo
from lossguard.demo.features import TASKS

ROWS, COLUMNS, NUMBERS = 39_378, 28, 12


def mlp() -> keras.Model:
    """4 x 1024, 3.4 million parameters."""
    keras.utils.set_random_seed(1)
    inputs = hidden = keras.Input((256,))
    for _ in range(4):
        hidden = keras.layers.Dense(1024, activation="relu")(hidden)
    return keras.Model(inputs, keras.layers.Dense(1)(hidden))


class SparseGradientEmbedding(demo.DenseGradientEmbedding):
    """The demo's table with the gradient that Keras's own `Embedding` has."""

    def call(self, codes: Any) -> Any:
        return keras.ops.reshape(keras.ops.take(self.table, codes, axis=0), (-1, codes.shape[1] * self.width))


def ranker(sparse: bool) -> keras.Model:
    """The demo's: two cross layers, LayerNorm, 256 x 4, six heads; a table of 39,378 rows of 8."""
    embedding = SparseGradientEmbedding if sparse else demo.DenseGradientEmbedding
    with mock.patch.object(demo, "DenseGradientEmbedding", embedding):
        return demo.build(ROWS, COLUMNS, NUMBERS, seed=1)


def ranker_data(count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    labels = {
        name: (random.random((count, 1)) < 0.3 if kind == "binary" else random.normal(size=(count, 1))).astype(
            "float32"
        )
        for name, kind in TASKS.items()
    }
    codes = random.integers(0, ROWS, (count, COLUMNS)).astype("int32")
    return {"categorical": codes, "numeric": random.normal(size=(count, NUMBERS)).astype("float32")}, labels


def mlp_data(count: int) -> tuple[Any, Any]:
    """Labels with a mean: around 0 the head bias's gradient is noise, which jumps, and sets bursts off."""
    random = np.random.default_rng(0)
    labels = 3 + random.normal(size=(count, 1))
    return random.normal(size=(count, 256)).astype("float32"), labels.astype("float32")
