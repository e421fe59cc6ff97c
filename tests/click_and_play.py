"""A model of two tasks and its data, the same on every backend of Keras."""

from typing import Any

import keras
import numpy as np

LOSSES: dict[str, Any] = {"click": keras.losses.BinaryCrossentropy(from_logits=True), "play": "mse"}


def click_and_play() -> keras.Model:
    """A click and a play-time head over a shared layer and an embedding; smooth, so that jit agrees with no jit."""
    numbers, codes = keras.Input((5,), name="numbers"), keras.Input((3,), dtype="int32", name="codes")
    looked_up = keras.layers.Flatten()(keras.layers.Embedding(11, 2, name="embedding")(codes))
    shared = keras.layers.Dense(6, activation="tanh", name="shared")(keras.layers.Concatenate()([numbers, looked_up]))
    heads = {name: keras.layers.Dense(1, name=f"head_{name}")(shared) for name in ("click", "play")}
    return keras.Model({"numbers": numbers, "codes": codes}, heads)


def examples(count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and labels."""
    random = np.random.default_rng(3)
    inputs = {
        "numbers": random.normal(size=(count, 5)).astype("float32"),
        "codes": random.integers(0, 11, (count, 3)).astype("int32"),
    }
    labels = {
        "click": (random.random((count, 1)) < 0.4).astype("float32"),
        "play": random.normal(size=(count, 1)).astype("float32"),
    }
    return inputs, labels
