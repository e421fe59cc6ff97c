"""How much memory XLA gives to an update on JAX, by its own account, in layers of the model (decision 0218)."""

from typing import Any

import keras
import numpy as np
from fits import watch_of

from lossguard.keras import Clippy

LAYERS, SIDE = 12, 512


def held() -> dict[str, float]:
    """Layers' worth of temporaries of a compiled update of 12 layers, bare and watched."""
    options: dict[str, dict[str, Any] | None] = {
        "bare": None,
        "default": {},
        "every step": {"full_every": 1},
        "Clippy": {"treatment": Clippy()},
    }
    return {name: _temporaries(given) / (4 * SIDE * SIDE) for name, given in options.items()}


def _temporaries(given: dict[str, Any] | None) -> int:
    import jax

    weight = np.full((SIDE, SIDE), 0.5, "float32")
    variables = [keras.Variable(weight, name=f"layer_{place}") for place in range(LAYERS)]
    optimizer: Any = keras.optimizers.Adam(1e-3)
    if given is not None:
        watch = watch_of([], **given)
        optimizer = watch.wrap(optimizer)
        watch.__enter__()
    optimizer.build(variables)
    state = [one.value for one in optimizer.variables]
    weights, gradients = [one.value for one in variables], [one.value for one in variables]
    # What is given away is taken for the results in their order.
    step = jax.jit(
        lambda weights, state, gradients: optimizer.stateless_apply(state, gradients, weights), donate_argnums=(0, 1)
    )
    found: int = step.lower(weights, state, gradients).compile().memory_analysis().temp_size_in_bytes
    if given is not None:
        watch.close()
    return found
