"""What differs between the backends of Keras, a module for each; the rest of the room is written in `keras.ops`.

Guarantees. Only the module of the backend that this process runs is imported, so a JAX trainer needs no TensorFlow. The
three modules have the same names in them: those of `Backend`, which says what each does (decision 0204).
"""

import importlib
from typing import Final, cast

import keras

from lossguard.keras.backends.interface import Backend

NAMES: Final = ("tensorflow", "jax", "torch")

if keras.backend.backend() not in NAMES:
    raise ImportError(
        f"lossguard.keras watches Keras on {', '.join(NAMES)}; this process runs it on {keras.backend.backend()}"
    )

backend: Final = cast(Backend, importlib.import_module(f"{__name__}.{keras.backend.backend()}"))

__all__ = ["NAMES", "Backend", "backend"]
